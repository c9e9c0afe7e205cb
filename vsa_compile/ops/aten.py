"""select, attend and attend_backward in chunked ATen: every device, dtype, head width and tile.

The default kernels; cpu/ and gpu/ register faster ones. Memory stays bounded: key tiles are gathered
for a few query tiles at a time, and nothing is ever N x N. A gathered slot that holds no key is zero
in K and in V before it is masked, for 0 * NaN is NaN.
May be imported by cpu and gpu; imports grid, args and schema.

Notation: B batch, H heads, Hkv key heads, N tokens, D head width, E tile tokens, M tiles,
T non-video keys, U query tiles of one chunk, L keys that each of them is offered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library

from ..grid import TileGrid
from . import schema  # noqa: F401 - defines the operators
from .args import AttendArgs, BackwardArgs, SelectArgs, lse_dtype, takes

SCRATCH_BYTES = 64 << 20  # what the keys, values and weights of one chunk may take


def select(args: SelectArgs) -> tuple[Tensor, Tensor]:
    """tiles (..., at_most) int32 ascending, counts (...) int32.

    The highest of every row: `count` of them (default at_most), but none below the row's threshold, at least
    one and at most at_most. Ties go to the lowest tile id, NaN counts as highest. What follows a row's count
    in `tiles` is a tile of no meaning.
    """
    scores, at_most, threshold, count = args.scores, args.at_most, args.threshold, args.count
    best = torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :at_most]
    counts = torch.full(scores.shape[:-1], at_most, dtype=torch.int32, device=scores.device)
    if threshold is not None:
        counts = counts.minimum((~(scores < threshold[..., None])).sum(-1, dtype=torch.int32))
    if count is not None:
        counts = counts.minimum(count.to(torch.int32))
    if threshold is not None or count is not None:
        counts = counts.clamp(min=1)
        rank = torch.arange(best.shape[-1], device=scores.device)
        best = best.where(rank < counts[..., None], scores.shape[-1])
    tiles = best.sort(dim=-1).values.clamp(max=scores.shape[-1] - 1)
    return tiles.to(torch.int32), counts


# --- Where tokens live --------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiling:
    """A video cut into M tiles of E slots; border tiles leave slots empty, and tile M is all empty."""

    slot: Tensor  # (video,) int64: tile * E + place in the tile, of each raster token
    real: Tensor  # (M + 1, E) bool: the slots that hold a token

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


def _split(x: Tensor, start: int, video: int) -> tuple[Tensor, Tensor]:
    """(B, H, N, ...) -> its video tokens, and all others."""
    others = torch.cat([x[:, :, :start], x[:, :, start + video :]], dim=2)
    return x[:, :, start : start + video], others


def _join(video: Tensor, others: Tensor, start: int) -> Tensor:
    """The inverse of `_split`."""
    return torch.cat([others[:, :, :start], video, others[:, :, start:]], dim=2)


# --- What a query sees --------------------------------------------------------------------------


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
    """Keys and values laid out by tile, and the gather of what each query sees."""

    def __init__(self, args: AttendArgs) -> None:
        k, v, start, padding = args.k, args.v, args.kv_start, args.key_padding
        self.wide = lse_dtype(k.dtype)
        self.tiles, self.counts, self.start = args.tiles, args.counts, start
        self.tiling = Tiling.of(args.boxes, k.device)
        self.query_tiling = self.tiling if args.q_grid is None else Tiling.of(args.query_boxes, k.device)
        self.video = self.tiling.slot.numel()
        self.kv_heads = k.shape[1]
        # What non-video queries see: everything but the padding among non-video keys.
        self.seen = k.new_ones((k.shape[0], k.shape[2]), dtype=torch.bool)
        if padding is not None:
            self.seen &= padding
            self.seen[:, start : start + self.video] = True
            k, v = (x.masked_fill(~self.seen[:, None, :, None], 0) for x in (k, v))
        self.k, self.v = k, v
        _, others_seen = _split(self.seen[:, None].expand(-1, self.kv_heads, -1), start, self.video)
        self.others_seen = others_seen.flatten(0, 1)
        self.k_tiles, self.k_others = self._by_tile(k)
        self.v_tiles, self.v_others = self._by_tile(v)

    def _by_tile(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Hkv, N, D) -> (B * Hkv * (M + 1), E, D) and (B * Hkv, T, D)."""
        video, others = _split(x, self.start, self.video)
        return self.tiling.to_tiles(video).flatten(0, 2), others.flatten(0, 1)

    def chunks(self) -> Iterator[Chunk]:
        """All video query tiles, as many at a time as SCRATCH_BYTES allows."""
        units = self.counts.numel()
        slots = self.tiling.real.shape[1]
        offered = self.tiles.shape[-1] * slots + self.others_seen.shape[1]
        each = 3 * self.wide.itemsize * offered * (self.k.shape[3] + slots)
        step = max(1, SCRATCH_BYTES // max(1, each))
        for first in range(0, units, step):
            yield self._gather(slice(first, min(first + step, units)))

    def _gather(self, units: slice) -> Chunk:
        """The chunk of these query tiles: listed tiles first, then all other keys."""
        _, heads, query_tiles = self.counts.shape
        device = self.tiles.device
        head = torch.arange(units.start, units.stop, device=device) // query_tiles
        kv_head = head // heads * self.kv_heads + head % heads // (heads // self.kv_heads)

        empty = self.tiling.real.shape[0] - 1
        listed = torch.arange(self.tiles.shape[-1], device=device) < self.counts.flatten()[units, None]
        ids = self.tiles.flatten(0, 2)[units].long().clamp(0, empty - 1).where(listed, empty)
        rows = kv_head[:, None] * (empty + 1) + ids
        seen = torch.cat([self.tiling.real[ids].flatten(1), self.others_seen[kv_head]], dim=1)

        def gather(tiles: Tensor, others: Tensor) -> Tensor:
            return torch.cat([tiles[rows].flatten(1, 2), others[kv_head]], dim=1).to(self.wide)

        keys, values = gather(self.k_tiles, self.k_others), gather(self.v_tiles, self.v_others)
        return Chunk(units, rows, kv_head, keys, values, seen[:, None, :])

    def dense_rows(self, q: Tensor) -> Iterator[tuple[tuple, tuple, Tensor, Tensor]]:
        """Runs of non-video queries of one head whose weights fit the scratch: their index (b, h, rows), the
        index (b, kv head) of what they see, its keys and values."""
        batch, heads, tokens, _ = q.shape
        step = max(1, SCRATCH_BYTES // (3 * self.wide.itemsize * max(1, self.k.shape[2])))
        for b in range(batch if tokens else 0):
            for h in range(heads):
                kv = b, h // (heads // self.kv_heads)
                keys, values = self.k[kv].to(self.wide), self.v[kv].to(self.wide)
                for first in range(0, tokens, step):
                    yield (b, h, slice(first, min(first + step, tokens))), kv, keys, values


def _logits(q: Tensor, keys: Tensor, seen: Tensor, scale: float) -> Tensor:
    return (q @ keys.transpose(-1, -2) * scale).masked_fill(~seen, -torch.inf)


def _weights(logits: Tensor, lse: Tensor) -> Tensor:
    """exp(logits - lse): 0 for masked keys, and for the rows that see no key."""
    return torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0)[..., None])


