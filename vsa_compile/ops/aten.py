"""select, attend and attend_backward in ATen: every device, dtype, head width and tile.

The default kernels; cpu/ and gpu/ register faster ones. Query tiles are processed in chunks, for which their
keys are gathered. Memory stays bounded, and nothing is ever N x N. On CPU the host reads the lists, so only
real tokens are gathered, and torch's fused attention computes a chunk. On other devices nothing waits for the
host: empty places are gathered from a row of zeros and masked.

Notation: B batch, H heads, Hkv key heads, N tokens, D head width, E tile tokens, M tiles. A row is one token
of one head, in tensors laid out as (B, N, H, D). A chunk has U units, each of n queries and L keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library

from .. import torch_compat
from ..grid import TileGrid
from . import schema  # noqa: F401 - defines the operators
from .args import AttendArgs, BackwardArgs, SelectArgs, lse_dtype, takes

SCRATCH_BYTES = 64 << 20  # the limit for the keys, values and weights of one chunk
UNITS_PER_THREAD = 8  # in a chunk: more is no faster, as gathered rows then leave the caches


def select(args: SelectArgs) -> tuple[Tensor, Tensor]:
    """tiles (..., at_most) int32 ascending, counts (...) int32.

    The highest scores of every row: `count` of them (default at_most), but none below the row's threshold, at
    least one and at most at_most. Ties go to the lowest tile id; NaN counts as highest. Entries of `tiles`
    past a row's count are valid ids without meaning.
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


# --- Which tokens -------------------------------------------------------------------------------

NOBODY = -1  # in the place of a token id: no token


