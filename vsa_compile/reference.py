"""The specification: what selection, sparse attention and VSA compute, in plain PyTorch.

Written to be read and to be right in fp64, at the cost of O(N^2) memory; nothing here is fast.
May be imported by methods and ops; never imports a kernel, and no kernel imports it.

Notation: B batch, H heads, N tokens, D head width, M tiles, kept = tiles that a query tile keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import Grid, Tile, TileGrid, kept_tiles


def tile_of_token(grid: Grid, tile: Tile, device: torch.device | None = None) -> Tensor:
    """(N,) int64: the row-major id of the tile that holds each raster token."""
    tiles = TileGrid(grid, tile)
    ids = torch.zeros(tuple(grid), dtype=torch.int64, device=device)
    for axis in range(3):
        coordinate = torch.arange(grid[axis], device=device) // tile[axis]
        shape = [1, 1, 1]
        shape[axis] = grid[axis]
        ids = ids * tiles.shape[axis] + coordinate.reshape(shape)
    return ids.flatten()


def pool(x: Tensor, grid: Grid, tile: Tile) -> Tensor:
    """(B, H, N, D) -> (B, H, M, D): mean over each tile's real tokens, in fp32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    membership = torch.nn.functional.one_hot(
        tile_of_token(grid, tile, x.device), TileGrid(grid, tile).tiles
    ).to(wide)
    return torch.einsum("nm,bhnd->bhmd", membership / membership.sum(0), x.to(wide))


def select(scores: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """(B, H, M, M) scores -> tiles (B, H, M, kept) int32 ascending and counts (B, H, M) int32.

    The `kept` highest scores of every row; ties go to the lowest tile id, NaN counts as highest.
    """
    best = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :kept]
    tiles = best.sort(dim=-1).values.to(torch.int32)
    return tiles, torch.full(scores.shape[:-1], kept, dtype=torch.int32, device=scores.device)


def allowed_keys(
    q: Tensor,
    k: Tensor,
    tiles: Tensor,
    counts: Tensor,
    grid: Grid,
    tile: Tile,
    q_start: int,
    kv_start: int,
    key_padding: Tensor | None,
) -> Tensor:
    """(B, H, Nq, Nkv) bool: which keys each query sees.

    Video queries see the tokens of their tile's first `counts` listed tiles and every non-video
    key; other queries see every key. `key_padding` (B or 1, Nkv) is True where a non-video key
    takes part.
    """
    batch, heads, q_tokens, _ = q.shape
    kv_tokens = k.shape[2]
    video = slice(q_start, q_start + grid.tokens)
    video_keys = slice(kv_start, kv_start + grid.tokens)
    tile_ids = tile_of_token(grid, tile, q.device)

    listed = torch.arange(tiles.shape[-1], device=q.device) < counts[..., None]
    total = TileGrid(grid, tile).tiles
    kept = torch.zeros(*counts.shape, total, dtype=torch.int32, device=q.device)
    kept.scatter_add_(-1, tiles.long().clamp(0, total - 1), listed.to(torch.int32))

    allowed = torch.ones(batch, heads, q_tokens, kv_tokens, dtype=torch.bool, device=q.device)
    allowed[:, :, video, video_keys] = (kept > 0)[:, :, tile_ids][..., tile_ids]
    if key_padding is not None:
        padding = key_padding.clone()
        padding[:, video_keys] = True
        allowed &= padding[:, None, None, :]
    return allowed


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiles: Tensor,
    counts: Tensor,
    grid: Grid,
    tile: Tile,
    q_start: int,
    kv_start: int,
    key_padding: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Exact softmax attention over the listed tiles; see `torch.ops.vsa.attend` for the shapes.

    Returns out (B, Nq, H, D) in q's dtype and lse (B, H, Nq), natural logarithm, in fp32 or wider.
    A query that sees no key gives 0 and lse = -inf.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    groups = q.shape[1] // k.shape[1]
    k, v = (x.to(wide).repeat_interleave(groups, dim=1) for x in (k, v))
    allowed = allowed_keys(q, k, tiles, counts, grid, tile, q_start, kv_start, key_padding)
    logits = (q.to(wide) @ k.transpose(-1, -2) * scale).masked_fill(~allowed, -torch.inf)
    lse = logits.logsumexp(-1)
    weights = torch.exp(logits - lse.nan_to_num(neginf=0.0)[..., None])
    return (weights @ v).to(q.dtype).transpose(1, 2), lse


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: Grid,
    sparsity: float,
    tile: Tile = (4, 4, 4),
    gate: Tensor | None = None,
    scale: float | None = None,
    q_start: int = 0,
    kv_start: int = 0,
    key_padding: Tensor | None = None,
) -> Tensor:
    """VSA (arXiv 2505.13389, section 2.2): (B, H, N, D) -> (B, H, N, D).

    fine + gate * coarse, where fine is `attend` on the tiles that the pooled scores select and
    coarse is softmax attention between tile means, repeated to the tile's tokens.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    video_q = slice(q_start, q_start + grid.tokens)
    video_kv = slice(kv_start, kv_start + grid.tokens)
    groups = q.shape[1] // k.shape[1]

    pooled_q = pool(q[:, :, video_q], grid, tile)
    pooled_k = pool(k[:, :, video_kv], grid, tile).repeat_interleave(groups, dim=1)
    scores = pooled_q @ pooled_k.transpose(-1, -2) * factor
    kept = kept_tiles(TileGrid(grid, tile).tiles, sparsity)
    tiles, counts = select(scores.detach(), kept)
    out, _ = attend(q, k, v, tiles, counts, grid, tile, q_start, kv_start, key_padding, factor)
    out = out.transpose(1, 2)
    if gate is None:
        return out

    pooled_v = pool(v[:, :, video_kv], grid, tile).repeat_interleave(groups, dim=1)
    coarse = (scores.softmax(-1) @ pooled_v)[:, :, tile_of_token(grid, tile, q.device)].to(q.dtype)
    gated = out.clone()
    gated[:, :, video_q] += gate[:, :, video_q] * coarse
    return gated
