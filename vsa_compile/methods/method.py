"""A method as a composition of small parts: pruner, scorer, selector, residual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError, no_coarse_output
from ..grid import Grid, Size, Tile
from .prune import Queries, WindowPruner, all_queries
from .select import Selector
from .site import Site, per_query_head


@dataclass(frozen=True)
class MeanDot:
    """Scores a (query tile, key tile) pair: the scaled dot product of mean query and mean key.

    In fp32 or wider. Costs N D reads and 2 M^2 D FLOPs per head, 1 / E^2 of dense attention.
    """

    def __call__(self, pooled_q: Tensor, k: Tensor, site: Site) -> Tensor:
        """pooled_q (B, H, Mq, D), k (B, Hkv, Nkv, D) -> (B, H, Mq, M)."""
        pooled_k = site.tile_means(site.video_keys(k))
        groups = pooled_q.shape[1] // k.shape[1]
        return pooled_q @ per_query_head(pooled_k, groups).transpose(-1, -2) * site.scale


@dataclass(frozen=True)
class GatedCoarse:
    """Adds gate * coarse: softmax attention between tile means, repeated to the tokens of each tile.

    VSA (arXiv 2505.13389, section 2.2). The scores of a selection are trained through this part alone.
    """

    def __call__(self, fine: Tensor, scores: Tensor, v: Tensor, gate: Tensor, site: Site) -> Tensor:
        """fine (B, N, H, D), scores (B, H, M, M), v (B, Hkv, Nkv, D), gate (B, H, N, D) -> (B, N, H, D)."""
        pooled_v = per_query_head(site.tile_means(site.video_keys(v)), scores.shape[1] // v.shape[1])
        coarse = site.to_tokens((scores.softmax(-1) @ pooled_v).to(fine.dtype))
        return _add_gated(fine, gate.transpose(1, 2), coarse, site)


@dataclass(frozen=True)
class Method:
    """partition -> pruner -> pool -> scorer -> selector -> attention -> residual -> restore.

        register_method("nearest", Method(selector=TopK() | OwnTiles()))

    selector: which key tiles every query tile attends to.
    scorer: the scores that the selector ranks; None for static selections.
    pruner: which queries attend; None: all.
    residual: what a gate adds; None: a gate is an error.
    The partition is the `tile` of the call's options.

    Called with q (B, H, Nq, D), k and v (B, Hkv, Nkv, D), gate like q or None, and the Site; returns
    (B, H, Nq, D). Sparsity 0 is dense SDPA, where the papers' schedules start. The selection itself has no
    gradient: q, k and v are trained through the attention, the scores through the residual alone.
    Raises ArgumentError for a gate that no residual uses.
    """

    selector: Selector
    scorer: MeanDot | None = MeanDot()
    pruner: WindowPruner | None = None
    residual: GatedCoarse | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, site: Site) -> Tensor:
        if gate is not None and self.residual is None:
            raise ArgumentError(no_coarse_output())
        if site.sparsity == 0 and gate is None:
            return site.dense(q, k, v)
        # Only the coarse output sends a gradient through the scores.
        seen_q, seen_k = (q, k) if gate is not None else (q.detach(), k.detach())
        coarse_scores = None
        if gate is not None:
            scorer = self.scorer or MeanDot()
            coarse_scores = scorer(site.tile_means(site.video_queries(seen_q)), seen_k, site)
        if site.sparsity == 0:
            fine = site.dense(q, k, v).transpose(1, 2)
        else:
            queries = all_queries(q, site) if self.pruner is None else self.pruner(q, site)
            scores = coarse_scores if self.pruner is None else None
            if scores is None and self.scorer is not None:
                scores = self.scorer(queries.means.detach(), k.detach(), queries.site)
            fine = self._attend(queries, k, v, scores)
        if gate is not None and coarse_scores is not None and self.residual is not None:
            fine = self.residual(fine, coarse_scores, v, gate, site)
        return fine.transpose(1, 2)

    def attended(self, q: Tensor, site: Site) -> tuple[Size, Size]:
        """How many video queries attend, and to how many key tiles each on average; `q` may be on meta."""
        queries = all_queries(q, site) if self.pruner is None else self.pruner(q, site)
        rows = site.boxes if queries.raster is None else queries.raster
        return rows.grid.tokens, self.selector.expected(queries)

    def _attend(self, queries: Queries, k: Tensor, v: Tensor, scores: Tensor | None) -> Tensor:
        """Exact attention of the queries to the selected tiles and all non-video keys: (B, Nq, H, D)."""
        site, q = queries.site, queries.q
        ranked = None if scores is None or self.scorer is None else scores.detach()
        tiles, counts = self.selector.lists(ranked, queries)
        lists = (*q.shape[:2], *counts.shape[2:])
        packed: tuple[Grid, Tile] | tuple[()] = () if queries.packed is None else queries.packed
        out, *_ = torch.ops.vsa_compile.attend(
            q, k, v, tiles.expand(*lists, -1), counts.expand(lists), site.boxes.grid, site.boxes.tile,
            site.q_start, site.kv_start, site.key_padding, site.scale, *packed,
        )  # fmt: skip
        return out if self.pruner is None else self.pruner.restore(out, queries)


def _add_gated(fine: Tensor, gate: Tensor, coarse: Tensor, site: Site) -> Tensor:
    """fine + gate * coarse, all (B, N, H, D), so that Inductor can fuse this into the kernel's epilogue."""
    video, start = site.boxes.grid.tokens, site.q_start
    tail = fine.shape[1] - video - start
    if isinstance(start, int) and isinstance(tail, int) and start == tail == 0:
        return fine + gate * coarse
    # Padding the coarse rows with zeros, unlike slicing fine, copies no text rows.
    return fine + gate * F.pad(coarse, (0, 0, 0, 0, start, tail))
