"""What a method knows of the call it serves, and the tile arithmetic that methods share.

Notation: B batch, H heads, N tokens, D head width, M tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..grid import Size, TileGrid, kept_tiles


@dataclass(frozen=True)
class Site:
    """One attention call: where its video lies, and how sparse it is to be.

    sparsity: a literal of the graph, which determines all shapes, such as the width of the lists.
    share: None, or 1 - sparsity at run time, as (numerator, denominator), (2,) int64, for a graph that serves
        several sparsities; at most 1 - `sparsity`. Shapes do not depend on it; the host does not read it.
    """

    boxes: TileGrid  # the tiles of the video keys, and of the queries unless these are packed
    q_start: Size
    kv_start: Size
    key_padding: Tensor | None
    scale: float
    sparsity: float | Fraction
    share: Tensor | None = None

    @property
    def kept(self) -> Size:
        """How many of the M key tiles a row keeps; with `share`, the most that it may keep."""
        return kept_tiles(self.boxes.tiles, self.sparsity)

    @property
    def count(self) -> Tensor | None:
        """How many tiles a row keeps at run time, 0-dim int64; None if that is always `kept`."""
        if self.share is None:
            return None
        part, whole = self.share.unbind()
        return ((part * self.boxes.tiles + whole - 1) // whole).clamp(1, self.boxes.tiles)

    def video_queries(self, x: Tensor) -> Tensor:
        """(B, H, Nq, D) -> (B, H, video, D)."""
        return x.narrow(2, self.q_start, self.boxes.grid.tokens)

    def video_keys(self, x: Tensor) -> Tensor:
        """(B, Hkv, Nkv, D) -> (B, Hkv, video, D)."""
        return x.narrow(2, self.kv_start, self.boxes.grid.tokens)

    def tile_means(self, x: Tensor) -> Tensor:
        """(B, H, video, D) -> (B, H, M, D): mean over each tile's real tokens, in fp32 or wider."""
        sums = box_sums(x, self.boxes)
        counts = self.real_tokens(x.device).to(sums.dtype)
        # This view changes nothing, but makes Inductor write the counts to memory. If they were computed
        # where they are used, the gradient of a mean would have so many operations that Inductor gave it a
        # pass of its own over all tokens.
        counts = counts.as_strided(counts.shape, counts.stride())
        return sums / counts[:, None]

    def real_tokens(self, device: torch.device) -> Tensor:
        """(M,) int64: how many tokens each tile holds."""
        counts = torch.ones((), dtype=torch.int64, device=device)
        for n, t, g in zip(self.boxes.shape, self.boxes.tile, self.boxes.grid, strict=True):
            along = (g - torch.arange(n, device=device) * t).clamp(max=t)
            counts = counts.unsqueeze(-1) * along
        return counts.flatten()

    def to_tokens(self, x: Tensor) -> Tensor:
        """(B, H, M, D) -> (B, video, H, D): every token gets its tile's row."""
        return spread(x.transpose(1, 2), self.boxes)

    def dense(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """SDPA itself: (B, H, Nq, D) -> (B, H, Nq, D)."""
        mask = self.key_padding
        if mask is not None:  # it covers the non-video keys alone
            video, end = self.boxes.grid.tokens, self.kv_start + self.boxes.grid.tokens
            every = mask.new_ones((mask.shape[0], video))
            mask = torch.cat([mask[:, : self.kv_start], every, mask[:, end:]], dim=1)[:, None, None, :]
        grouped = q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale, enable_gqa=grouped)


def box_sums(x: Tensor, boxes: TileGrid) -> Tensor:
    """(B, H, tokens of the grid, D) -> (B, H, M, D): the sum over each tile, in fp32 or wider.

    Border tiles are zero-padded for the sum; Inductor folds the padding into the reduction.
    """
    grid, tile, shape = boxes.grid, boxes.tile, boxes.shape
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    traced = torch.compiler.is_compiling() or not all(isinstance(size, int) for size in grid)
    if x.device.type == "cpu" and not traced:
        return _sums_by_axis(wide, boxes)
    if not all(isinstance(stride, int) for stride in wide.stride()):
        wide = wide * 1  # Inductor (2.13) cannot split a dimension of a view with data-dependent strides
    wide = wide.unflatten(2, tuple(grid))
    padding = [n * t - g for n, t, g in zip(shape, tile, grid, strict=True)]
    wide = F.pad(wide, (0, 0, 0, padding[2], 0, padding[1], 0, padding[0]))
    (n_f, n_r, n_c), (t_f, t_r, t_c) = shape, tile
    return (
        wide.reshape(*wide.shape[:2], n_f, t_f, n_r, t_r, n_c, t_c, wide.shape[-1])
        .sum((3, 5, 7))
        .flatten(2, 4)
    )


def _sums_by_axis(x: Tensor, boxes: TileGrid) -> Tensor:
    """`box_sums`, one axis after the other, tokens outermost. Eager ATen takes ten times as long on CPU to
    sum over three axes at once, a third of a whole call."""
    x = x.transpose(1, 2).unflatten(1, tuple(boxes.grid))
    for axis, (size, tile) in enumerate(zip(boxes.grid, boxes.tile, strict=True), start=1):
        inner = size // tile * tile
        full, border = x.split([inner, size - inner], dim=axis)
        x = full.unflatten(axis, (size // tile, tile)).sum(axis + 1)
        if size > inner:
            x = torch.cat([x, border.sum(axis, keepdim=True)], axis)
    return x.flatten(1, 3).transpose(1, 2)


def spread(x: Tensor, boxes: TileGrid) -> Tensor:
    """(B, M, H, D) -> (B, tokens of the grid, H, D): every token gets its tile's row."""
    grid, tile, shape = boxes.grid, boxes.tile, boxes.shape
    (n_f, n_r, n_c), (t_f, t_r, t_c) = shape, tile
    batch, _, heads, width = x.shape
    boxed = x.reshape(batch, n_f, 1, n_r, 1, n_c, 1, heads, width)
    boxed = boxed.expand(-1, -1, t_f, -1, t_r, -1, t_c, -1, -1)
    padded = boxed.reshape(batch, n_f * t_f, n_r * t_r, n_c * t_c, heads, width)
    return padded[:, : grid.frames, : grid.rows, : grid.cols].flatten(1, 3)


def per_query_head(x: Tensor, groups: int) -> Tensor:
    """(B, Hkv, M, D) -> (B, H, M, D) for grouped-query attention."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)
