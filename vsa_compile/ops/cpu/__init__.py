"""CPU kernels: the C++ of kernel.cpp if it can run, else ATen.

The environment variable VSA_COMPILE_CPU, read at every call, selects a slower one: avx2 or plain (if the
processor offers it), or aten, which turns the C++ off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from .. import aten
from ..args import AttendArgs, BackwardArgs, SelectArgs, takes
from . import loader

MOST_TILE_TOKENS = 256  # call.h: kMostTokens
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _kernel(dtype: torch.dtype) -> Any:
    """The C++ operators for a dtype, or None."""
    variant = loader.asked()
    return None if variant is None or dtype not in DTYPES else loader.kernel(variant)


def _kernel_for(args: AttendArgs) -> Any:
    """The C++ operators if they can serve this call, or None."""
    most = max(args.boxes.tile_tokens, args.query_boxes.tile_tokens)
    return _kernel(args.q.dtype) if most <= MOST_TILE_TOKENS and not args.empty else None


def select(args: SelectArgs) -> tuple[Tensor, Tensor]:
    """`aten.select`; several times faster for fp32 scores and a fixed number of tiles."""
    scores, fixed = args.scores, args.threshold is None and args.count is None
    kernel = _kernel(torch.float32) if fixed and scores.dtype == torch.float32 else None
    if kernel is None or not scores.numel():
        return aten.select(args)
    tiles, counts = args.new_outputs()
    kernel.select(scores.reshape(-1, scores.shape[-1]).contiguous(), tiles.view(-1, args.at_most))
    return tiles, counts.fill_(args.at_most)


def _rows(x: Tensor) -> Tensor:
    """x with a contiguous last dimension, copied if necessary."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _tokens(args: AttendArgs) -> tuple[Tensor, Tensor, Tensor]:
    return _rows(args.q), _rows(args.k), _rows(args.v)


def _site(args: AttendArgs) -> tuple[object, ...]:
    """The other arguments in the form of the C++ operators, where only the padding is optional."""
    padding = None if args.key_padding is None else args.key_padding.contiguous()
    keys, queries = args.boxes, args.query_boxes
    lists = (args.tiles.contiguous(), args.counts.contiguous(), keys.grid, keys.tile)
    return *lists, args.q_start, args.kv_start, padding, args.scale, queries.grid, queries.tile


def attend(args: AttendArgs) -> tuple[Tensor, Tensor, Tensor]:
    """As `aten.attend`."""
    kernel = _kernel_for(args)
    if kernel is None:
        return aten.attend(args)
    out, lse, witness = args.new_outputs()
    kernel.attend(*_tokens(args), *_site(args), out, lse)
    return out, lse, witness


def attend_backward(args: BackwardArgs) -> tuple[Tensor, Tensor, Tensor]:
    """As `aten.attend_backward`."""
    kernel = _kernel_for(args.call)
    if kernel is None:
        return aten.attend_backward(args)
    grad_q, grad_k, grad_v = args.new_outputs()
    if args.call.key_padding is not None:  # the kernel does not visit keys that take no part
        grad_k.zero_()
        grad_v.zero_()
    forward = (_rows(args.grad_out), *_tokens(args.call), _rows(args.out), args.lse.contiguous())
    kernel.attend_backward(*forward, *_site(args.call), grad_q, grad_k, grad_v)
    return grad_q, grad_k, grad_v


_KERNELS = Library("vsa_compile", "IMPL")
_KERNELS.impl("select", takes(SelectArgs, select), "CPU")
_KERNELS.impl("attend", takes(AttendArgs, attend), "CPU")
_KERNELS.impl("attend_backward", takes(BackwardArgs, attend_backward), "CPU")
