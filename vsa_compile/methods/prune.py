"""Which queries attend: all, or those that a pruner keeps per window, packed so that kernel tiles are full.

Notation: B batch, H heads, N video tokens, D head width, W windows, E places of a window, S slots (places
whose query attends), P = W * S packed queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError, bad_value, centre_not_kept
from ..grid import Grid, Tile, TileGrid, ceil_div, kept_queries
from .site import Site, box_sums, spread


class Windows(NamedTuple):
    """A video cut into W windows of E places; in border windows some places are empty."""

    boxes: TileGrid
    slot: Tensor  # (N,) int64: window * E + place, of each raster token
    token: Tensor  # (W, E) int64: the raster token at each place; at an empty place, the centre's
    real: Tensor  # (W, E) bool: whether a place holds a token
    centre: Tensor  # (W,) int64: the place of the centre

    @classmethod
    def of(cls, boxes: TileGrid, centre: str, device: torch.device) -> Windows:
        token = slot = place_of_centre = torch.zeros((), dtype=torch.int64, device=device)
        window = place = torch.zeros((), dtype=torch.int64, device=device)
        real = torch.ones((), dtype=torch.bool, device=device)
        for axis, (size, extent, n) in enumerate(zip(boxes.grid, boxes.tile, boxes.shape, strict=True)):
            along = torch.arange(size, device=device)
            window = window[..., None] * n + along // extent
            place = place[..., None] * extent + along % extent
            # (n, extent), as two of six dimensions: three of windows, then three of places
            start = torch.arange(n, device=device) * extent
            at = start[:, None] + torch.arange(extent, device=device)
            shape = [1] * 6
            shape[axis], shape[3 + axis] = n, extent
            token = token * size + at.reshape(shape)
            real = real & (at < size).reshape(shape)
            middle = (size - start).clamp(max=extent) // 2 if centre == "middle" else start * 0
            place_of_centre = place_of_centre[..., None] * extent + middle
        places = math.prod(boxes.tile)
        slot = (window * places + place).flatten()
        token, real = (x.flatten(3).flatten(0, 2) for x in (token, real))
        place_of_centre = place_of_centre.flatten()
        token = token.where(real, token.gather(1, place_of_centre[:, None]))
        return cls(boxes, slot, token, real, place_of_centre)


@dataclass(frozen=True)
class Queries:
    """The queries that attend (non-video queries keep their places), and the sparsity left for their keys.

    q: (B, H, Nq, D). site: the call, with the sparsity and count that are left for the keys. boxes: the Mq
    query tiles, in tokens of the video. The other fields say how the queries are packed.
    """

    q: Tensor
    site: Site
    boxes: TileGrid
    raster: TileGrid | None = None  # of packed queries: windows along its axes, with S slots each
    windows: Windows | None = None
    rank: Tensor | None = None  # (B, H, W, E) int64: each place's rank; ranks below S are kept
    pooled: str = "kept"
    unpacked: Tensor | None = None  # (B, H, N, D): all video queries

    @property
    def packed(self) -> tuple[Grid, Tile] | None:
        """The arguments q_grid and q_tile of vsa_compile::attend."""
        return None if self.raster is None else (self.raster.grid, self.raster.tile)

    @property
    def means(self) -> Tensor:
        """(B, H, Mq, D): the means that tiles are scored by, in fp32 or wider."""
        if self.raster is None or self.windows is None:
            return self.site.tile_means(self.site.video_queries(self.q))
        if self.pooled == "all" and self.unpacked is not None:
            return replace(self.site, boxes=self.boxes).tile_means(self.unpacked)
        slots = self.raster.grid.tokens // self.windows.boxes.tiles
        # Slots that a border window cannot fill repeat its centre; they get no weight.
        filled = torch.arange(slots, device=self.q.device) < self.windows.real.sum(-1, keepdim=True)
        packed = self.q.narrow(2, self.site.q_start, self.raster.grid.tokens)
        weight = filled.flatten()[:, None].to(torch.promote_types(packed.dtype, torch.float32))
        return box_sums(packed * weight, self.raster) / box_sums(weight[None, None], self.raster)


def all_queries(q: Tensor, site: Site) -> Queries:
    """All queries attend."""
    return Queries(q, site, site.boxes)


@dataclass(frozen=True)
class WindowPruner:
    """In every window, the queries least similar to its centre attend; the others take the centre's output.

    BSA (arXiv 2509.01085), "query sparsity" with "window-based selection": cosine similarity with the centre
    token, half of the queries kept, windows of (2, 2, 2). Details that the paper leaves open are fields:

    window: tokens of a window.
    least: the share of queries kept at high sparsity; the paper's "sparse query 50 %".
    anneal: keep max(least, 1 - sparsity) at low sparsity, in steps of one slot, and so all queries at
        sparsity 0, where the paper's schedule starts. False keeps `least` at any positive sparsity.
    centre: "middle", token n // 2 of n along each axis (of two, the second), as in VORTA (arXiv 2505.18809),
        whose bucketed coreset resembles this pruner; or "first", token 0.
    keep_centre: True. By similarity alone the centre would always be dropped, as the token most similar to
        itself; then nobody could stand in for the dropped queries.
    dropped: what a dropped query outputs. "centre": its window centre's output. "zero": nothing, for layers
        with a residual connection.
    pooled: queries whose mean scores the tiles. "kept": those that attend. "all": all of them.
    tiles: how many key tiles along (frames, rows, cols) one query tile spans. Half of a (4, 4, 4) tile is 32
        queries, but a kernel's query tile has 64 rows: two neighbours share one list of keys and fill it.
        (1, 1, 1) gives every tile its own list, at half the efficiency on a GPU.

    Dropped queries still take part as keys: the paper's two sparsities are independent. Border windows keep
    as many queries as full ones, if they have them, so that shapes do not depend on the window.
    """

    window: Tile = (2, 2, 2)
    least: float = 0.5
    anneal: bool = True
    centre: str = "middle"
    keep_centre: bool = True
    dropped: str = "centre"
    pooled: str = "kept"
    tiles: Tile = (1, 1, 2)

    def __post_init__(self) -> None:
        named = {"centre": ("middle", "first"), "dropped": ("centre", "zero"), "pooled": ("kept", "all")}
        for field, known in named.items():
            if getattr(self, field) not in known:
                raise ArgumentError(bad_value(field, getattr(self, field), " or ".join(map(repr, known))))
        if not 0 < self.least <= 1:
            raise ArgumentError(bad_value("least", self.least, "a share above 0, at most 1"))
        if self.dropped == "centre" and not self.keep_centre:
            raise ArgumentError(centre_not_kept())

    def __call__(self, q: Tensor, site: Site) -> Queries:
        """q (B, H, Nq, D) -> the packed queries, q (B, H, Nq - N + P, D), and how they are packed."""
        places = math.prod(self.window)
        slots = kept_queries(places, site.sparsity if self.anneal else 1, self.least)
        if slots == places:
            return all_queries(q, site)
        grid, video = site.boxes.grid, site.video_queries(q)
        windows = Windows.of(TileGrid(grid, self.window), self.centre, q.device)
        rank, chosen = self._rank(video.detach(), windows, slots)
        index = chosen.flatten(2)[..., None].expand(-1, -1, -1, q.shape[-1])
        start, end = site.q_start, site.q_start + grid.tokens
        packed = _between(q[:, :, :start], video.gather(2, index), q[:, :, end:], dim=2)
        box, raster = self._boxes(site.boxes.tile, windows.boxes, slots)
        left = self._left(site, Fraction(slots, places))
        return Queries(packed, left, TileGrid(grid, box), raster, windows, rank, self.pooled, video)

    def _rank(self, video: Tensor, windows: Windows, slots: int) -> tuple[Tensor, Tensor]:
        """(B, H, N, D) -> the rank of every place (B, H, W, E), and the kept tokens (B, H, W, S)."""
        wide = video.to(torch.promote_types(video.dtype, torch.float32))
        centres = windows.token.gather(1, windows.centre[:, None])[windows.slot // windows.token.shape[1], 0]
        # The centre's norm scales all similarities of a window alike, so it is left out.
        alike = (wide * wide.index_select(2, centres)).sum(-1)
        limit = torch.finfo(wide.dtype)
        alike = (alike / wide.norm(dim=-1).clamp(min=limit.tiny)).nan_to_num(limit.max, limit.max, limit.min)
        alike = alike.index_select(2, windows.token.flatten()).unflatten(2, windows.token.shape)
        places = torch.arange(windows.token.shape[1], device=video.device)
        if self.keep_centre:
            alike = alike.masked_fill(places == windows.centre[:, None], -torch.inf)
        order = alike.masked_fill(~windows.real, torch.inf).sort(stable=True, dim=-1).indices
        rank = torch.zeros_like(order).scatter(-1, order, places.expand_as(order))
        tokens = windows.token.expand_as(order).gather(-1, order[..., :slots])
        return rank, tokens

    def _boxes(self, tile: Tile, windows: TileGrid, slots: int) -> tuple[Tile, TileGrid]:
        """The size of a query tile in tokens, and the raster of the packed queries with its tiles."""
        counts = tuple(ceil_div(t * n, w) for t, n, w in zip(tile, self.tiles, self.window, strict=True))
        box: Any = tuple(n * w for n, w in zip(counts, self.window, strict=True))
        frames, rows, cols = windows.shape
        rows_of_tile = (counts[0], counts[1], counts[2] * slots)
        return box, TileGrid(Grid(frames, rows, cols * slots), rows_of_tile)

    def _left(self, site: Site, share: Fraction) -> Site:
        """The call, with the sparsity left for the keys if `share` of the queries attend."""
        sparsity = max(Fraction(0), 1 - (1 - Fraction(str(site.sparsity))) / share)
        left = replace(site, sparsity=sparsity)
        if site.share is None:
            return left
        part, whole = site.share.unbind()
        return replace(left, share=torch.stack([part * share.denominator, whole * share.numerator]))

    def restore(self, out: Tensor, queries: Queries) -> Tensor:
        """The output of the packed queries (B, Nq - N + P, H, D) -> (B, Nq, H, D).

        One gather is enough. With a gradient the centres' rows are filled in by expanding instead: the values
        are equal, but the gradient is summed in a fixed order, not by atomics. That costs two passes.
        """
        if queries.rank is None or queries.windows is None or queries.raster is None:
            return out
        windows, rank, total = queries.windows, queries.rank, queries.raster.grid.tokens
        slots, start = total // windows.boxes.tiles, queries.site.q_start
        video = out.narrow(1, start, total)
        rank = rank.flatten(2).index_select(2, windows.slot).transpose(1, 2)[..., None]
        kept = rank < slots
        first = (windows.slot // windows.token.shape[1] * slots)[:, None, None]
        rows = (first + rank.where(kept, 0)).expand(-1, -1, -1, out.shape[-1])
        own = video.gather(1, rows)
        if self.dropped == "zero":
            own = own.masked_fill(~kept, 0.0)
        elif out.requires_grad:
            centres = video.unflatten(1, (windows.boxes.tiles, slots))[:, :, 0]
            own = own.where(kept, spread(centres, windows.boxes))
        return _between(out[:, :start], own, out[:, start + total :], dim=1)


def _between(before: Tensor, video: Tensor, after: Tensor, dim: int) -> Tensor:
    """The three concatenated; without a copy if there is only video."""
    if all(isinstance(x.shape[dim], int) and x.shape[dim] == 0 for x in (before, after)):
        return video
    return torch.cat([before, video, after], dim=dim)
