"""Bad options and bad arguments: the exact error, before any work is done."""

import pytest
import torch

import vsa_compile
from vsa_compile import ArgumentError, OptionError, Options
from vsa_compile.backend import read_options

pytestmark = pytest.mark.quick

BAD_OPTIONS = [
    ({"sparsty": 0.5}, "unknown option 'sparsty'; did you mean 'sparsity'?"),
    ({"sparsity": 1.5}, "sparsity is 1.5, but it must be a number from 0 (dense) to 1"),
    ({"sparsity": -0.1}, "sparsity is -0.1"),
    ({"sparsity": "high"}, "sparsity is 'high'"),
    ({"sparsity": True}, "sparsity is True"),
    ({"sparsity": float("nan")}, "sparsity is nan"),
    ({"tile": (0, 4, 4)}, "tile is (0, 4, 4), but it must be three positive integers"),
    ({"tile": 64}, "tile is 64"),
    ({"tile": (4, 4)}, "tile is (4, 4)"),
    ({"grid": (0, 0, 0)}, "grid is (0, 0, 0), but it must be three positive integers"),
    ({"grid": (21, 30.0, 52)}, "grid is (21, 30.0, 52)"),
    ({"min_tokens": -1}, "min_tokens is -1, but it must be an integer >= 0."),
    ({"dense_layers": (0, -2)}, "dense_layers is (0, -2)"),
    ({"dense_layers": 3}, "dense_layers is 3"),
    ({"fallback": "eror"}, "fallback is 'eror', but it must be 'dense' or 'error'."),
    ({"inductor": 3}, "inductor is 3, but it must be a dict"),
    (
        {"inductor": {"max_autotun": True}},
        "unknown Inductor setting 'max_autotun'; did you mean 'max_autotune'?",
    ),
    ({"mode": "fastest"}, "Unrecognized mode=fastest"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_name_what_came_and_what_is_allowed(options, message):
    with pytest.raises(OptionError) as error:
        read_options(options)
    assert message in str(error.value)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ArgumentError, match="unknown method 'vsaa'; did you mean 'vsa'"):
        read_options({"method": "vsaa"})


def test_options_are_frozen_and_comparable():
    first = Options.read({"sparsity": 0.5, "dense_layers": [1, 0], "inductor": {"max_autotune": True}})
    assert first == Options.read(
        {"inductor": {"max_autotune": True}, "dense_layers": (0, 1), "sparsity": 0.5}
    )
    with pytest.raises(AttributeError):
        first.sparsity = 0.1  # pyright: ignore


def test_mode_may_come_either_way_but_not_twice():
    assert Options.read({}, mode="max-autotune").mode == Options.read({"mode": "max-autotune"}).mode
    with pytest.raises(OptionError, match="mode is"):
        Options.read({"mode": "default"}, mode="max-autotune")


def tensors(**overrides):
    q = torch.zeros(1, 2, 24, 16)
    return {"q": q, "k": q, "v": q, "grid": (2, 3, 4)} | overrides


BAD_ARGUMENTS = [
    ({"grid": (2, 3, 5)}, "grid 2x3x5 needs 30 video tokens from position 0, but k has 24 tokens in all"),
    ({"grid": (2, 3, 3)}, "The 6 tokens behind the video need a key_padding_mask"),
    ({"grid": (0, 3, 4)}, "grid is (0, 3, 4), but it must be three positive integers"),
    ({"sparsity": 1.5}, "sparsity is 1.5"),
    ({"tile": (0, 4, 4)}, "tile is (0, 4, 4)"),
    ({"method": "best"}, "unknown method 'best'"),
    ({"video_start": 1}, "from position 1, but k has 24 tokens in all"),
    ({"video_start": -1}, "from position -1"),
    ({"k": torch.zeros(1, 2, 24, 16).half()}, "dtypes differ: q torch.float32, k torch.float16"),
    ({"k": torch.zeros(1, 2, 24, 16, device="meta")}, "devices differ: q cpu, k meta"),
    ({"q": torch.zeros(1, 24, 16)}, "q.shape is (1, 24, 16), but it must be (batch, heads, tokens, width)"),
    ({"k": torch.zeros(1, 2, 24, 8)}, "shapes do not fit"),
    ({"k": torch.zeros(1, 3, 24, 16), "v": torch.zeros(1, 3, 24, 16)}, "a number of heads that divides q's"),
    ({"gate": torch.zeros(1, 2, 24, 1)}, "gate.shape is (1, 2, 24, 1)"),
    ({"key_padding_mask": torch.zeros(1, 24)}, "key_padding_mask.dtype is torch.float32"),
    ({"key_padding_mask": torch.ones(3, 24, dtype=torch.bool)}, "key_padding_mask.shape is (3, 24)"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD_ARGUMENTS)
def test_bad_arguments_name_what_came_and_what_is_allowed(overrides, message):
    with pytest.raises((ArgumentError, OptionError)) as error:
        vsa_compile.attention(**tensors(**overrides))
    assert message in str(error.value)


def test_integer_tensors_are_refused():
    q = torch.zeros(1, 2, 24, 16, dtype=torch.int64)
    with pytest.raises(ArgumentError, match="a floating point type"):
        vsa_compile.attention(q, q, q, grid=(2, 3, 4))