def _in_given_types(kernel: Callable) -> Callable:
    """Without autocast, under which a backward may run: matrix products would come back narrower."""

    @functools.wraps(kernel)
    def run(args: Any) -> Any:
        with torch.autocast(args.device.type, enabled=False):
            return kernel(args)

    return run


# --- Forward ------------------------------------------------------------------------------------


@_in_given_types
def attend(args: AttendArgs) -> tuple[Tensor, Tensor, Tensor]:
    """Exact softmax attention over the listed tiles and all non-video keys: out (B, Nq, H, D), lse (B, H, Nq)
    in fp32 or wider, the witness of the grid."""
    keys, q_start = Keys(args), args.q_start
    q_video, q_others = _split(args.q, q_start, keys.query_tiling.slot.numel())
    out, lse = _attend_video(q_video, keys, args.scale)
    out_others, lse_others = _attend_others(q_others, keys, args.scale)
    out = _join(out, out_others, q_start).transpose(1, 2).contiguous()
    return out, _join(lse, lse_others, q_start), args.new_witness()


def _attend_video(q: Tensor, keys: Keys, scale: float) -> tuple[Tensor, Tensor]:
    """(B, H, video, D) -> out alike, lse (B, H, video)."""
    boxes = keys.query_tiling.to_tiles(q)[:, :, :-1]
    rows = boxes.flatten(0, 2)
    out = torch.zeros_like(rows)
    lse = torch.zeros(rows.shape[:-1], dtype=keys.wide, device=q.device)
    for chunk in keys.chunks():
        logits = _logits(rows[chunk.units].to(keys.wide), chunk.keys, chunk.seen, scale)
        lse[chunk.units] = logits.logsumexp(-1)
        out[chunk.units] = (_weights(logits, lse[chunk.units]) @ chunk.values).to(q.dtype)
    to_tokens = keys.query_tiling.to_tokens
    return to_tokens(out.view_as(boxes)), to_tokens(lse.view(boxes.shape[:-1]))


