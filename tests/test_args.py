"""The one description of a call: its schemas, and that no kernel is reached by a call that cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attend_cases import Case, make_case
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vsa_compile import ArgumentError
from vsa_compile.ops.args import AttendArgs, BackwardArgs, SelectArgs

pytestmark = pytest.mark.quick

paths = pytest.mark.parametrize("path", ["aten", "cpp", "fake"])


def case_of(**changes: Any) -> Case:
    return make_case(3, batch=2, heads=4, kv_heads=2, before=3, after=5, padding=2, **changes)


CASE = case_of()


def call(path: str, function: Any, *arguments: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The operator by ATen, by C++ where there is one, or on fakes, as a graph is captured."""
    monkeypatch.setenv("VSA_COMPILE_CPU", "aten" if path == "aten" else "")
    if path != "fake":
        return function(*arguments)
    with FakeTensorMode() as mode:
        return function(*(mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in arguments))


def test_the_operators_have_the_schemas_of_the_descriptions():
    for kind, operator in (
        (SelectArgs, torch.ops.vsa_compile.select),
        (AttendArgs, torch.ops.vsa_compile.attend),
        (BackwardArgs, torch.ops.vsa_compile.attend_backward),
    ):
        assert f"({kind.schema()}) ->" in str(operator.default._schema)


WRONG = {
    "three dimensions": {"q": CASE.q[0]},
    "another batch of keys": {"k": CASE.k[:1], "v": CASE.v[:1]},
    "another width of keys": {"k": CASE.k[..., :16], "v": CASE.v[..., :16]},
    "fewer values than keys": {"v": CASE.v[:, :, 1:]},
    "heads that do not divide": {"k": CASE.q[:, :3], "v": CASE.q[:, :3]},
    "no key heads": {"k": CASE.k[:, :0], "v": CASE.v[:, :0]},
    "keys of another type": {"k": CASE.k.double()},
    "integers": {"q": CASE.q.int(), "k": CASE.k.int(), "v": CASE.v.int()},
    "lists of fewer heads": {"tiles": CASE.tiles[:, :1]},
    "lists of fewer tiles": {"tiles": CASE.tiles[:, :, 1:]},
    "lists of another type": {"tiles": CASE.tiles.long()},
    "lists of one dimension too few": {"tiles": CASE.tiles[..., 0]},
    "counts of another type": {"counts": CASE.counts.long()},
    "counts of fewer tiles": {"counts": CASE.counts[:, :, 1:]},
    "a grid of two": {"grid": (5, 42)},
    "a grid of nothing": {"grid": (5, 6, 0)},
    "a tile of nothing": {"tile": (2, 0, 4)},
    "queries that end before the video": {"q_start": 9},
    "keys that end before the video": {"kv_start": 9},
    "a negative start of queries": {"q_start": -1},
    "a negative start of keys": {"kv_start": -1},
    "a start beyond all": {"kv_start": 1 << 62},
    "padding of other keys": {"key_padding": CASE.key_padding[:, 1:]},
    "padding of more batches": {"key_padding": CASE.key_padding.repeat(2, 1)},
    "padding of numbers": {"key_padding": CASE.key_padding.float()},
    "a scale of nan": {"scale": float("nan")},
    "an infinite scale": {"scale": float("inf")},
}


@paths
@pytest.mark.parametrize("wrong", WRONG)
def test_a_call_that_does_not_fit_together_is_an_error(path: str, wrong: str, monkeypatch):
    bad = replace(CASE, **WRONG[wrong]).arguments()
    with pytest.raises(ArgumentError, match="must"):
        call(path, torch.ops.vsa_compile.attend, *bad, monkeypatch=monkeypatch)


@paths
@pytest.mark.parametrize("packed", [{"q_grid": [1, 2, 3]}, {"q_tile": [1, 2, 3]},
                                    {"q_grid": [50, 6, 7], "q_tile": [2, 3, 4]},
                                    {"q_grid": [5, 6, 7], "q_tile": [1, 3, 4]}])  # fmt: skip
def test_a_raster_of_queries_is_given_whole_and_fits(path: str, packed: dict, monkeypatch):
    def attend(*arguments: Any) -> Any:
        return torch.ops.vsa_compile.attend(*arguments, **packed)

    with pytest.raises(ArgumentError, match="must"):
        call(path, attend, *CASE.arguments(), monkeypatch=monkeypatch)


