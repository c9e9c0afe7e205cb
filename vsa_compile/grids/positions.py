"""Where the video lies in the sequence of a model's blocks, told by the arguments of the model's call.

Argument names stand for classes: who takes `video_coords` is an LTX. Most arguments tell the grid by shapes
or integers. Positions tell it by their values: reading them waits for the device, so each is read once.
May be imported by prepare alone; imports errors and torch_compat.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..convert import refusals
from ..torch_compat import version_of

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Video:
    """The video is tokens start.. of a sequence of `length`, which is all video where that is None.

    Or it could not be found: grid is None, and `why` says so to people.
    """

    grid: Grid | None
    start: int = 0
    length: int | None = None
    why: str = ""


# --- By shapes and integers -----------------------------------------------------------------------

# Where frames, rows and cols are in the shape of a five-dimensional `hidden_states`.
_AXES = {
    "CogVideoXTransformer3DModel": (1, 3, 4),
    "ConsisIDTransformer3DModel": (1, 3, 4),
    "AnyFlowTransformer3DModel": (1, 3, 4),
    "Kandinsky5Transformer3DModel": (1, 2, 3),
}
_PACKED = ("num_frames", "height", "width")  # of classes whose hidden_states are (B, N, C)


def by_shapes(model: nn.Module, given: Mapping[str, Any]) -> Video | None:
    """From what a traced call knows too: the model's configuration, shapes and integers."""
    hidden = given.get("hidden_states")
    if not isinstance(hidden, Tensor):
        return None
    packed = tuple(given.get(name) for name in _PACKED)
    if hidden.dim() == 3 and all(isinstance(size, (int, torch.SymInt)) for size in packed):
        return Video(packed)  # pyright: ignore[reportArgumentType]
    patch = _patch_size(getattr(model, "config", None))
    if hidden.dim() != 5 or patch is None:
        return None
    axes = _AXES.get(type(model).__name__, (2, 3, 4))
    frames, rows, cols = (hidden.shape[axis] for axis in axes)
    return Video((-(-frames // patch[0]), rows // patch[1], cols // patch[2]))


def _patch_size(config: Any) -> Grid | None:
    """(frames, rows, cols) of a patch as diffusers' configurations spell it."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, (tuple, list)) and len(patch) == 3:
        return tuple(patch)
    if isinstance(patch, int):
        return getattr(config, "patch_size_t", None) or 1, patch, patch
    return None


# --- By values ------------------------------------------------------------------------------------


class Reader:
    """Reads the values of positions, and remembers what it read while the same tensors come again."""

    def __init__(self) -> None:
        self._last: tuple[list[weakref.ref], list[Any], Video] | None = None

    def video(self, given: Mapping[str, Any]) -> Video | None:
        """None where no argument holds positions that are understood."""
        for rule, names in _RULES.items():
            values = [given.get(name) for name in names]
            if all(value is not None for value in values):
                return self._remembered(rule, values)
        return None

    def _remembered(self, rule: Any, values: list[Any]) -> Video:
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


def _cosmos3(shapes: Sequence, indices: Tensor, text: int, length: int) -> Video:
    """Items of vision one after the other, each a grid: the largest is the video. Text has its own blocks."""
    sizes = [math.prod(shape) for shape in shapes]
    item = sizes.index(max(sizes))
    before = sum(sizes[:item])
    runs = _runs(indices[before : before + sizes[item], None].cpu())
    if len(runs) != 1:
        return Video(None, why=refusals.scattered("vision_sequence_indexes"))
    frames, rows, cols = map(int, shapes[item])
    return Video((frames, rows, cols), int(indices[before]) - text, length - text)


def _minimax_h3(positions: Tensor, indices: Tensor) -> Video:
    """Rows of all kinds, packed by index."""
    return _largest_raster(positions[indices].cpu(), indices.cpu(), len(positions))


def _coordinates(coords: Tensor) -> Video:
    """(B, 3, N), or (B, 3, N, 2) with the end of each patch."""
    tokens = coords.shape[2]
    places = coords.movedim(2, 0).reshape(tokens, coords.shape[0], 3, -1)[..., 0].cpu()
    if (places != places[:, :1]).any():
        return Video(None, why=refusals.not_one_grid("video_coords"))
    return _largest_raster(places[:, 0], torch.arange(tokens), tokens)


def _tables(hidden: Tensor, tables: Sequence[Tensor]) -> Video:
    """Rotary tables, for all tokens of hidden (B, N, C): every channel turns along one axis."""
    tokens = hidden.shape[1]
    table = tables[0]
    axis = next((axis for axis in (table.dim() - 2, 1) if table.shape[axis] == tokens), None)
    grid = None if axis is None else raster(table.movedim(axis, 0).reshape(tokens, -1))
    return Video(grid, why=refusals.not_one_grid("video_rotary_emb"))


_RULES = {
    _cosmos3: ("vision_token_shapes", "vision_sequence_indexes", "und_len", "sequence_length"),
    _minimax_h3: ("position_ids", "video_indices"),
    _coordinates: ("video_coords",),
    _tables: ("hidden_states", "video_rotary_emb"),
}


# --- Positions ------------------------------------------------------------------------------------


def _largest_raster(positions: Tensor, indices: Tensor, length: int) -> Video:
    """The longest run of tokens that follow each other, in the sequence as on the axes, if it is a grid."""
    start, stop = max(_runs(torch.cat([positions, indices[:, None]], 1)), key=lambda run: run[1] - run[0])
    grid = raster(positions[start:stop])
    if grid is None:
        return Video(None, why=refusals.not_one_grid("its positions"))
    first = int(indices[start])
    return Video(grid, first, None if stop - start == length else length)


def _runs(places: Tensor) -> list[tuple[int, int]]:
    """(start, stop) of the runs of (N, K) in which the last column counts up by one, and the others (if there
    are any) rise in the order of a dictionary."""
    steps = places[1:].double() - places[:-1].double()
    goes_on = steps[:, -1] == 1
    rises = torch.zeros_like(goes_on) if steps.shape[1] > 1 else goes_on
    for step in steps[:, :-1].flip(1).unbind(1):
        rises = torch.where(step == 0, rises, step > 0)
    ends = [0, *((~(goes_on & rises)).nonzero().flatten() + 1).tolist(), len(places)]
    return list(itertools.pairwise(ends))


def raster(table: Tensor) -> Grid | None:
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
