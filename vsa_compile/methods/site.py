"""What a method knows of the call it serves, and the tile arithmetic every method shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..grid import TileGrid


@dataclass(frozen=True)
class Site:
    """One attention call: where the video lies in it, and how sparse it shall be."""

    tiles: TileGrid
    q_start: Any
    kv_start: Any
    key_padding: Tensor | None
    scale: float
    sparsity: float

    def video_queries(self, x: Tensor) -> Tensor:
        """(B, H, Nq, D) -> (B, H, video, D)."""
        return x.narrow(2, self.q_start, self.tiles.grid.tokens)

    def video_keys(self, x: Tensor) -> Tensor:
        """(B, Hkv, Nkv, D) -> (B, Hkv, video, D)."""
        return x.narrow(2, self.kv_start, self.tiles.grid.tokens)

    def tile_means(self, x: Tensor) -> Tensor:
        """(B, H, video, D) -> (B, H, M, D): mean over each tile's real tokens, in fp32 or wider.

        Border tiles are zero-padded for the sum only, which Inductor folds into the reduction.
        """
        grid, tile, shape = self.tiles.grid, self.tiles.tile, self.tiles.shape
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if not all(isinstance(stride, int) for stride in wide.stride()):
            wide = wide * 1  # Inductor (2.13) cannot split a dimension of a view whose strides are data
        wide = wide.unflatten(2, tuple(grid))
        padding = [n * t - g for n, t, g in zip(shape, tile, grid, strict=True)]
        wide = F.pad(wide, (0, 0, 0, padding[2], 0, padding[1], 0, padding[0]))
        (n_f, n_r, n_c), (t_f, t_r, t_c) = shape, tile
        boxes = wide.reshape(*wide.shape[:2], n_f, t_f, n_r, t_r, n_c, t_c, wide.shape[-1])
        sums = boxes.sum((3, 5, 7)).flatten(2, 4)
        return sums / self.real_tokens(x.device).to(sums.dtype)[:, None]

    def real_tokens(self, device: torch.device) -> Tensor:
        """(M,) int64: tokens that each tile really holds."""
        counts = torch.ones((), dtype=torch.int64, device=device)
        for n, t, g in zip(self.tiles.shape, self.tiles.tile, self.tiles.grid, strict=True):
            along = (g - torch.arange(n, device=device) * t).clamp(max=t)
            counts = counts.unsqueeze(-1) * along
        return counts.flatten()

    def to_tokens(self, x: Tensor) -> Tensor:
        """(B, H, M, D) -> (B, video, H, D): every token gets its tile's row."""
        grid, tile, shape = self.tiles.grid, self.tiles.tile, self.tiles.shape
        (n_f, n_r, n_c), (t_f, t_r, t_c) = shape, tile
        batch, heads, _, width = x.shape
        boxes = x.transpose(1, 2).reshape(batch, n_f, 1, n_r, 1, n_c, 1, heads, width)
        boxes = boxes.expand(-1, -1, t_f, -1, t_r, -1, t_c, -1, -1)
        padded = boxes.reshape(batch, n_f * t_f, n_r * t_r, n_c * t_c, heads, width)
        return padded[:, : grid.frames, : grid.rows, : grid.cols].flatten(1, 3)
