"""CPU kernels: the C++ of kernel.cpp where it can run, ATen elsewhere.

The environment variable VSA_COMPILE_CPU=aten, read at every call, turns the C++ off.
May be imported by everything above ops; imports aten, ops and torch_compat.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from .. import aten
from ..schema import consistent, witness
from . import loader
from .loader import Call, Kernel, View

MOST_TILE_TOKENS = 256  # call.h: kMostTokens
MOST_WIDTH = 256


def _allowed(dtype: torch.dtype) -> Kernel | None:
    if os.environ.get("VSA_COMPILE_CPU") == "aten" or dtype not in loader.DTYPES:
        return None
    return loader.kernel(dtype)


def _kernel_for(q: Tensor, k: Tensor, v: Tensor, *site: Any) -> Kernel | None:
    """The C++ kernel if it serves this call."""
    tile, q_tile = site[3], site[9] if len(site) > 9 else None
    most = max(math.prod(tile), math.prod(q_tile or tile))
    fits = q.shape[-1] % 16 == 0 and q.shape[-1] <= MOST_WIDTH and most <= MOST_TILE_TOKENS
    return _allowed(q.dtype) if fits and consistent(q, k, v, *site) else None


def select(
    scores: Tensor, at_most: int, threshold: Tensor | None = None, count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`aten.select`, several times faster for fp32 scores and a fixed number of tiles."""
    fixed = threshold is None and count is None and 1 <= at_most <= scores.shape[-1]
    kernel = _allowed(torch.float32) if fixed and scores.dtype == torch.float32 else None
    if kernel is None or not scores.numel():
        return aten.select(scores, at_most, threshold, count)
    tiles = scores.new_empty((*scores.shape[:-1], at_most), dtype=torch.int32)
    kernel.select(scores.contiguous(), at_most, tiles)
    return tiles, torch.full(scores.shape[:-1], at_most, dtype=torch.int32)


def _rows(x: Tensor) -> Tensor:
    """x with a contiguous last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _heads_first(x: Tensor) -> View:
    """(B, H, N, D)."""
    return View(x.data_ptr(), *x.stride()[:3])


def _tokens_first(x: Tensor) -> View:
    """(B, N, H, D)."""
    return _heads_first(x.transpose(1, 2))


def _call(
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
    q_grid: Sequence[int] | None = None,
    q_tile: Sequence[int] | None = None,
) -> tuple[Call, tuple[Tensor | None, ...]]:
    """The arguments as kernel.cpp takes them, and the tensors that must outlive the call."""
    q, k, v = _rows(q), _rows(k), _rows(v)
    tiles, counts = tiles.contiguous(), counts.contiguous()
    call = Call(
        batch=q.shape[0], heads=q.shape[1], kv_heads=k.shape[1], q_tokens=q.shape[2],
        kv_tokens=k.shape[2], width=q.shape[3], q_start=q_start, kv_start=kv_start,
        listed=tiles.shape[-1], dtype=loader.DTYPES[q.dtype], scale=scale,
        tiles=tiles.data_ptr(), counts=counts.data_ptr(),
        q=_heads_first(q), k=_heads_first(k), v=_heads_first(v),
    )  # fmt: skip
    call.grid[:], call.tile[:] = tuple(grid), tuple(tile)
    call.q_grid[:], call.q_tile[:] = tuple(q_grid or grid), tuple(q_tile or tile)
    if key_padding is not None:
        key_padding = _rows(key_padding)
        call.key_padding = key_padding.data_ptr()
        call.padding_batch = key_padding.stride(0) if key_padding.shape[0] > 1 else 0
    return call, (q, k, v, tiles, counts, key_padding)


def attend(q: Tensor, k: Tensor, v: Tensor, *site: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`aten.attend`."""
    kernel = _kernel_for(q, k, v, *site)
    if kernel is None:
        return aten.attend(q, k, v, *site)
    call, _alive = _call(q, k, v, *site)
    batch, heads, tokens, width = q.shape
    out = q.new_empty((batch, tokens, heads, width))
    lse = q.new_empty((batch, heads, tokens), dtype=torch.float32)
    call.out, call.lse = _tokens_first(out), lse.data_ptr()
    kernel.attend(call)
    return out, lse, witness(q, site[2])


def attend_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`aten.attend_backward`."""
    *site, _witness = rest[:9]
    site += rest[9:]
    kernel = _kernel_for(q, k, v, *site)
    if kernel is None or grad_out.dtype != q.dtype:
        return aten.attend_backward(grad_out, q, k, v, out, lse, *rest)
    grad_out, out, lse = _rows(grad_out), _rows(out), lse.contiguous()
    call, _alive = _call(q, k, v, *site)

    def like(x: Tensor) -> Tensor:
        return x.new_empty((x.shape[0], x.shape[2], x.shape[1], x.shape[3]))

    grad_q, grad_k, grad_v = like(q), like(k), like(v)
    if call.key_padding:  # keys that take no part are not visited
        grad_k.zero_()
        grad_v.zero_()
    call.lse = lse.data_ptr()
    call.out, call.grad_out = _tokens_first(out), _tokens_first(grad_out)
    call.grad_q, call.grad_k, call.grad_v = (_tokens_first(x) for x in (grad_q, grad_k, grad_v))
    kernel.attend_backward(call)
    return grad_q, grad_k, grad_v


_KERNELS = Library("vsa_compile", "IMPL")
_KERNELS.impl("select", select, "CPU")
_KERNELS.impl("attend", attend, "CPU")
_KERNELS.impl("attend_backward", attend_backward, "CPU")
