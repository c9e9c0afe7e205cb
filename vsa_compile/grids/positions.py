"""Where the video lies in the sequence of a model's blocks, and how positions of tokens tell it.

Reading the values of positions waits for the device, so each tensor is read once.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..convert import refusals
from ..grid import GridSizes
from ..torch_compat import version_of


@dataclass(frozen=True)
class VideoTokens:
    """The video is tokens start.. of a sequence of `length`, which is all video where that is None.

    Or it could not be found: grid is None, and `why` says so to people.
    """

    grid: GridSizes | None
    start: int = 0
    length: int | None = None
    why: str = ""


# --- By values ------------------------------------------------------------------------------------


class Reader:
    """Reads the values of positions, and remembers what it read while the same tensors come again."""

    def __init__(self) -> None:
        self._last: tuple[list[weakref.ref], list[Any], VideoTokens] | None = None

    def video(
        self, rules: Mapping[Callable[..., VideoTokens], tuple[str, ...]], given: Mapping[str, Any]
    ) -> VideoTokens | None:
        """By the first rule all of whose arguments are there; None where there is none."""
        for rule, names in rules.items():
            values = [given.get(name) for name in names]
            if all(value is not None for value in values):
                return self._remembered(rule, values)
        return None

    def _remembered(self, rule: Any, values: list[Any]) -> VideoTokens:
        tensors = [value for value in _flat(values) if isinstance(value, Tensor)]
        rest = [value for value in _flat(values) if not isinstance(value, Tensor)]
        state = [rule, rest, [version_of(tensor) for tensor in tensors]]
        held, before, video = self._last or ([], None, None)
        same = before == state and [id(one()) for one in held] == [id(tensor) for tensor in tensors]
        if same and video is not None:
            return video
        video = rule(*values)
        known = all(version is not None for version in state[2])
        self._last = ([weakref.ref(tensor) for tensor in tensors], state, video) if known else None
        return video


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    else:
        yield value


# --- Positions ------------------------------------------------------------------------------------


def largest_raster(positions: Tensor, indices: Tensor, length: int) -> VideoTokens:
    """The longest run of tokens that follow each other, in the sequence as on the axes, if it is a grid."""
    start, stop = max(runs(torch.cat([positions, indices[:, None]], 1)), key=lambda run: run[1] - run[0])
    grid = raster(positions[start:stop])
    if grid is None:
        return VideoTokens(None, why=refusals.not_one_grid("its positions"))
    first = int(indices[start])
    return VideoTokens(grid, first, None if stop - start == length else length)


def runs(places: Tensor) -> list[tuple[int, int]]:
    """(start, stop) of the runs of (N, K) in which the last column counts up by one, and the others (if there
    are any) rise in the order of a dictionary."""
    steps = places[1:].double() - places[:-1].double()
    goes_on = steps[:, -1] == 1
    rises = torch.zeros_like(goes_on) if steps.shape[1] > 1 else goes_on
    for step in steps[:, :-1].flip(1).unbind(1):
        rises = torch.where(step == 0, rises, step > 0)
    ends = [0, *((~(goes_on & rises)).nonzero().flatten() + 1).tolist(), len(places)]
    return list(itertools.pairwise(ends))


def raster(table: Tensor) -> GridSizes | None:
    """(frames, rows, cols) if every column of a table (N, K) varies along one of the three axes alone, and no
    two neighbours on an axis have the same values; else None. One row or one column is no video."""
    tokens = len(table)
    differs = table != table[:1]
    firsts = differs.int().argmax(0)[differs.any(0)].unique().tolist()  # where each column changes first
    for cols in firsts:
        for area in (*firsts, tokens):
            fits = 1 < cols < area and area % cols == 0 and tokens % area == 0
            if fits and _one_axis_each(table.reshape(tokens // area, area // cols, cols, -1)):
                return tokens // area, area // cols, cols
    return None


def _one_axis_each(box: Tensor) -> bool:
    """(frames, rows, cols, K)."""
    varies = []
    for axis in range(3):
        steps = box.narrow(axis, 1, box.shape[axis] - 1) != box.narrow(axis, 0, box.shape[axis] - 1)
        steps = steps.movedim(axis, 0)
        if not steps.flatten(1).any(1).all():
            return False
        varies.append(steps.flatten(0, 2).any(0) if len(steps) else steps.new_zeros(box.shape[-1]))
    return bool((torch.stack(varies).sum(0) <= 1).all())
