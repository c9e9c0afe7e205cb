"""The further configurations of the GPU kernels: they compute the same, and are timed on valid lists only."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from gpu_offline.cases import Case
from gpu_offline.comparison import verdict
from gpu_offline.tables import AUTOTUNED

from vsa_compile.ops.gpu import configs

pytest_plugins = ["gpu_offline.fixtures"]

FORWARD, BACKWARD = AUTOTUNED


@pytest.fixture(scope="session")
def examples(finished: Path) -> dict[str, tuple[int, dict[int, Tensor]]]:
    """Template -> how many configurations are timed, and on which inputs."""
    found = [torch.load(finished / f"{case.name}_examples.pt") for case in AUTOTUNED]
    return {name: example for each in found for name, example in each.items()}


@pytest.mark.parametrize("case", AUTOTUNED, ids=lambda case: case.name)
def test_the_last_configuration_computes_the_same(case: Case, outcome: Callable):
    assert verdict(case, outcome(case.name)) is None


def test_every_configuration_is_timed(examples: dict):
    hopper = {kernel: configs._BY_FAMILY[kernel, "hopper", 2][0][1] for kernel in ("forward", "dq", "dkdv")}
    names = {"vsa_attend_fwd": "forward", "vsa_attend_dq": "dq", "vsa_attend_dkdv": "dkdv"}
    assert {name: count for name, (count, _) in examples.items()} == {
        name: len(hopper[kernel]) for name, kernel in names.items()
    }


def _assert_lists(case: Case, tiles: Tensor, counts: Tensor) -> None:
    rows = (case.batch, case.heads, case.tiles.tiles)
    assert tiles.dtype == counts.dtype == torch.int32
    assert tiles.shape == (*rows, case.kept)
    assert counts.shape == rows
    assert bool((counts == case.kept).all())
    assert 0 <= int(tiles.min()) <= int(tiles.max()) < case.tiles.tiles
    assert bool((tiles.diff() > 0).all()), "a tile twice, or lists that do not ascend"


def test_lists_of_tiles_are_valid(examples: dict):
    for case, name, first in ((FORWARD, "vsa_attend_fwd", 4), (BACKWARD, "vsa_attend_dq", 7)):
        made = examples[name][1]
        assert made.keys() == {first, first + 1, first + 2}
        _assert_lists(case, made[first], made[first + 1])
        # The shape that carries the grid shares memory with the counts: Inductor keeps one of the two.
        assert torch.equal(made[first + 1], made[first + 2])


def test_transposed_lists_are_valid(examples: dict):
    starts, columns, order = (examples["vsa_attend_dkdv"][1][i] for i in (7, 8, 9))
    total = BACKWARD.tiles.tiles
    assert starts.shape == (1, 2, total + 1)
    assert columns.shape == (1, 2, total * BACKWARD.kept)
    assert {starts.dtype, columns.dtype, order.dtype} == {torch.int32}
    assert bool((starts[..., 0] == 0).all())
    assert bool((starts[..., -1] == columns.shape[-1]).all())
    assert bool((starts.diff() == BACKWARD.kept).all())
    assert 0 <= int(columns.min()) <= int(columns.max()) < total
    assert order.sort(-1).values.tolist() == [[list(range(total))]]