def _attend_others(q: Tensor, keys: Keys, scale: float) -> tuple[Tensor, Tensor]:
    """Dense attention of the non-video queries (B, H, T, D): out alike, lse (B, H, T)."""
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=keys.wide)
    for at, _, k, v in keys.dense_rows(q):
        logits = _logits(q[at].to(keys.wide), k, keys.seen[at[0]], scale)
        lse[at] = logits.logsumexp(-1)
        out[at] = (_weights(logits, lse[at]) @ v).to(q.dtype)
    return out, lse


# --- Backward -----------------------------------------------------------------------------------


class Queries(NamedTuple):
    """Some queries (B, H, n, D), what the backward knows of them, and delta = sum(grad_out * out)."""

    q: Tensor
    grad_out: Tensor
    lse: Tensor
    delta: Tensor


@_in_given_types
def attend_backward(args: BackwardArgs) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v as (B, N, H, D), recomputing the weights from lse."""
    call, keys = args.call, Keys(args.call)
    q_start, scale = call.q_start, call.scale
    grad_out = args.grad_out.transpose(1, 2)  # to (B, H, N, D), as q
    delta = (grad_out.to(keys.wide) * args.out.transpose(1, 2).to(keys.wide)).sum(-1)
    parts = [_split(x, q_start, keys.query_tiling.slot.numel()) for x in (call.q, grad_out, args.lse, delta)]
    inside, others = Queries(*(x for x, _ in parts)), Queries(*(x for _, x in parts))
    grad_q, grad_k, grad_v = _video_gradients(inside, keys, scale)
    grad_q = _join(grad_q, _add_others_gradients(others, keys, grad_k, grad_v, scale), q_start)
    grads = ((grad_q, call.q), (grad_k, call.k), (grad_v, call.v))
    return tuple(g.to(x.dtype).transpose(1, 2).contiguous() for g, x in grads)  # pyright: ignore[reportReturnType]


def _score_gradient(weights: Tensor, grad_out: Tensor, values: Tensor, delta: Tensor) -> Tensor:
    """Of the logits: weights * (grad_out values^T - delta)."""
    return weights * (grad_out @ values.transpose(-1, -2) - delta[..., None])


def _video_gradients(queries: Queries, keys: Keys, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Through the video queries: grad_q (B, H, video, D), and wide grad_k and grad_v (B, Hkv, N, D). Tiles of
    keys collect their gradients in the order of the query tiles, without atomics."""
    tiling, wide = keys.tiling, keys.wide

    def by_tile(x: Tensor) -> Tensor:
        return keys.query_tiling.to_tiles(x)[:, :, :-1].flatten(0, 2)

    rows, grad_rows = by_tile(queries.q), by_tile(queries.grad_out)
    lse_rows, delta_rows = (by_tile(x[..., None])[..., 0] for x in (queries.lse, queries.delta))
    grad_q = torch.zeros_like(rows)
    grad_k, grad_v = (
        (torch.zeros_like(keys.k_tiles, dtype=wide), torch.zeros_like(keys.k_others, dtype=wide))
        for _ in range(2)
    )
    for chunk in keys.chunks():
        q_tiles, grad_tiles = rows[chunk.units].to(wide), grad_rows[chunk.units].to(wide)
        weights = _weights(_logits(q_tiles, chunk.keys, chunk.seen, scale), lse_rows[chunk.units])
        score_grad = _score_gradient(weights, grad_tiles, chunk.values, delta_rows[chunk.units]) * scale
        grad_q[chunk.units] = (score_grad @ chunk.keys).to(rows.dtype)
        _collect(grad_k, chunk, score_grad.transpose(1, 2) @ q_tiles)
        _collect(grad_v, chunk, weights.transpose(1, 2) @ grad_tiles)

    def to_tokens(tiles: Tensor, others: Tensor) -> Tensor:
        shape = (-1, keys.kv_heads)
        video = tiling.to_tokens(tiles.view(*shape, *tiling.real.shape, tiles.shape[-1]))
        return _join(video, others.unflatten(0, shape), keys.start)

    grad_q = keys.query_tiling.to_tokens(grad_q.view(*keys.counts.shape, *rows.shape[1:]))
    return grad_q, to_tokens(*grad_k), to_tokens(*grad_v)


