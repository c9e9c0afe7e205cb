"""Where the video lies in the sequence of a model's blocks, and how token positions show it.

Reading position values makes the host wait for the device, so each tensor is read once.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..convert import refusals
from ..grid import GridSizes
from ..torch_compat import version_of


@dataclass(frozen=True)
class VideoTokens:
    """Where the video is in the sequence of a model's blocks; the result of a rule of `register_grid_rule`.

        VideoTokens((21, 30, 52), start=512, length=512 + 21 * 30 * 52)  # 512 text tokens, then the video

    grid: (frames, rows, cols) in tokens; None if it was not found, with `why` as the reason for people. The
    video is tokens start.. of a sequence of `length`, or the whole sequence if `length` is None.
    """

    grid: GridSizes | None
    start: int = 0
    length: int | None = None
    why: str = ""


# --- By values ------------------------------------------------------------------------------------


class Reader:
    """Reads position values, and remembers the result for as long as the same tensors come again."""

    def __init__(self) -> None:
        self._last: tuple[list[weakref.ref], list[object], VideoTokens] | None = None

    def video(
        self, rules: Mapping[Callable[..., VideoTokens], tuple[str, ...]], given: Mapping[str, object]
    ) -> VideoTokens | None:
        """The result of the first rule whose arguments are all present; None if there is none."""
        for rule, names in rules.items():
            values = [given.get(name) for name in names]
            if all(value is not None for value in values):
                return self._remembered(rule, values)
        return None

    def by_any(self, given: Mapping[str, object]) -> VideoTokens | None:
        """The video that a tensor of positions shows, whatever its name is, also inside of dataclasses,
        dictionaries and lists; None if there is none."""
        tensors = [tensor for tensor in _tensors(given) if _may_be_positions(tensor)]
        try:
            return self._remembered(_of_any, [tensors]) if tensors else None
        except RuntimeError as error:  # under torch.func and tracers, tensors have no values to read
            return VideoTokens(None, why=refusals.unreadable(str(error)))

    def _remembered(self, rule: Callable[..., VideoTokens], values: list[object]) -> VideoTokens:
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


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _tensors(value: object, depth: int = 4) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        yield from (x for item in value.values() for x in _tensors(item, depth - 1))
    elif depth and isinstance(value, (tuple, list)):
        yield from (x for item in value for x in _tensors(item, depth - 1))
    elif depth and dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        yield from (x for name in names for x in _tensors(getattr(value, name, None), depth - 1))


# --- Positions ------------------------------------------------------------------------------------


def _may_be_positions(x: Tensor) -> bool:
    """Whether a shape is one of positions: (N, 3), (B, N, 3), (B, 3, N), (3, B, N) or (B, 3, N, 2), where the
    last dimension is a patch's begin and end. Four columns may hold an index beside the three."""
    if type(x) is not Tensor or not is_plain(x) or x.is_meta or x.dtype not in _NUMBERS or x.requires_grad:
        return False
    return x.dim() in (2, 3, 4) and x.numel() > 0 and any(True for _ in _as_columns(x))


_NUMBERS = (torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_plain(x: Tensor) -> bool:
    """Whether a tensor has one shape and strides: it is neither nested nor sparse."""
    return not x.is_nested and x.layout == torch.strided


def _as_columns(x: Tensor) -> Iterator[Tensor]:
    """(samples, N, 3 or 4) for each way to read a tensor as positions."""
    if x.dim() == 2:
        x = x[None]
    if x.dim() == 3 and x.shape[-1] in (3, 4):
        yield x
    if x.dim() == 3 and x.shape[1] in (3, 4):
        yield x.mT
    if x.dim() == 3 and x.shape[0] == 3:
        yield x.permute(1, 2, 0)
    if x.dim() == 4 and x.shape[1] == 3 and x.shape[-1] == 2:
        yield x[..., 0].mT


def _of_any(tensors: Sequence[Tensor]) -> VideoTokens:
    """The largest video that one of several tensors shows, the same for all samples."""
    found: list[VideoTokens] = []
    for tensor in tensors:
        for places in _as_columns(tensor.detach().cpu()):
            tokens = places.shape[1]
            if tokens >= 8 and (places == places[:1]).all():
                found.append(largest_raster(places[0], torch.arange(tokens), tokens))
    found = [video for video in found if video.grid is not None]
    if not found:
        return VideoTokens(None)
    largest = max(found, key=lambda video: math.prod(video.grid or ()))
    others = [video for video in found if math.prod(video.grid or ()) == math.prod(largest.grid or ())]
    if any(video != largest for video in others):
        return VideoTokens(None, why=refusals.several_grids([video.grid for video in others]))
    return largest


def largest_raster(positions: Tensor, indices: Tensor, length: int) -> VideoTokens:
    """The longest run of tokens that is consecutive in the sequence and in raster order, if it is a grid."""
    start, stop = max(runs(torch.cat([positions, indices[:, None]], 1)), key=lambda run: run[1] - run[0])
    grid = raster(positions[start:stop])
    if grid is None:
        return VideoTokens(None, why=refusals.not_one_grid("its positions"))
    first = int(indices[start])
    return VideoTokens(grid, first, None if stop - start == length else length)


def runs(places: Tensor) -> list[tuple[int, int]]:
    """(start, stop) of the runs of (N, K) in which the last column counts up by one and the other columns, if
    any, rise in lexicographic order."""
    steps = places[1:].double() - places[:-1].double()
    goes_on = steps[:, -1] == 1
    rises = torch.zeros_like(goes_on) if steps.shape[1] > 1 else goes_on
    for step in steps[:, :-1].flip(1).unbind(1):
        rises = torch.where(step == 0, rises, step > 0)
    ends = [0, *((~(goes_on & rises)).nonzero().flatten() + 1).tolist(), len(places)]
    return list(itertools.pairwise(ends))


def raster(table: Tensor) -> GridSizes | None:
    """(frames, rows, cols) if every column of a table (N, K) varies along one of three axes alone, and
    neighbours on an axis always differ; else None. A single row or column is no video."""
    tokens = len(table)
    differs = table != table[:1]
    firsts = differs.int().argmax(0)[differs.any(0)].unique().tolist()  # where each column first changes
    for cols in firsts:
        for area in (*firsts, tokens):
            fits = 1 < cols < area and area % cols == 0 and tokens % area == 0
            if fits and _one_axis_each(table.reshape(tokens // area, area // cols, cols, -1)):
                return tokens // area, area // cols, cols
    return None


def _one_axis_each(box: Tensor) -> bool:
    """Whether every column of (frames, rows, cols, K) varies along one axis, and neighbours differ."""
    varies = []
    for axis in range(3):
        steps = box.narrow(axis, 1, box.shape[axis] - 1) != box.narrow(axis, 0, box.shape[axis] - 1)
        steps = steps.movedim(axis, 0)
        if not steps.flatten(1).any(1).all():
            return False
        varies.append(steps.flatten(0, 2).any(0) if len(steps) else steps.new_zeros(box.shape[-1]))
    return bool((torch.stack(varies).sum(0) <= 1).all())
