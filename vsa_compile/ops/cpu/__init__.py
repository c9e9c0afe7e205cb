"""CPU kernels: the C++ of kernel.cpp where it can run, ATen elsewhere.

The environment variable VSA_COMPILE_CPU=aten, read at every call, turns the C++ off.
May be imported by everything above ops; imports aten, args and torch_compat.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.library import Library

from .. import aten
from ..args import AttendArgs, BackwardArgs, SelectArgs, takes
from . import loader
from .loader import Call, Kernel, View

MOST_TILE_TOKENS = 256  # call.h: kMostTokens
MOST_WIDTH = 256


def _allowed(dtype: torch.dtype) -> Kernel | None:
    if os.environ.get("VSA_COMPILE_CPU") == "aten" or dtype not in loader.DTYPES:
        return None
    return loader.kernel(dtype)


def _kernel_for(args: AttendArgs) -> Kernel | None:
    """The C++ kernel if it serves this call."""
    width, most = args.q.shape[-1], max(args.boxes.tile_tokens, args.query_boxes.tile_tokens)
    fits = width % 16 == 0 and width <= MOST_WIDTH and most <= MOST_TILE_TOKENS and not args.empty
    return _allowed(args.q.dtype) if fits else None


def select(args: SelectArgs) -> tuple[Tensor, Tensor]:
    """`aten.select`, several times faster for fp32 scores and a fixed number of tiles."""
    scores, fixed = args.scores, args.threshold is None and args.count is None
    kernel = _allowed(torch.float32) if fixed and scores.dtype == torch.float32 else None
    if kernel is None or not scores.numel():
        return aten.select(args)
    tiles, counts = args.new_outputs()
    kernel.select(scores.contiguous(), args.at_most, tiles)
    return tiles, counts.fill_(args.at_most)


def _rows(x: Tensor) -> Tensor:
    """x with a contiguous last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _heads_first(x: Tensor) -> View:
    """(B, H, N, D)."""
    return View(x.data_ptr(), *x.stride()[:3])


def _tokens_first(x: Tensor) -> View:
    """(B, N, H, D)."""
    return _heads_first(x.transpose(1, 2))


def _call(args: AttendArgs) -> tuple[Call, tuple[Tensor | None, ...]]:
    """The arguments as kernel.cpp takes them, and the tensors that must outlive the call."""
    q, k, v = _rows(args.q), _rows(args.k), _rows(args.v)
    tiles, counts, key_padding = args.tiles.contiguous(), args.counts.contiguous(), args.key_padding
    call = Call(
        batch=q.shape[0], heads=q.shape[1], kv_heads=k.shape[1], q_tokens=q.shape[2],
        kv_tokens=k.shape[2], width=q.shape[3], q_start=args.q_start, kv_start=args.kv_start,
        listed=tiles.shape[-1], dtype=loader.DTYPES[q.dtype], scale=args.scale,
        tiles=tiles.data_ptr(), counts=counts.data_ptr(),
        q=_heads_first(q), k=_heads_first(k), v=_heads_first(v),
    )  # fmt: skip
    call.grid[:], call.tile[:] = args.boxes.grid, args.boxes.tile
    call.q_grid[:], call.q_tile[:] = args.query_boxes.grid, args.query_boxes.tile
    if key_padding is not None:
        key_padding = _rows(key_padding)
        call.key_padding = key_padding.data_ptr()
        call.padding_batch = key_padding.stride(0) if key_padding.shape[0] > 1 else 0
    return call, (q, k, v, tiles, counts, key_padding)


def attend(args: AttendArgs) -> tuple[Tensor, Tensor, Tensor]:
    """`aten.attend`."""
    kernel = _kernel_for(args)
    if kernel is None:
        return aten.attend(args)
    call, _alive = _call(args)
    out, lse, witness = args.new_outputs()
    call.out, call.lse = _tokens_first(out), lse.data_ptr()
    kernel.attend(call)
    return out, lse, witness


def attend_backward(args: BackwardArgs) -> tuple[Tensor, Tensor, Tensor]:
    """`aten.attend_backward`."""
    kernel = _kernel_for(args.call)
    if kernel is None:
        return aten.attend_backward(args)
    grad_out, out, lse = _rows(args.grad_out), _rows(args.out), args.lse.contiguous()
    call, _alive = _call(args.call)
    grad_q, grad_k, grad_v = args.new_outputs()
    if call.key_padding:  # keys that take no part are not visited
        grad_k.zero_()
        grad_v.zero_()
    call.lse = lse.data_ptr()
    call.out, call.grad_out = _tokens_first(out), _tokens_first(grad_out)
    call.grad_q, call.grad_k, call.grad_v = (_tokens_first(x) for x in (grad_q, grad_k, grad_v))
    kernel.attend_backward(call)
    return grad_q, grad_k, grad_v


_KERNELS = Library("vsa_compile", "IMPL")
_KERNELS.impl("select", takes(SelectArgs, select), "CPU")
_KERNELS.impl("attend", takes(AttendArgs, attend), "CPU")
_KERNELS.impl("attend_backward", takes(BackwardArgs, attend_backward), "CPU")
