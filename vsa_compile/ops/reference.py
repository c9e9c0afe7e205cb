"""The specification: what selection, sparse attention and the methods compute, in plain PyTorch.

Written to be read, and to be correct in fp64; needs O(N^2) memory, and nothing here is fast. Never imports a
kernel, and no kernel imports it: one checks the other.

Notation: B batch, H heads, N tokens, D head width, M tiles, kept = tiles that a query tile keeps.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from ..grid import Grid, Tile, TileGrid, ceil_div, kept_queries, kept_tiles


def tile_of_token(grid: Grid, tile: Tile, device: torch.device | None = None) -> Tensor:
    """(N,) int64: the row-major id of the tile of each raster token."""
    tiles = TileGrid(grid, tile)
    ids = torch.zeros(tuple(grid), dtype=torch.int64, device=device)
    for axis in range(3):
        coordinate = torch.arange(grid[axis], device=device) // tile[axis]
        shape = [1, 1, 1]
        shape[axis] = grid[axis]
        ids = ids * tiles.shape[axis] + coordinate.reshape(shape)
    return ids.flatten()


def pool(x: Tensor, grid: Grid, tile: Tile) -> Tensor:
    """(B, H, N, D) -> (B, H, M, D): mean over each tile's tokens, in fp32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    membership = torch.nn.functional.one_hot(
        tile_of_token(grid, tile, x.device), TileGrid(grid, tile).tiles
    ).to(wide)
    return torch.einsum("nm,bhnd->bhmd", membership / membership.sum(0), x.to(wide))


