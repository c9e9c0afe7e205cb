"""Lowers vsa_compile::attend to its template, attend_fwd; gate and coarse output are fused into its store."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ...grid import Size
from ..args import AttendArgs
from . import autotune_inputs
from .call import KernelCall
from .configs import choices
from .target import IR, CeilDiv, Target
from .templates import Template


def _programs(
    batch: Size, heads: Size, tiles: Size, others: Size, meta: Mapping[str, int], *, cdiv: CeilDiv
) -> tuple:
    blocks = tiles * (meta["Q_SLOTS"] // meta["BLOCK_Q"]) + cdiv(others, meta["BLOCK_Q"])
    return batch * heads * blocks, 1, 1


_FORWARD = Template("attend_fwd", _programs)
TEMPLATES = (_FORWARD,)


def unsupported(target: Target, args: AttendArgs) -> str | None:
    """Why the template cannot serve this call; None if it can."""
    return KernelCall(target, args).unsupported()


def lower(target: Target, args: AttendArgs) -> tuple[IR, IR, IR]:
    """out (B, Nq, H, D), lse and the witness of the grid."""
    call, q = KernelCall(target, args), args.q
    batch, heads = call.heads
    device, dtype = q.get_device(), q.get_dtype()
    lse = target.new_buffer((batch, heads, call.q_tokens), torch.float32, device)
    full = autotune_inputs.counts_like(args.tiles)
    inputs = [q, args.k, args.v, lse, args.tiles, args.counts, *call.trailing_inputs()]
    constants = {
        **call.constants(),
        "LN2": math.log(2),
        "HAS_OTHER_ROWS": call.has_other_queries,
        "HAS_OTHER_KEYS": call.has_other_queries or call.has_other_keys,
    }
    out = target.template_buffer(
        _FORWARD, inputs, mutated=[lse], size=(batch, call.q_tokens, heads, call.width), dtype=dtype,
        device=device, launch=(batch, heads, call.q_tiles, call.other_queries), constants=constants,
        configs=call.launches(choices("forward", device, dtype, call.width), (q, args.k, args.v)),
        # 6, SITE, is 5 under another shape
        examples={4: autotune_inputs.lists_among(call.kv_tiles), 5: full, 6: full},
    )  # fmt: skip
    # A recomputation under another grid is noticed by the shape of this; it has no elements.
    return out, lse, target.new_buffer((*args.grid, 0), dtype, device)
