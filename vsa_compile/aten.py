"""select, attend and attend_backward in chunked ATen: every device, dtype, head width and tile.

The default kernels; cpu/ and gpu/ register faster ones. Memory stays bounded: key tiles are gathered
for a few query tiles at a time, and nothing is ever N x N. A gathered slot that holds no key is zero
in K and in V before it is masked, for 0 * NaN is NaN.
May be imported by cpu and gpu; imports grid and ops.

Notation: B batch, H heads, Hkv key heads, N tokens, D head width, E tile tokens, M tiles,
T non-video keys, U query tiles of one chunk, L keys that each of them is offered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.library import Library

from . import ops  # noqa: F401  (operators are defined before they get kernels)
from .grid import Grid, TileGrid

SCRATCH_BYTES = 64 << 20  # what the keys, values and weights of one chunk may take


def select(scores: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """(..., M) scores -> tiles (..., kept) int32 ascending, counts (...) int32.

    The `kept` highest of every row; ties go to the lowest tile id, NaN counts as highest.
    """
    best = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :kept]
    tiles = best.sort(dim=-1).values.to(torch.int32)
    return tiles, torch.full(scores.shape[:-1], kept, dtype=torch.int32, device=scores.device)


# --- Where tokens live --------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiling:
    """A video cut into M tiles of E slots; border tiles leave slots empty, and tile M is all empty."""

    slot: Tensor  # (video,) int64: tile * E + place in the tile, of each raster token
    real: Tensor  # (M + 1, E) bool: the slots that hold a token

    @classmethod
    def of(cls, grid: Sequence[int], tile: Sequence[int], device: torch.device) -> Tiling:
        boxes = TileGrid(Grid(*grid), tuple(tile))  # pyright: ignore[reportArgumentType]
        index = torch.zeros((), dtype=torch.int64, device=device)
        place = torch.zeros((), dtype=torch.int64, device=device)
        for size, extent, tiles in zip(grid, tile, boxes.shape, strict=True):
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


def _split(x: Tensor, start: int, video: int) -> tuple[Tensor, Tensor]:
    """(B, H, N, ...) -> its video tokens, and all others."""
    others = torch.cat([x[:, :, :start], x[:, :, start + video :]], dim=2)
    return x[:, :, start : start + video], others


def _join(video: Tensor, others: Tensor, start: int) -> Tensor:
    """The inverse of `_split`."""
    return torch.cat([others[:, :, :start], video, others[:, :, start:]], dim=2)


# --- What a query tile sees ---------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """Some query tiles (of all batches and heads, flattened) with the keys they are offered."""

    units: slice  # of the B * H * M query tiles
    tiles: Tensor  # (U, Kcap) int64: rows of the flattened key tiles
    heads: Tensor  # (U,) int64: rows of the flattened key heads
    keys: Tensor  # (U, L, D), wide
    values: Tensor  # (U, L, D), wide
    seen: Tensor  # (U, 1, L) bool


class Keys:
    """Keys and values laid out by tile, and the gather of what each query tile sees."""

    def __init__(
        self, k: Tensor, v: Tensor, tiles: Tensor, counts: Tensor, tiling: Tiling, start: int, padding: Tensor | None
    ) -> None:
        self.tiles, self.counts, self.tiling = tiles, counts, tiling
        self.wide = torch.promote_types(k.dtype, torch.float32)
        self.kv_heads, self.width = k.shape[1], k.shape[3]
        video = tiling.slot.numel()
        (k_video, k_others), (v_video, v_others) = _split(k, start, video), _split(v, start, video)
        self.k_tiles, self.v_tiles = (tiling.to_tiles(x).flatten(0, 2) for x in (k_video, v_video))
        taking_part = k.new_ones(k.shape[0], k_others.shape[2], dtype=torch.bool)
        if padding is not None:
            taking_part &= torch.cat([padding[:, :start], padding[:, start + video :]], dim=1)
        self.others = taking_part.repeat_interleave(self.kv_heads, dim=0)  # (B * Hkv, T)
        absent = ~taking_part[:, None, :, None]
        self.k_others, self.v_others = (
            x.masked_fill(absent, 0).flatten(0, 1) for x in (k_others, v_others)
        )

    def chunks(self) -> Iterator[Chunk]:
        """All query tiles, as many at a time as SCRATCH_BYTES allows."""
        units = self.counts.numel()
        slots = self.tiling.real.shape[1]
        offered = self.tiles.shape[-1] * slots + self.others.shape[1]
        each = self.wide.itemsize * offered * (3 * self.width + 3 * slots)
        step = max(1, SCRATCH_BYTES // max(1, each))
        for first in range(0, units, step):
            yield self._gather(slice(first, min(first + step, units)))

    def _gather(self, units: slice) -> Chunk:
        """The chunk of these query tiles: listed tiles first, then all other keys."""
        batch, heads, query_tiles = self.counts.shape
        device = self.tiles.device
        unit = torch.arange(units.start, units.stop, device=device)
        head = unit // query_tiles
        kv_head = head // heads * self.kv_heads + head % heads // (heads // self.kv_heads)

        empty = self.tiling.real.shape[0] - 1
        listed = torch.arange(self.tiles.shape[-1], device=device) < self.counts.flatten()[units, None]
        ids = self.tiles.flatten(0, 2)[units].long().clamp(0, empty - 1).where(listed, empty)
        rows = kv_head[:, None] * (empty + 1) + ids
        seen = torch.cat([self.tiling.real[ids].flatten(1), self.others[kv_head]], dim=1)

        def gather(tiles: Tensor, others: Tensor) -> Tensor:
            return torch.cat([tiles[rows].flatten(1, 2), others[kv_head]], dim=1).to(self.wide)

        keys, values = gather(self.k_tiles, self.k_others), gather(self.v_tiles, self.v_others)
        return Chunk(units, rows, kv_head, keys, values, seen[:, None, :])


def _logits(q: Tensor, keys: Tensor, seen: Tensor, scale: float) -> Tensor:
    return (q @ keys.transpose(-1, -2) * scale).masked_fill(~seen, -torch.inf)


def _weights(logits: Tensor, lse: Tensor) -> Tensor:
    """exp(logits - lse): 0 for masked keys, and for the rows that see no key."""
    return torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0)[..., None])


def _row_steps(rows: int, keys: int, wide: torch.dtype) -> Iterator[slice]:
    """Slices of `rows` queries whose weights over `keys` keys fit the scratch."""
    step = max(1, SCRATCH_BYTES // (3 * wide.itemsize * max(1, keys)))
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def _visible(k: Tensor, v: Tensor, start: int, video: int, padding: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What a non-video query sees: (B, Nkv) bool, and k and v with everything else zero."""
    seen = k.new_ones(k.shape[0], k.shape[2], dtype=torch.bool)
    if padding is not None:
        seen &= padding
        seen[:, start : start + video] = True
    absent = ~seen[:, None, :, None]
    return seen, k.masked_fill(absent, 0), v.masked_fill(absent, 0)


