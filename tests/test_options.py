"""Options: frozen, comparable, and read alike from everywhere. What is wrong with them is in bad_inputs."""

import numpy as np
import pytest

from vsa_compile import OptionError, Options

pytestmark = pytest.mark.quick


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


def test_integers_of_numpy_are_integers():
    sizes = np.array([21, 30, 52])
    read = Options.read({"grid": sizes, "tile": tuple(sizes), "min_tokens": sizes[0], "dense_layers": sizes})
    plain = Options.read(
        {"grid": (21, 30, 52), "tile": (21, 30, 52), "min_tokens": 21, "dense_layers": (21, 30, 52)}
    )
    assert read == plain
    assert all(type(size) is int for size in (*read.grid, *read.tile, read.min_tokens, *read.dense_layers))