def select(
    scores: Tensor, at_most: int, threshold: Tensor | None = None, count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(..., M) scores -> tiles (..., at_most) int32 ascending and counts (...) int32.

    The highest scores of every row: `count` of them (a 0-dim integer tensor; default at_most), but none
    below `threshold` (...); at least one, at most `at_most`. Ties go to the lowest tile id; NaN counts as
    highest. Entries past a row's count have no meaning.
    """
    rows = scores.flatten(0, -2)
    tiles = torch.zeros(len(rows), at_most, dtype=torch.int32, device=scores.device)
    counts = torch.zeros(len(rows), dtype=torch.int32, device=scores.device)
    wanted = at_most if count is None else min(int(count), at_most)
    for index, row in enumerate(rows):
        best = row.argsort(descending=True, stable=True)[: max(1, wanted)]
        if threshold is not None:
            below = row[best] < threshold.flatten()[index]
            best = best[: max(1, len(best) - int(below.sum()))]
        tiles[index, : len(best)] = best.sort().values
        counts[index] = len(best)
    return tiles.view(*scores.shape[:-1], at_most), counts.view(scores.shape[:-1])


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
    q_grid: Grid | None = None,
    q_tile: Tile | None = None,
) -> Tensor:
    """(B, H, Nq, Nkv) bool: which keys each query sees.

    Video queries see the tokens of the first `counts` tiles that their tile lists, and every non-video key;
    other queries see every key. `key_padding` (B or 1, Nkv) is True where a non-video key takes part. With
    `q_grid` and `q_tile` the video queries are a raster of their own.
    """
    batch, heads, q_tokens, _ = q.shape
    kv_tokens = k.shape[2]
    q_grid, q_tile = q_grid or grid, q_tile or tile
    video = slice(q_start, q_start + q_grid.tokens)
    video_keys = slice(kv_start, kv_start + grid.tokens)
    q_tile_ids = tile_of_token(q_grid, q_tile, q.device)
    tile_ids = tile_of_token(grid, tile, q.device)

    listed = torch.arange(tiles.shape[-1], device=q.device) < counts[..., None]
    total = TileGrid(grid, tile).tiles
    kept = torch.zeros(*counts.shape, total, dtype=torch.int32, device=q.device)
    kept.scatter_add_(-1, tiles.long().clamp(0, total - 1), listed.to(torch.int32))

    allowed = torch.ones(batch, heads, q_tokens, kv_tokens, dtype=torch.bool, device=q.device)
    allowed[:, :, video, video_keys] = (kept > 0)[:, :, q_tile_ids][..., tile_ids]
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
    q_grid: Grid | None = None,
    q_tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Exact softmax attention over the listed tiles; see `torch.ops.vsa_compile.attend` for the shapes.

    Returns out (B, Nq, H, D) in q's dtype and lse (B, H, Nq), natural logarithm, in fp32 or wider.
    A query that sees no key gives 0 and lse = -inf.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    groups = q.shape[1] // k.shape[1]
    k, v = (x.to(wide).repeat_interleave(groups, dim=1) for x in (k, v))
    packed = q_grid, q_tile
    allowed = allowed_keys(q, k, tiles, counts, grid, tile, q_start, kv_start, key_padding, *packed)
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


# --- BSA (arXiv 2509.01085) and sliding tiles (arXiv 2502.04507) ----------------------------------------


def quantile_threshold(scores: Tensor, kept: int) -> Tensor:
    """(..., M) -> (...): mean + std * PHI^-1(1 - kept / M), which `kept` of M Gaussian scores exceed.

    Lowered by four roundings of the largest score: equal scores reach it, however their mean is rounded.
    """
    share = torch.tensor(1 - kept / scores.shape[-1], dtype=torch.float64)
    quantile = float(torch.special.ndtri(share).clamp(min=-scores.shape[-1]))
    spread = (scores - scores.mean(-1, keepdim=True)).square().mean(-1).sqrt()
    rounding = 4 * torch.finfo(scores.dtype).eps * scores.abs().amax(-1)
    return scores.mean(-1) + quantile * spread - rounding


def mass_threshold(scores: Tensor, mass: float) -> Tensor:
    """(..., M) -> (...): the lowest score of the smallest set whose softmax mass is at least `mass`."""
    best = scores.sort(-1, descending=True).values
    before = torch.cat([torch.zeros_like(best[..., :1]), best.softmax(-1).cumsum(-1)[..., :-1]], dim=-1)
    return best.where(before < mass, torch.inf).amin(-1)


def stand_ins(q: Tensor, grid: Grid, window: Tile, kept: int) -> Tensor:
    """(B, H, N, D) -> (B, H, N) int64: for each query, the query whose output it takes; itself if it is kept.

    In every window the centre is kept, and the `kept` - 1 queries least similar to it (cosine; ties to the
    lower token); the others take the centre's output. A border window keeps as many, if it has them. The
    centre of n tokens along an axis is number n // 2.
    """
    windows = tile_of_token(grid, window, q.device)
    result = torch.zeros(q.shape[:3], dtype=torch.int64, device=q.device)
    for w in range(TileGrid(grid, window).tiles):
        tokens = (windows == w).nonzero().flatten()
        places = torch.stack(torch.unravel_index(tokens, tuple(grid)))
        middle = torch.stack([axis.unique()[len(axis.unique()) // 2] for axis in places])
        centre = int((places == middle[:, None]).all(0).nonzero())
        inside = q[:, :, tokens].to(torch.promote_types(q.dtype, torch.float32))
        alike = torch.cosine_similarity(inside, inside[:, :, centre : centre + 1], dim=-1)
        alike[:, :, centre] = -torch.inf
        own = alike.argsort(stable=True, dim=-1).argsort(-1) < kept
        result[:, :, tokens] = tokens.where(own, tokens[centre])
    return result


def bsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: Grid,
    sparsity: float,
    tile: Tile = (4, 4, 4),
    window: Tile = (2, 2, 2),
    least: float = 0.5,
    tiles_per_list: Tile = (1, 1, 2),
    overflow: float = 1.5,
    scale: float | None = None,
    q_start: int = 0,
    kv_start: int = 0,
    key_padding: Tensor | None = None,
) -> Tensor:
    """BSA (arXiv 2509.01085): (B, H, N, D) -> (B, H, N, D). Nothing is packed here: every query attends.

    Dropped queries are replaced by their `stand_ins`. The kept queries of a box of tiles share one list: the
    key tiles whose score with their mean reaches `quantile_threshold`.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    slots = kept_queries(window[0] * window[1] * window[2], sparsity, least)
    every = slots == window[0] * window[1] * window[2]
    video_q, video_kv = (slice(start, start + grid.tokens) for start in (q_start, kv_start))
    own = torch.arange(grid.tokens, device=q.device).expand(*q.shape[:2], -1)
    chosen = own if every else stand_ins(q[:, :, video_q].detach(), grid, window, slots)
    box = tile
    if not every:
        whole = zip(tile, tiles_per_list, window, strict=True)
        box = tuple(ceil_div(t * m, w) * w for t, m, w in whole)
    keep = Fraction(slots, window[0] * window[1] * window[2])

    boxes = tile_of_token(grid, box, q.device)  # pyright: ignore[reportArgumentType]
    member = torch.nn.functional.one_hot(boxes).to(torch.promote_types(q.dtype, torch.float32))
    member = member * (chosen == own)[..., None]
    member = member / member.sum(2, keepdim=True)
    pooled_q = member.transpose(-1, -2) @ q[:, :, video_q].to(member.dtype)
    pooled_k = pool(k[:, :, video_kv], grid, tile).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (pooled_q @ pooled_k.transpose(-1, -2) * factor).detach()
    total = scores.shape[-1]
    kept = kept_tiles(total, max(Fraction(0), 1 - (1 - Fraction(str(sparsity))) / keep))
    at_most = min(total, ceil_div(kept * Fraction(str(overflow)), 1))
    tiles, counts = select(scores, at_most, quantile_threshold(scores, kept))

    # Each dropped query is replaced by its stand-in, with the list of the stand-in.
    rows = slice(q_start, q_start + grid.tokens)
    index = torch.arange(q.shape[2], device=q.device).repeat(*q.shape[:2], 1)
    index[:, :, rows] = chosen + q_start
    q = q.gather(2, index[..., None].expand_as(q))
    out, _ = attend(
        q, k, v, tiles, counts, grid, tile, q_start, kv_start, key_padding, factor, grid, box,  # pyright: ignore
    )  # fmt: skip
    return out.transpose(1, 2)


def sliding_tiles(grid: Grid, tile: Tile, extents: tuple[int, int, int]) -> Tensor:
    """(M, M) bool: the key tiles in a box of `extents` tiles around each query tile, inside the grid."""
    shape = TileGrid(grid, tile).shape
    seen = torch.ones((), dtype=torch.bool)
    for tiles, extent in zip(shape, extents, strict=True):
        at = torch.arange(tiles)
        first = (at - extent // 2).clamp(0, max(0, tiles - extent))
        near = (at >= first[:, None]) & (at < first[:, None] + extent)
        seen = torch.kron(seen.to(torch.int8), near.to(torch.int8)).bool()
    return seen
