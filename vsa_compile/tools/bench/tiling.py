"""Tokens in tile order, as FlexAttention needs them.

Notation: B batch, H heads, D head width, E tile tokens, M tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...grid import TileGrid


@dataclass(frozen=True)
class Tiling:
    """A video cut into M tiles of E slots; border tiles have empty slots, and an extra tile M is empty."""

    slot: Tensor  # (video,) int64: tile * E + slot in the tile, for each raster token
    real: Tensor  # (M + 1, E) bool: whether a slot holds a token

    @classmethod
    def of(cls, boxes: TileGrid, device: torch.device) -> Tiling:
        index = torch.zeros((), dtype=torch.int64, device=device)
        place = torch.zeros((), dtype=torch.int64, device=device)
        for size, extent, tiles in zip(boxes.grid, boxes.tile, boxes.shape, strict=True):
            along = torch.arange(size, device=device)
            index = index[..., None] * tiles + along // extent
            place = place[..., None] * extent + along % extent
        slot = (index * boxes.tile_tokens + place).flatten()
        real = torch.zeros((boxes.tiles + 1) * boxes.tile_tokens, dtype=torch.bool, device=device)
        real[slot] = True
        return cls(slot, real.view(boxes.tiles + 1, boxes.tile_tokens))

    def to_tiles(self, video: Tensor) -> Tensor:
        """(B, H, video, D) -> (B, H, M + 1, E, D), zero in the empty slots."""
        batch, heads, _, width = video.shape
        boxes = video.new_zeros(batch, heads, self.real.numel(), width)
        return boxes.index_copy_(2, self.slot, video).unflatten(2, self.real.shape)

    def to_tokens(self, boxes: Tensor) -> Tensor:
        """(B, H, M or M + 1, E, ...) -> (B, H, video, ...)."""
        return boxes.flatten(2, 3).index_select(2, self.slot)
