"""Reading a token axis: a sequence of segments, each a video with its grid, or something else."""

from __future__ import annotations

from dataclasses import dataclass

from ..grid import Grid
from .algebra import Axis, Size, same, segments, wholes


@dataclass(frozen=True)
class Segment:
    """One run of a token sequence. `grid` is set where the run is raster video tokens."""

    axis: Axis
    size: Size
    grid: Grid | None
    factors: int

    @property
    def kind(self) -> str:
        return "video" if self.grid else "other"

    def __str__(self) -> str:
        return f"video {self.grid}" if self.grid else f"other {self.size}"


def read_segments(axis: Axis) -> list[Segment]:
    """The segments of a token axis, in sequence order."""
    return [_read(segment) for segment in segments(axis)]


def _read(axis: Axis) -> Segment:
    atoms = wholes(axis)
    grid = Grid(*(atom.shown for atom in atoms)) if is_raster(atoms) else None
    return Segment(axis, axis.size, grid, len(atoms))


def is_raster(atoms: list[Axis]) -> bool:
    """Whether three atoms are three axes of one value, in their order there."""
    if len(atoms) != 3:
        return False
    positions: dict[object, list[int]] = {}
    for atom in atoms:
        for origin, position in atom.origins:
            positions.setdefault(origin, []).append(position)
    return any(len(p) == 3 and p[0] < p[1] < p[2] for p in positions.values())


def same_tokens(a: Axis, b: Axis) -> bool:
    """Whether two axes are known to be the same tokens in the same order."""
    return same(a, b)