def _collect(onto: tuple[Tensor, Tensor], chunk: Chunk, grad: Tensor) -> None:
    """Adds (U, L, D), the gradient of what the chunk gathered, to (key tiles, other keys)."""
    tiles, others = onto
    listed = grad[:, : chunk.tiles.shape[1] * tiles.shape[1]]
    _add_rows(tiles, chunk.tiles.flatten(), listed.reshape(-1, *tiles.shape[1:]))
    _add_rows(others, chunk.heads, grad[:, listed.shape[1] :])


def _add_rows(onto: Tensor, rows: Tensor, what: Tensor) -> None:
    """onto[rows] += what, where rows may repeat, in a fixed order."""
    if onto.is_cuda:
        onto.index_put_((rows,), what, accumulate=True)  # sorts; index_add_ would use atomics
    else:
        onto.index_add_(0, rows, what)


def _add_others_gradients(
    queries: Queries, keys: Keys, grad_k: Tensor, grad_v: Tensor, scale: float
) -> Tensor:
    """Through the non-video queries: returns grad_q (B, H, T, D), adds to grad_k and grad_v."""
    q, grad_out, lse, delta = queries
    grad_q = torch.empty_like(q)
    for at, kv, k, v in keys.dense_rows(q):
        q_rows, grad_rows = q[at].to(keys.wide), grad_out[at].to(keys.wide)
        weights = _weights(_logits(q_rows, k, keys.seen[at[0]], scale), lse[at])
        score_grad = _score_gradient(weights, grad_rows, v, delta[at]) * scale
        grad_q[at] = (score_grad @ k).to(q.dtype)
        grad_k[kv] += score_grad.T @ q_rows
        grad_v[kv] += weights.T @ grad_rows
    return grad_q


_KERNELS = Library("vsa_compile", "IMPL")
_KERNELS.impl("select", takes(SelectArgs, select), "CompositeExplicitAutograd")
_KERNELS.impl("attend", takes(AttendArgs, attend), "CompositeExplicitAutograd")
_KERNELS.impl("attend_backward", takes(BackwardArgs, attend_backward), "CompositeExplicitAutograd")