def members(boxes: TileGrid, first: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The token ids of every tile (M + 1, E) int64, padded with NOBODY, and how many they are (M + 1,).

    `first` is the video's first token; the last tile is empty."""
    tile = place = torch.zeros((), dtype=torch.int64, device=device)
    for size, extent, tiles in zip(boxes.grid, boxes.tile, boxes.shape, strict=True):
        along = torch.arange(size, device=device)
        tile = tile[..., None] * tiles + along // extent
        place = place[..., None] * extent + along % extent
    slot = (tile * boxes.tile_tokens + place).flatten()
    tokens = torch.full(((boxes.tiles + 1) * boxes.tile_tokens,), NOBODY, device=device)
    tokens[slot] = torch.arange(len(slot), device=device) + first
    tokens = tokens.view(-1, boxes.tile_tokens)
    real = (tokens >= 0).sum(-1)
    order = (tokens < 0).to(torch.int8).argsort(dim=-1, stable=True)
    return tokens.gather(1, order), real


class Chunk(NamedTuple):
    """Units that are processed together, as row numbers of queries and keys."""

    queries: Tensor  # (U, n) int64
    keys: Tensor  # (U, L) int64
    seen: Tensor | None  # (U, L) bool: whether the unit sees the key; None if it sees all


def host_looks(device: torch.device) -> bool:
    """Whether sizes may depend on tensor contents. Off the CPU the host would have to wait, and no CUDA graph
    could be captured."""
    return device.type == "cpu"


class ChunkedCall:
    """A call of attend or attend_backward, cut into chunks."""

    def __init__(self, args: AttendArgs) -> None:
        self.args, device = args, args.device
        self.host_looks = host_looks(device)
        self.batch, self.heads, self.q_tokens, self.width = args.q.shape
        self.kv_heads, self.kv_tokens = args.k.shape[1:3]
        self.queries, self.real_queries = members(args.query_boxes, args.q_start, device)
        self.keys, self.real_keys = members(args.boxes, args.kv_start, device)
        self.listed = torch.arange(args.tiles.shape[-1], device=device) < args.counts.flatten()[:, None]
        self.ids = args.tiles.flatten(0, 2).where(self.listed, len(self.keys) - 1).long()
        video = args.kv_start, args.kv_start + args.boxes.grid.tokens
        every = torch.arange(self.kv_tokens, device=device)
        self.others = torch.cat([every[: video[0]], every[video[1] :]])
        # (B or 1, Nkv): each token that takes part, or NOBODY.
        self.every = every[None]
        if args.key_padding is not None:
            shown = args.key_padding.clone()
            shown[:, video[0] : video[1]] = True
            self.every = every.where(shown, NOBODY)

    def chunks(self) -> Iterator[Chunk]:
        yield from self._video()
        yield from self._not_video()

    def _video(self) -> Iterator[Chunk]:
        """The chunks of query tiles. If the host reads the lists, tiles of equally many queries are grouped
        and sorted by their number of keys, so that little has to be masked."""
        tiles = len(self.queries) - 1
        units = torch.arange(len(self.ids), device=self.args.device)
        classes = [(self.queries.shape[1], units)]
        offered = self.ids.shape[1] * self.keys.shape[1] + len(self.others)
        if self.host_looks:
            size, length = self.real_queries[units % tiles], self.real_keys[self.ids].sum(-1)
            units = (size * (int(length.max()) + 1) + length).argsort(stable=True)
            sizes, counts = size[units].unique_consecutive(return_counts=True)
            classes = list(zip(sizes.tolist(), units.split(counts.tolist()), strict=True))
            offered = int(length.max()) + len(self.others)
        for queries, members_of_class in classes:
            for some in members_of_class.split(self._step(queries, offered)):
                head, tile = some // tiles, some % tiles
                keys = self.keys[self.ids[some]].flatten(1)
                others = self.every[:, self.others].expand(self.batch, -1)[head // self.heads]
                keys = torch.cat([keys, others], dim=1) if len(self.others) else keys
                yield from self._chunk(head, self.queries[tile, :queries], keys)

    def _not_video(self) -> Iterator[Chunk]:
        """The chunks of queries outside of the video, which see every key that takes part."""
        start, device = self.args.q_start, self.args.device
        every = torch.arange(self.q_tokens, device=device)
        others = torch.cat([every[:start], every[start + self.args.query_boxes.grid.tokens :]])
        heads = torch.arange(self.batch * self.heads, device=device)
        # Fused attention keeps no weights in memory; otherwise they limit a chunk.
        most = max(1, SCRATCH_BYTES // (12 * self.kv_tokens))
        for queries in others.split(len(others) if self.host_looks else most) if len(others) else ():
            for some in heads.split(self._step(len(queries), self.kv_tokens)):
                keys = self.every.expand(self.batch, -1)[some // self.heads]
                yield from self._chunk(some, queries.expand(len(some), -1), keys)

    def _step(self, queries: int, keys: int) -> int:
        """The most units of a chunk."""
        size = lse_dtype(self.args.q.dtype).itemsize
        if self.host_looks:
            each, most = 2 * keys * self.width, UNITS_PER_THREAD * torch.get_num_threads()
        else:
            each, most = 3 * keys * (self.width + queries), 1 << 20
        return max(1, min(most, SCRATCH_BYTES // max(1, size * each)))

    def _chunk(self, head: Tensor, queries: Tensor, keys: Tensor) -> Iterator[Chunk]:
        """The chunk of these tokens, with `head` of each unit among all B * H; none if no unit sees a key."""
        seen: Tensor | None = keys >= 0
        if self.host_looks:
            length = seen.sum(-1)
            if not length.all():  # leave out units that see nothing
                some = length.nonzero()[:, 0]
                head, queries, keys, length = head[some], queries[some], keys[some], length[some]
                seen = keys >= 0
            if not len(head):
                return
            if not seen.all():
                keys, seen = _packed(keys, seen, length)
            else:
                seen = None
        batch, own = head // self.heads, head % self.heads
        kv_head = own // (self.heads // self.kv_heads)
        yield Chunk(
            _rows(queries, batch, own, self.q_tokens, self.heads, self.batch),
            _rows(keys, batch, kv_head, self.kv_tokens, self.kv_heads, self.batch),
            seen,
        )


def _packed(keys: Tensor, seen: Tensor, length: Tensor) -> tuple[Tensor, Tensor | None]:
    """The seen tokens, moved to the front, and which places they fill. An unfilled place repeats a seen key:
    any other could hold NaN."""
    longest = int(length.max())
    place = (seen.cumsum(-1) - 1).where(seen, longest)
    packed = keys.new_empty(len(keys), longest + 1).scatter_(1, place, keys)[:, :longest]
    if int(length.min()) == longest:
        return packed, None
    filled = torch.arange(longest, device=keys.device) < length[:, None]
    return packed.where(filled, packed[:, :1]), filled


def _rows(tokens: Tensor, batch: Tensor, head: Tensor, count: int, heads: int, batches: int) -> Tensor:
    """The row numbers of (U, n) tokens; for NOBODY, the one past all rows."""
    rows = (batch[:, None] * count + tokens) * heads + head[:, None]
    return rows.where(tokens >= 0, batches * count * heads)


def _by_row(x: Tensor, chunked: ChunkedCall) -> Tensor:
    """(B, H, N, D) -> rows (B * N * H, D), followed by a row of zeros where one may be read."""
    rows = x.transpose(1, 2).reshape(-1, x.shape[-1])
    return rows if chunked.host_looks else torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """(rows, ...) at (U, n) -> (U, n, ...)."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape)


# --- What is computed ---------------------------------------------------------------------------


def _weights(logits: Tensor, lse: Tensor) -> Tensor:
    """exp(logits - lse): 0 for masked keys, and in rows that see no key."""
    return torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0)[..., None])


def _logits(q: Tensor, k: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    logits = q @ k.transpose(-1, -2) * scale
    return logits if seen is None else logits.masked_fill(~seen[:, None], -torch.inf)


def _in_given_types(kernel: Callable) -> Callable:
    """Without autocast, which may hold in a backward and would narrow the results of matrix products."""

    @functools.wraps(kernel)
    def run(args: Any) -> Any:
        with torch.autocast(args.device.type, enabled=False):
            return kernel(args)

    return run


@_in_given_types
def attend(args: AttendArgs) -> tuple[Tensor, Tensor, Tensor]:
    """Exact softmax attention over the listed tiles and all non-video keys: out (B, Nq, H, D), lse (B, H, Nq)
    in fp32 or wider, and the witness of the grid."""
    chunked, wide = ChunkedCall(args), lse_dtype(args.q.dtype)
    q, k, v = (_by_row(x, chunked) for x in (args.q, args.k, args.v))
    out, lse = torch.zeros_like(q), torch.full(q.shape[:1], -torch.inf, dtype=wide, device=q.device)
    for chunk in chunked.chunks():
        inputs = _take(q, chunk.queries), _take(k, chunk.keys), _take(v, chunk.keys)
        if chunked.host_looks:
            some, some_lse = torch_compat.flash_on_cpu(*inputs, chunk.seen, args.scale)
        else:
            queries, keys, values = (x.to(wide) for x in inputs)
            logits = _logits(queries, keys, chunk.seen, args.scale)
            some_lse = logits.logsumexp(-1)
            some = (_weights(logits, some_lse) @ values).to(q.dtype)
        rows = chunk.queries.flatten()
        out.index_copy_(0, rows, some.flatten(0, 1))
        lse.index_copy_(0, rows, some_lse.flatten())
    batch, heads, tokens, width = args.q.shape
    out = out[: batch * tokens * heads].view(batch, tokens, heads, width)
    lse = lse[: batch * tokens * heads].view(batch, tokens, heads).transpose(1, 2).contiguous()
    return out, lse, args.new_witness()


@_in_given_types
def attend_backward(args: BackwardArgs) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v as (B, N, H, D), with weights recomputed from lse. The gradients of keys are
    summed in the order of the chunks, without atomics."""
    call, chunked, wide = args.call, ChunkedCall(args.call), lse_dtype(args.call.q.dtype)
    q, k, v = (_by_row(x, chunked) for x in (call.q, call.k, call.v))
    grad_out, out = (_by_row(x.transpose(1, 2), chunked) for x in (args.grad_out, args.out))
    lse = _by_row(args.lse[..., None], chunked)[:, 0]
    grad_q, grad_k, grad_v = (torch.zeros_like(x, dtype=wide) for x in (q, k, v))
    for chunk in chunked.chunks():
        queries, keys, values = _take(q, chunk.queries), _take(k, chunk.keys), _take(v, chunk.keys)
        rows = (_take(x, chunk.queries) for x in (grad_out, out, lse))
        inputs = tuple(x.to(wide) for x in (queries, keys, values, *rows))
        gradients: Callable = torch_compat.flash_backward_on_cpu if chunked.host_looks else _gradients
        some_q, some_k, some_v = gradients(*inputs, chunk.seen, call.scale)
        grad_q.index_copy_(0, chunk.queries.flatten(), some_q.flatten(0, 1))
        _add_rows(grad_k, chunk.keys.flatten(), some_k.flatten(0, 1))
        _add_rows(grad_v, chunk.keys.flatten(), some_v.flatten(0, 1))

    def result(rows: Tensor, like: Tensor) -> Tensor:
        batch, heads, tokens, width = like.shape
        return rows[: batch * tokens * heads].to(like.dtype).view(batch, tokens, heads, width)

    return result(grad_q, call.q), result(grad_k, call.k), result(grad_v, call.v)


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, out: Tensor, lse: Tensor, seen: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of a chunk: q, grad_out, out (U, n, D), lse (U, n), k and v (U, L, D)."""
    weights = _weights(_logits(q, k, seen, scale), lse)
    delta = (grad_out * out).sum(-1, keepdim=True)
    score_grad = weights * (grad_out @ v.transpose(-1, -2) - delta) * scale
    return score_grad @ k, score_grad.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ grad_out


def _add_rows(onto: Tensor, rows: Tensor, what: Tensor) -> None:
    """onto[rows] += what, in a fixed order; rows may repeat."""
    if onto.is_cuda:
        onto.index_put_((rows,), what, accumulate=True)  # sorts; index_add_ would use atomics
    else:
        onto.index_add_(0, rows, what)


_KERNELS = Library("vsa_compile", "IMPL")
_KERNELS.impl("select", takes(SelectArgs, select), "CompositeExplicitAutograd")
_KERNELS.impl("attend", takes(AttendArgs, attend), "CompositeExplicitAutograd")
_KERNELS.impl("attend_backward", takes(BackwardArgs, attend_backward), "CompositeExplicitAutograd")
