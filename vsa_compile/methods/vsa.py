"""VSA, video sparse attention (arXiv 2505.13389, section 2.2; Triton and training details 2.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..grid import kept_tiles
from .site import Site


def vsa(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, site: Site) -> Tensor:
    """fine + gate * coarse: (B, H, N, D) -> (B, H, N, D).

    Tiles are scored by the scaled dot product of their mean query and mean key; every query tile
    keeps the best `kept_tiles` of them (ties: lowest id) and attends exactly to their tokens and to
    all non-video keys. Sparsity 0 is dense SDPA, the papers' starting point for annealing. Without
    a gate no coarse output is computed.
    """
    if site.sparsity == 0 and gate is None:
        return _dense(q, k, v, site)
    groups = q.shape[1] // k.shape[1]
    # A selection has no gradient: scores are trained through the coarse output alone.
    seen_q, seen_k = (q, k) if gate is not None else (q.detach(), k.detach())
    pooled_q = site.tile_means(site.video_queries(seen_q))
    pooled_k = _per_query_head(site.tile_means(site.video_keys(seen_k)), groups)
    scores = pooled_q @ pooled_k.transpose(-1, -2) * site.scale
    if site.sparsity:
        kept = kept_tiles(site.tiles.tiles, site.sparsity)
        tiles, counts = torch.ops.vsa.select(scores.detach(), kept)
        fine, _ = torch.ops.vsa.attend(
            q, k, v, tiles, counts, site.tiles.grid, site.tiles.tile,
            site.q_start, site.kv_start, site.key_padding, site.scale,
        )  # fmt: skip
    else:
        fine = _dense(q, k, v, site).transpose(1, 2)
    if gate is not None:
        pooled_v = _per_query_head(site.tile_means(site.video_keys(v)), groups)
        coarse = site.to_tokens((scores.softmax(-1) @ pooled_v).to(q.dtype))
        fine = _add_gated(fine, gate.transpose(1, 2), coarse, site)
    return fine.transpose(1, 2)


def _per_query_head(x: Tensor, groups: int) -> Tensor:
    """(B, Hkv, M, D) -> (B, H, M, D) for grouped-query attention."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _dense(q: Tensor, k: Tensor, v: Tensor, site: Site) -> Tensor:
    mask = site.key_padding
    if mask is not None:  # it speaks of the non-video keys alone
        video, end = site.tiles.grid.tokens, site.kv_start + site.tiles.grid.tokens
        every = mask.new_ones((mask.shape[0], video))
        mask = torch.cat([mask[:, : site.kv_start], every, mask[:, end:]], dim=1)[:, None, None, :]
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=site.scale, enable_gqa=grouped)


def _add_gated(fine: Tensor, gate: Tensor, coarse: Tensor, site: Site) -> Tensor:
    """All (B, N, H, D), so that Inductor can fuse this into the kernel's epilogue."""
    video, start = site.tiles.grid.tokens, site.q_start
    tail = fine.shape[1] - video - start
    if isinstance(start, int) and isinstance(tail, int) and start == tail == 0:
        return fine + gate * coarse
    # Padding the coarse rows with zeros beats slicing fine: no copy of the text rows.
    return fine + gate * F.pad(coarse, (0, 0, 0, 0, start, tail))
