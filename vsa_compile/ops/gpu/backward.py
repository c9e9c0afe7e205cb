"""Lowers vsa_compile::attend_backward to four templates, all of which add in a fixed order:

attend_dq        the gradient of q, by the lists; also delta
transpose_lists  which query tiles list each key tile
rank_columns     the key tiles, the most often listed first
attend_dkdv      the gradients of k and v, by the transposed lists, in that order
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...grid import Size
from ..args import BackwardArgs
from . import autotune_inputs
from .call import KernelCall
from .configs import choices
from .target import IR, CeilDiv, Target
from .templates import Template

_COLUMNS = {"ROWS": 32, "COLS": 32, "num_warps": 4, "num_stages": 1}  # 8 searches per thread
_RANKS = {"COLS": 32, "num_warps": 4, "num_stages": 1}


def _dq_programs(
    batch: Size, heads: Size, tiles: Size, others: Size, meta: Mapping[str, int], *, cdiv: CeilDiv
) -> tuple:
    blocks = tiles * (meta["Q_SLOTS"] // meta["BLOCK_Q"]) + cdiv(others, meta["BLOCK_Q"])
    return batch * heads * blocks, 1, 1


def _dkdv_programs(
    batch: Size, heads: Size, tiles: Size, others: Size, meta: Mapping[str, int], *, cdiv: CeilDiv
) -> tuple:
    blocks = tiles * (meta["SLOTS"] // meta["BLOCK_K"]) + cdiv(others, meta["BLOCK_K"])
    return batch * heads * blocks, 1, 1


def _column_programs(lines: Size, columns: Size, meta: Mapping[str, int], *, cdiv: CeilDiv) -> tuple:
    return lines * cdiv(columns, meta["COLS"]), 1, 1


_DQ = Template("attend_dq", _dq_programs)
_TRANSPOSE = Template("transpose_lists", _column_programs)
_RANK = Template("rank_columns", _column_programs)
_DKDV = Template("attend_dkdv", _dkdv_programs)
TEMPLATES = (_DQ, _TRANSPOSE, _RANK, _DKDV)


def unsupported(target: Target, args: BackwardArgs) -> str | None:
    """Why the templates cannot serve this call; None if they can."""
    return KernelCall(target, args.call).unsupported()


def lower(target: Target, args: BackwardArgs) -> tuple[IR, IR, IR]:
    """grad_q, grad_k and grad_v, (B, N, H, D)."""
    call, lse = KernelCall(target, args.call), target.contiguous(args.lse)
    delta = target.new_buffer((*call.heads, call.q_tokens), torch.float32, args.lse.get_device())
    grad_q = _grad_q(call, args.grad_out, args.out, lse, delta)
    return grad_q, *_grad_k_and_v(call, args.grad_out, lse, delta, _columns(call))


def _grad_q(call: KernelCall, grad_out: IR, out: IR, lse: IR, delta: IR) -> IR:
    args, q, (batch, heads) = call.args, call.args.q, call.heads
    device, dtype, full = q.get_device(), q.get_dtype(), autotune_inputs.counts_like(args.tiles)
    constants = {
        **call.constants(),
        "RAW_SCALE": args.scale,
        "HAS_OTHER_ROWS": call.has_other_queries,
        "HAS_OTHER_KEYS": call.has_other_queries or call.has_other_keys,
    }
    return call.target.template_buffer(
        _DQ,
        [grad_out, q, args.k, args.v, out, lse, delta, args.tiles, args.counts, *call.trailing_inputs()],
        mutated=[delta], size=(batch, call.q_tokens, heads, call.width), dtype=dtype, device=device,
        launch=(batch, heads, call.q_tiles, call.other_queries), constants=constants,
        configs=call.launches(choices("dq", device, dtype, call.width), (args.k, args.v)),
        # 9, SITE, is 8 under another shape
        examples={7: autotune_inputs.lists_among(call.kv_tiles), 8: full, 9: full},
    )  # fmt: skip


def _columns(call: KernelCall) -> tuple[IR, IR, IR]:
    """starts, columns and order: the transposed lists, and the key tiles by how often they are listed."""
    args, (batch, heads), tiles = call.args, call.heads, call.kv_tiles
    device = args.q.get_device()
    listed = call.q_tiles * args.tiles.get_size()[3]
    columns = call.target.new_buffer((batch, heads, listed), torch.int32, device)
    starts = call.target.template_buffer(
        _TRANSPOSE, [args.tiles, args.counts, columns], mutated=[columns], size=(batch, heads, tiles + 1),
        dtype=torch.int32, device=device, launch=(batch * heads, tiles + 1), constants={}, configs=[_COLUMNS],
    )  # fmt: skip
    order = call.target.template_buffer(
        _RANK, [starts], mutated=[], size=(batch, call.kv_heads, tiles), dtype=torch.int32, device=device,
        launch=(batch * call.kv_heads, tiles), constants={"GROUPS": call.groups}, configs=[_RANKS],
    )  # fmt: skip
    return starts, columns, order


def _grad_k_and_v(
    call: KernelCall, grad_out: IR, lse: IR, delta: IR, columns: tuple[IR, IR, IR]
) -> tuple[IR, IR]:
    args, batch, kv_heads = call.args, call.heads[0], call.kv_heads
    device, dtype = args.q.get_device(), args.q.get_dtype()
    size = (batch, call.kv_tokens, kv_heads, call.width)
    grad_k = call.target.new_buffer(size, dtype, device)
    constants = {
        **call.constants(),
        "RAW_SCALE": args.scale,
        "HAS_OTHER_KEYS": call.has_other_keys,
        "HAS_OTHER_QUERIES": call.has_other_queries or call.has_other_keys,
    }
    valid = autotune_inputs.columns_like(args.tiles, call.kv_tiles)
    grad_v = call.target.template_buffer(
        _DKDV,
        [grad_out, args.q, args.k, args.v, lse, delta, grad_k, *columns, *call.trailing_inputs()],
        mutated=[grad_k], size=size, dtype=dtype, device=device,
        launch=(batch, kv_heads, call.kv_tiles, call.other_keys), constants=constants,
        configs=call.launches(choices("dkdv", device, dtype, call.width), (args.q, grad_out)),
        examples={7 + i: make for i, make in enumerate(valid)},
    )  # fmt: skip
    return grad_k, grad_v