# --- Forward ------------------------------------------------------------------------------------


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiles: Tensor,
    counts: Tensor,
    grid: Sequence[int],
    tile: Sequence[int],
    q_start: int,
    kv_start: int,
    key_padding: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Exact softmax attention over the listed tiles and all non-video keys.

    q (B, H, Nq, D); k, v (B, Hkv, Nkv, D); tiles (B, H, M, Kcap), counts (B, H, M) int32
    -> out (B, Nq, H, D), lse (B, H, Nq) in fp32 or wider.
    """
    tiling = Tiling.of(grid, tile, q.device)
    video = tiling.slot.numel()
    keys = Keys(k, v, tiles, counts, tiling, kv_start, key_padding)
    q_video, q_others = _split(q, q_start, video)
    out_video, lse_video = _attend_video(q_video, keys, scale)
    out_others, lse_others = _attend_others(
        q_others, *_visible(k, v, kv_start, video, key_padding), scale
    )
    out = _join(out_video, out_others, q_start).transpose(1, 2).contiguous()
    return out, _join(lse_video, lse_others, q_start)


def _attend_video(q: Tensor, keys: Keys, scale: float) -> tuple[Tensor, Tensor]:
    """(B, H, video, D) -> out alike, lse (B, H, video)."""
    boxes = keys.tiling.to_tiles(q)[:, :, :-1]
    rows = boxes.flatten(0, 2)
    out = torch.zeros_like(rows)
    lse = torch.zeros(rows.shape[:-1], dtype=keys.wide, device=q.device)
    for chunk in keys.chunks():
        logits = _logits(rows[chunk.units].to(keys.wide), chunk.keys, chunk.seen, scale)
        lse[chunk.units] = logits.logsumexp(-1)
        out[chunk.units] = (_weights(logits, lse[chunk.units]) @ chunk.values).to(q.dtype)
    to_tokens = keys.tiling.to_tokens
    return to_tokens(out.view_as(boxes)), to_tokens(lse.view(boxes.shape[:-1]))


def _attend_others(q: Tensor, seen: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Dense attention of the few non-video queries, one head at a time."""
    wide = torch.promote_types(q.dtype, torch.float32)
    batch, heads, tokens, _ = q.shape
    out, lse = torch.empty_like(q), q.new_empty((batch, heads, tokens), dtype=wide)
    if tokens == 0:
        return out, lse
    groups = heads // k.shape[1]
    for b in range(batch):
        for h in range(heads):
            keys, values = k[b, h // groups].to(wide), v[b, h // groups].to(wide)
            for rows in _row_steps(tokens, k.shape[2], wide):
                logits = _logits(q[b, h, rows].to(wide), keys, seen[b], scale)
                lse[b, h, rows] = logits.logsumexp(-1)
                out[b, h, rows] = (_weights(logits, lse[b, h, rows]) @ values).to(q.dtype)
    return out, lse


# --- Backward -----------------------------------------------------------------------------------


def attend_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    tiles: Tensor,
    counts: Tensor,
    grid: Sequence[int],
    tile: Sequence[int],
    q_start: int,
    kv_start: int,
    key_padding: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v as (B, N, H, D), recomputing the weights from lse."""
    tiling = Tiling.of(grid, tile, q.device)
    video = tiling.slot.numel()
    keys = Keys(k, v, tiles, counts, tiling, kv_start, key_padding)
    grad_out = grad_out.transpose(1, 2)  # to (B, H, N, D), as q
    delta = (grad_out.to(keys.wide) * out.transpose(1, 2).to(keys.wide)).sum(-1)

    rows = [_split(x, q_start, video) for x in (q, grad_out, lse, delta)]
    grad_q_video, grad_k, grad_v = _video_gradients(*(x for x, _ in rows), keys, scale)
    grad_k, grad_v = (_join(*x, kv_start) for x in (grad_k, grad_v))
    grad_q_others = _add_others_gradients(
        *(x for _, x in rows), *_visible(k, v, kv_start, video, key_padding), grad_k, grad_v, scale
    )
    grad_q = _join(grad_q_video, grad_q_others, q_start)
    grads = ((grad_q, q), (grad_k, k), (grad_v, v))
    return tuple(g.to(x.dtype).transpose(1, 2).contiguous() for g, x in grads)  # pyright: ignore[reportReturnType]


def _score_gradient(weights: Tensor, grad_out: Tensor, values: Tensor, delta: Tensor) -> Tensor:
    """Of the logits: weights * (grad_out values^T - delta)."""
    return weights * (grad_out @ values.transpose(-1, -2) - delta[..., None])


def _video_gradients(
    q: Tensor, grad_out: Tensor, lse: Tensor, delta: Tensor, keys: Keys, scale: float
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Through the video queries: grad_q (B, H, video, D), and (video, others) parts of grad_k and grad_v.

    Key tiles collect their gradients in the order of the query tiles, without atomics.
    """
    tiling, wide = keys.tiling, keys.wide
    batch, heads, _ = keys.counts.shape
    slots = tiling.real.shape[1]

    def by_tile(x: Tensor) -> Tensor:
        return tiling.to_tiles(x)[:, :, :-1].flatten(0, 2)

    q_tiles, grad_tiles = by_tile(q), by_tile(grad_out)
    lse_tiles, delta_tiles = (by_tile(x[..., None])[..., 0] for x in (lse, delta))
    grad_q = torch.zeros_like(q_tiles)
    onto_tiles = [keys.k_tiles.new_zeros(keys.k_tiles.shape, dtype=wide) for _ in range(2)]
    onto_others = [keys.k_others.new_zeros(keys.k_others.shape, dtype=wide) for _ in range(2)]
    for chunk in keys.chunks():
        rows, grad_rows = q_tiles[chunk.units].to(wide), grad_tiles[chunk.units].to(wide)
        weights = _weights(_logits(rows, chunk.keys, chunk.seen, scale), lse_tiles[chunk.units])
        score_grad = _score_gradient(weights, grad_rows, chunk.values, delta_tiles[chunk.units]) * scale
        grad_q[chunk.units] = (score_grad @ chunk.keys).to(q.dtype)
        grads = (score_grad.transpose(1, 2) @ rows, weights.transpose(1, 2) @ grad_rows)
        video = chunk.tiles.shape[1] * slots
        for grad, tiles, others in zip(grads, onto_tiles, onto_others, strict=True):
            _add_rows(tiles, chunk.tiles.flatten(), grad[:, :video].reshape(-1, *tiles.shape[1:]))
            _add_rows(others, chunk.heads, grad[:, video:])

    def parts(tiles: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        shape = (batch, keys.kv_heads)
        return tiling.to_tokens(tiles.view(*shape, *tiling.real.shape, -1)), others.unflatten(0, shape)

    grad_q = tiling.to_tokens(grad_q.view(batch, heads, -1, slots, q.shape[-1]))
    (k_tiles, v_tiles), (k_others, v_others) = onto_tiles, onto_others
    return grad_q, parts(k_tiles, k_others), parts(v_tiles, v_others)


def _add_rows(onto: Tensor, rows: Tensor, what: Tensor) -> None:
    """onto[rows] += what, where rows may repeat, in a fixed order."""
    if onto.is_cuda:
        onto.index_put_((rows,), what, accumulate=True)  # sorts; index_add_ would use atomics
    else:
        onto.index_add_(0, rows, what)


def _add_others_gradients(
    q: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    seen: Tensor,
    k: Tensor,
    v: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    scale: float,
) -> Tensor:
    """Through the non-video queries: returns grad_q (B, H, Nq - video, D), adds to grad_k and grad_v."""
    wide = torch.promote_types(q.dtype, torch.float32)
    batch, heads, tokens, _ = q.shape
    grad_q = torch.empty_like(q)
    if tokens == 0:
        return grad_q
    groups = heads // k.shape[1]
    for b in range(batch):
        for h in range(heads):
            kv = h // groups
            keys, values = k[b, kv].to(wide), v[b, kv].to(wide)
            for rows in _row_steps(tokens, k.shape[2], wide):
                q_rows, grad_rows = q[b, h, rows].to(wide), grad_out[b, h, rows].to(wide)
                weights = _weights(_logits(q_rows, keys, seen[b], scale), lse[b, h, rows])
                score_grad = _score_gradient(weights, grad_rows, values, delta[b, h, rows]) * scale
                grad_q[b, h, rows] = (score_grad @ keys).to(q.dtype)
                grad_k[b, kv] += score_grad.T @ q_rows
                grad_v[b, kv] += weights.T @ grad_rows
    return grad_q


_KERNELS = Library("vsa", "IMPL")
_KERNELS.impl("select", select, "CompositeExplicitAutograd")
_KERNELS.impl("attend", attend, "CompositeExplicitAutograd")
_KERNELS.impl("attend_backward", attend_backward, "CompositeExplicitAutograd")
