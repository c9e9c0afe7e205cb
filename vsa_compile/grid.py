"""Tile arithmetic of a video token grid, on ints, torch.SymInt or sympy alike. No tensors here."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

Size: TypeAlias = Any  # an int, a torch.SymInt or a sympy expression; graphs have symbolic sizes
Tile = tuple[int, int, int]  # tokens of a tile: frames, rows, cols
GridSizes = tuple[int, int, int]  # (frames, rows, cols) as a plain tuple, which Dynamo can compare in a guard


def ceil_div(numerator: Size, denominator: Size) -> Size:
    """Division rounded up, in integer arithmetic, which is exact for symbolic integers too."""
    return -(-numerator // denominator)


class Grid(NamedTuple):
    """(frames, rows, cols) of a run of video tokens in raster order, cols fastest."""

    frames: Size
    rows: Size
    cols: Size

    @property
    def tokens(self) -> Size:
        return self.frames * self.rows * self.cols

    def __str__(self) -> str:
        return f"{self.frames}x{self.rows}x{self.cols}"


class Hint(NamedTuple):
    """Where a video lies that the graph does not show: tokens start.. of a sequence of `length` tokens, in
    raster order; if `length` is None, any run of as many tokens. Dynamo can compare it in a guard."""

    grid: GridSizes
    start: int = 0
    length: int | None = None

    @property
    def tokens(self) -> int:
        """Of the video."""
        return Grid(*self.grid).tokens

    @property
    def sequence(self) -> int:
        """Tokens of the sequence that holds the video."""
        return self.tokens if self.length is None else self.length

    def __repr__(self) -> str:
        at = "" if self.length is None else f" from token {self.start} of {self.length} on"
        return f"{self.grid}{at}"


@dataclass(frozen=True)
class TileGrid:
    """A grid cut into boxes of `tile` tokens, in row-major order; border tiles are smaller."""

    grid: Grid
    tile: Tile

    @property
    def shape(self) -> tuple[Size, Size, Size]:
        """Number of tiles along frames, rows and cols."""
        return tuple(ceil_div(n, t) for n, t in zip(self.grid, self.tile, strict=True))  # pyright: ignore[reportReturnType]

    @property
    def tiles(self) -> Size:
        """M, the number of tiles, partial ones included."""
        frames, rows, cols = self.shape
        return frames * rows * cols

    @property
    def tile_tokens(self) -> int:
        """E, the number of tokens in a full tile."""
        frames, rows, cols = self.tile
        return frames * rows * cols

    def real_tokens(self, index: int) -> int:
        """The number of tokens in tile `index`, from 1 to E."""
        _, rows, cols = self.shape
        coordinates = (index // (rows * cols), index // cols % rows, index % cols)
        count = 1
        for n, t, c in zip(self.grid, self.tile, coordinates, strict=True):
            count *= min(t, n - c * t)
        return count


def kept_tiles(tiles: Size, sparsity: float | Fraction) -> Size:
    """How many of `tiles` key tiles each query tile keeps: clamp(ceil((1 - sparsity) * tiles), 1, tiles).

    `sparsity` is read as the fraction that its decimal text spells (0.7 as 7/10), so that the result is exact
    and holds for symbolic `tiles` too.
    """
    share = 1 - Fraction(str(sparsity))
    if share <= 0:
        return 1
    return ceil_div(share.numerator * tiles, share.denominator)


def kept_queries(window_tokens: int, sparsity: float | Fraction, least: float) -> int:
    """How many queries of a full window a pruner keeps: ceil(max(least, 1 - sparsity) * window_tokens).

    At sparsity 0 it keeps all; sparsity beyond `1 - least` is left to the selection of keys.
    """
    share = max(Fraction(str(least)), 1 - Fraction(str(sparsity)))
    return max(1, ceil_div(share.numerator * window_tokens, share.denominator))
