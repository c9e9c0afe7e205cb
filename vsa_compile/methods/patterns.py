"""Static patterns: selections that do not depend on scores.

Notation: B batch, H heads, Mq query tiles, M key tiles, Kcap width of the lists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ..grid import Size, ceil_div
from .prune import Queries
from .select import Selector, as_mask


@dataclass(frozen=True)
class SlidingTiles(Selector):
    """The key tiles in a box around every query tile; at the border the box is shifted into the grid.

    Sliding tile attention (arXiv 2502.04507, section 3).
    extents: tiles of the box along (frames, rows, cols). None: the same share of every axis, such that the
        box holds at least 1 - sparsity of the tiles.
    """

    extents: tuple[int, int, int] | None = None

    def _extents(self, queries: Queries) -> tuple[Size, ...]:
        shape = queries.site.boxes.shape
        if self.extents is not None:
            return tuple(torch.sym_min(extent, n) for extent, n in zip(self.extents, shape, strict=True))
        # In thousandths, rounded up: slightly less sparse, but exact integers for symbolic sizes.
        side = float(1 - Fraction(str(queries.site.sparsity))) ** (1 / 3)
        thousandths = math.ceil(round(1000 * side, 6))
        return tuple(torch.sym_max(1, ceil_div(n * thousandths, 1000)) for n in shape)

    def width(self, queries: Queries) -> Size:
        frames, rows, cols = self._extents(queries)
        return frames * rows * cols

    def mask(self, scores: Tensor | None, queries: Queries) -> Tensor:
        tiles, counts = self.lists(scores, queries)
        return as_mask(tiles, counts, queries.site.boxes.tiles)

    def lists(self, scores: Tensor | None, queries: Queries) -> tuple[Tensor, Tensor]:
        """Computed without ranking: tiles (1, 1, Mq, Kcap), ascending because raster order is."""
        device = queries.q.device
        ids = torch.zeros((1, 1, 1, 1, 1, 1), dtype=torch.int64, device=device)
        keys, boxes = queries.site.boxes, queries.boxes
        axes = zip(keys.shape, boxes.shape, keys.tile, boxes.tile, self._extents(queries), strict=True)
        for axis, (n, rows, tile, box, extent) in enumerate(axes):
            # The key tile that contains the middle of the query tile.
            at = (torch.arange(rows, device=device) * box + box // 2) // tile
            first = (at - extent // 2).clamp(min=0)
            first = first.minimum(first * 0 + n - extent)
            shape = [1] * 6
            shape[axis], shape[3 + axis] = rows, extent
            ids = ids * n + (first[:, None] + torch.arange(extent, device=device)).reshape(shape)
        tiles = ids.flatten(3).flatten(0, 2)[None, None].to(torch.int32)
        return tiles, torch.full_like(tiles[..., 0], tiles.shape[-1])


@dataclass(frozen=True)
class OwnTiles(Selector):
    """The key tiles that overlap a query tile. `TopK() | OwnTiles()` always keeps them."""

    def mask(self, scores: Tensor | None, queries: Queries) -> Tensor:
        seen = torch.ones((1,) * 6, dtype=torch.bool, device=queries.q.device)
        keys, boxes = queries.site.boxes, queries.boxes
        axes = zip(keys.shape, boxes.shape, keys.tile, boxes.tile, strict=True)
        for axis, (n, rows, tile, box) in enumerate(axes):
            start = torch.arange(rows, device=seen.device)[:, None] * box
            key = torch.arange(n, device=seen.device) * tile
            shape = [1] * 6
            shape[axis], shape[3 + axis] = rows, n
            seen = seen & ((key < start + box) & (key + tile > start)).reshape(shape)
        return seen.flatten(3).flatten(0, 2)

    def width(self, queries: Queries) -> Size:
        keys, boxes = queries.site.boxes, queries.boxes
        result = 1
        for n, tile, box in zip(keys.shape, keys.tile, boxes.tile, strict=True):
            result = result * torch.sym_min(n, ceil_div(box, tile) + (0 if box % tile == 0 else 1))
        return result


@dataclass(frozen=True)
class FirstFrames(Selector):
    """The key tiles of the first `tiles` tiles along the frames, where image-to-video models look."""

    tiles: int = 1

    def mask(self, scores: Tensor | None, queries: Queries) -> Tensor:
        keys = queries.site.boxes
        return torch.arange(keys.tiles, device=queries.q.device)[None] < self.width(queries)

    def width(self, queries: Queries) -> Size:
        frames, rows, cols = queries.site.boxes.shape
        return torch.sym_min(self.tiles, frames) * rows * cols