def backward_of(case: Case) -> dict[str, Any]:
    out, lse, witness = torch.ops.vsa_compile.attend(*case.arguments())
    return {"grad_out": case.grad_out, "out": out, "lse": lse, "witness": witness}


@paths
@pytest.mark.parametrize(
    "wrong",
    [
        {"grad_out": lambda x: x[:, 1:]}, {"grad_out": lambda x: x.double()},
        {"grad_out": lambda x: x[..., :1]}, {"grad_out": lambda x: x.transpose(1, 2)},
        {"out": lambda x: x[:1]}, {"out": lambda x: x.double()},
        {"lse": lambda x: x[..., 1:]}, {"lse": lambda x: x.double()}, {"lse": lambda x: x[:, :1]},
    ],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_a_backward_that_does_not_fit_together_is_an_error(path: str, wrong: dict, monkeypatch):
    given = backward_of(CASE)
    ((name, spoil),) = wrong.items()
    given[name] = spoil(given[name])
    arguments = (torch.ops.vsa_compile.attend_backward, *given.values(), *CASE.arguments())
    with pytest.raises(ArgumentError, match=f"{name}.*must"):
        call(path, *arguments, monkeypatch=monkeypatch)


# --- The lists --------------------------------------------------------------------------------------

FULL = case_of(ragged=False)


def spoiled(place: tuple, value: int, name: str = "tiles") -> Case:
    x = getattr(FULL, name).clone()
    x[place] = value
    return replace(FULL, **{name: x})


BAD_LISTS = {
    "an id twice": lambda: spoiled((1, 2, 3, 1), int(FULL.tiles[1, 2, 3, 0])),
    "descending": lambda: replace(FULL, tiles=FULL.tiles.flip(-1)),
    "an id too high": lambda: spoiled((1, 3, -1, -1), FULL.boxes.tiles),
    "an id below zero": lambda: spoiled((0, 0, 0, 0), -1),
    "a count above the width": lambda: spoiled((0, 1, 2), FULL.tiles.shape[-1] + 1, "counts"),
    "a count below zero": lambda: spoiled((0, 1, 2), -1, "counts"),
}


@pytest.mark.parametrize("path", ["aten", "cpp"])
@pytest.mark.parametrize("bad", BAD_LISTS)
def test_a_list_that_is_none_is_an_error_and_no_wrong_read(path: str, bad: str, monkeypatch):
    case = BAD_LISTS[bad]()
    with pytest.raises(ArgumentError, match="ascending, without repetition"):
        call(path, torch.ops.vsa_compile.attend, *case.arguments(), monkeypatch=monkeypatch)
    backward = (torch.ops.vsa_compile.attend_backward, *backward_of(FULL).values(), *case.arguments())
    with pytest.raises(ArgumentError, match="ascending, without repetition"):
        call(path, *backward, monkeypatch=monkeypatch)


def test_the_error_shows_the_list():
    with pytest.raises(ArgumentError, match=r"\(1, 3, 11\) is \[\d+, \d+, 12\] with count 3.* 0 to 11"):
        torch.ops.vsa_compile.attend(*spoiled((1, 3, 11, -1), 12).arguments())


def test_what_follows_the_count_is_anybodys():
    counts = torch.full_like(FULL.counts, 1)
    for junk in (-5, 0, 1 << 30):
        tiles = FULL.tiles.where(torch.arange(FULL.tiles.shape[-1]) < 1, junk)
        torch.ops.vsa_compile.attend(*replace(FULL, tiles=tiles, counts=counts).arguments())


class _Largest(TorchDispatchMode):
    """The most memory that a result lies in."""

    bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), more=None):
        result = function(*arguments, **(more or {}))
        if isinstance(result, torch.Tensor):
            self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return result


def test_lists_that_batches_and_heads_share_are_looked_at_once():
    """Those of a static pattern: one row of lists for all."""

    def shared(x: torch.Tensor) -> torch.Tensor:
        return x[:1, :1].clone().expand_as(x)

    case = replace(FULL, tiles=shared(FULL.tiles), counts=shared(FULL.counts))
    with _Largest() as largest:
        AttendArgs(*case.arguments()).check_values()
    assert 0 < largest.bytes <= FULL.tiles[0, 0].nbytes
    case = replace(case, tiles=shared(FULL.tiles.flip(-1)))
    with pytest.raises(ArgumentError):
        AttendArgs(*case.arguments()).check_values()
