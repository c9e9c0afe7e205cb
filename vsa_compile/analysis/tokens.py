"""Reads a token axis as a sequence of segments, each a video with its grid or something else."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import combinations

from torch.fx import Node

from ..grid import Grid
from .algebra import (
    REORDERED,
    Axis,
    Origin,
    Size,
    factors,
    form_of,
    origins,
    pieces,
    same,
    segments,
    wholes,
)
from .graph_facts import example_of, sizes_of
from .pieces import order
from .sizes import equal
from .values import Volume


@dataclass(frozen=True)
class Segment:
    """One run of a token sequence. `grid` is set if the run is raster video tokens.

    `factors`: the number of axes that it is made of. `in_windows`: these are pieces of a video's axes, whose
    other pieces lie elsewhere. `order`: its rigidity, REORDERED also if runs of it were swapped. `crossed`:
    these are axes of one value in another order, as (rows, frames, cols).
    """

    axis: Axis
    size: Size
    grid: Grid | None
    factors: int
    in_windows: bool = False
    order: str = ""
    crossed: bool = False

    @property
    def shows_video(self) -> bool:
        """Whether the graph shows a video in it, in whatever order."""
        return bool(self.grid) or self.in_windows or self.crossed or self.order == REORDERED

    @property
    def kind(self) -> str:
        return "video" if self.grid else "other"

    def __str__(self) -> str:
        return f"video {self.grid}" if self.grid else f"other {self.size}"


def read_segments(axis: Axis, batch: Sequence[Axis] = ()) -> list[Segment]:
    """The segments of a token axis, in order. `batch`: the axes of the dimensions in front of it, of which
    the last is where heads are, unless windows are there."""
    apart = {factor.whole for one in batch for factor in factors(one) if factor.whole is not None}
    elsewhere = {origin for one in batch[:-1] for factor in factors(one) for origin in origins(factor)}
    return [_read(segment, apart, elsewhere) for segment in segments(axis)]


def _read(axis: Axis, apart: set[Axis], elsewhere: set[Origin]) -> Segment:
    atoms = wholes(axis)
    raster = is_raster(atoms, elsewhere)
    in_windows = raster and any(_is_window(atom, apart) for atom in atoms)
    placed = order(axis)  # rows may have been swapped inside an axis that has origins
    shown = raster and not in_windows and placed != REORDERED
    grid = Grid(*(atom.shown for atom in atoms)) if shown else None
    return Segment(axis, axis.size, grid, len(atoms), in_windows, placed, out_of_order(atoms))


def is_raster(atoms: list[Axis], elsewhere: Set[Origin] = frozenset()) -> bool:
    """Whether three atoms are three axes of one value, in that value's order. `elsewhere`: axes of values
    that are in the batch; with those, atoms may be the channels, rows and cols of each frame."""
    if len(atoms) != 3:
        return False
    known: dict[object, list[int]] = {}
    for atom in atoms:
        for origin, position in origins(atom):
            known.setdefault(origin, []).append(position)
    return not _is_torn(atoms) and any(
        len(p) == 3 and p[0] < p[1] < p[2] and not _of_each_frame(value, p, elsewhere)
        for value, p in known.items()
    )


def _is_torn(atoms: list[Axis]) -> bool:
    """Whether one or two axes of a volume stand where others of it would be, as (rows, cols, another)."""
    places: dict[object, list[bool]] = {}
    for place, atom in enumerate(atoms if len(atoms) == 3 else ()):
        for value, position in origins(atom):
            # Of five dimensions the video is (1, 2, 3), (2, 3, 4) or (1, 3, 4).
            usual = {position} if isinstance(value, Volume) else {position - 2, position - 1}
            if isinstance(value, Volume) or _is_5d(value):
                places.setdefault(value, []).append(place in usual)
    return any(len(right) < 3 and not all(right) for right in places.values())


def _is_5d(value: object) -> bool:
    return isinstance(value, Node) and len(sizes_of(example_of(value)) or ()) == 5


def _of_each_frame(value: object, positions: list[int], elsewhere: Set[Origin]) -> bool:
    """Whether an axis between these positions of a value is in the batch; or, of five dimensions, the one in
    front of them: of (batch, frames, channels, rows, cols) the last three are no video."""
    first, _, last = positions
    between = {*range(first, last)} - {*positions}
    if _is_5d(value):
        between |= {first - 1} - {0}
    return any((value, at) in elsewhere for at in between)


def out_of_order(atoms: list[Axis]) -> bool:
    """Whether axes of one value follow each other in another order than in that value, or are not where they
    are in it."""
    known = [dict(origins(atom)) for atom in atoms]
    pairs = [(a[value], b[value]) for a, b in combinations(known, 2) for value in a.keys() & b.keys()]
    return any(first > second for first, second in pairs) or _is_torn(atoms)


def _is_window(atom: Axis, apart: set[Axis]) -> bool:
    """Whether an axis is the part of a video's axis inside of a window, or the part across windows.

    A patch is cut off behind, (rows, pixels of a patch), so it is no window. A batch dimension (position 0)
    may be split, and so may tokens of which nothing was known.
    """
    if len(atom.members) > 1:
        return any(_is_window(member, apart) for member in atom.members)
    piece, whole = atom, atom.whole
    while whole is not None:
        before = [one for one in pieces(whole)[: pieces(whole).index(piece)] if not equal(one.size, 1)]
        known = {position for _, position in form_of(whole).origins}
        if (before or whole in apart) and known - {0}:
            return True
        piece, whole = whole, whole.whole
    return piece.source is not None and _is_window(piece.source, apart)  # at another resolution


def same_tokens(a: Axis, b: Axis) -> bool:
    """Whether two axes are known to be the same tokens in the same order."""
    return same(a, b)


def within(tokens: Axis, keys: Axis) -> Size | None:
    """Where `tokens` start in a run of keys that is the same or that they were cut from; None if unknown."""
    if equal(tokens.size, 1) or same_tokens(tokens, keys):
        return None if equal(tokens.size, 1) else 0
    return tokens.cut[1] if tokens.cut is not None and same_tokens(tokens.cut[0], keys) else None


def offset(segments: Sequence[Segment], index: int) -> Size:
    """Where a segment starts in its sequence."""
    total: Size = 0
    for segment in segments[:index]:
        total = total + segment.size
    return total
