"""The cost of a sparse call: the method computes it; a plain function is run on meta tensors."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from .. import methods
from ..grid import Grid, Tile, TileGrid
from ..methods import Method
from ..ops.flops import attended_pairs
from ..options import Options
from ..runtime import state


class CallSizes(NamedTuple):
    """The sizes of one attention call: q (B, H, Nq, D), k (B, Hkv, Nkv, D), and where its video lies."""

    q: tuple[int, ...]
    k: tuple[int, ...]
    grid: Grid
    q_start: int
    kv_start: int


class Cost(NamedTuple):
    """kept of total key tiles per query tile, on average. pairs: the query-key pairs that one head computes,
    or as many as correspond to its FLOPs."""

    kept: int
    total: int
    pairs: int


def cost_of(call: CallSizes, options: Options) -> Cost:
    """The cost of a call under the options, at the present step of a schedule. Data-dependent selections cost
    what they keep on average, or, if that is unknown, at most."""
    return _cost(call, options.tile, state.sparsity_now(options), methods.literal(options.method))


@lru_cache(maxsize=256)  # the blocks of a model are alike
def _cost(call: CallSizes, tile: Tile, sparsity: float, method: str) -> Cost:
    boxes = TileGrid(call.grid, tuple(map(min, tile, call.grid)))  # pyright: ignore[reportArgumentType]
    q_tokens, kv_tokens = call.q[2], call.k[2]
    if sparsity == 0:
        return Cost(boxes.tiles, boxes.tiles, q_tokens * kv_tokens)
    q, k = (torch.empty(shape, device="meta") for shape in (call.q, call.k))
    site = methods.Site(boxes, call.q_start, call.kv_start, None, 1.0, sparsity)
    run = methods.get(method)
    if isinstance(run, Method):
        queries, kept = run.attended(q, site)
        pairs = attended_pairs(q_tokens, kv_tokens, boxes.grid, boxes.tile, kept, queries)
        return Cost(kept, boxes.tiles, pairs)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(q, k, k, None, site)
    counts = counter.get_flop_counts()["Global"]
    # As for a Method, the attention alone without the scores; everything if it does not use our operator.
    flops = counts.get(torch.ops.vsa_compile.attend, 0) or counter.get_total_flops()
    pairs = flops // (4 * q.shape[0] * q.shape[1] * q.shape[3])
    fixed = attended_pairs(q_tokens, kv_tokens, boxes.grid, boxes.tile, 0)
    kept = round((pairs - fixed) * boxes.tiles / boxes.grid.tokens**2)
    return Cost(max(0, min(kept, boxes.tiles)), boxes.tiles, pairs)
