"""CPU kernels: the C++ of kernel.cpp where it can run, ATen elsewhere.

The environment variable VSA_COMPILE_CPU, read at every call, picks a slower one: avx2, plain (of what the
processor offers), or aten, which turns the C++ off.
May be imported by everything above ops; imports aten, ops and torch_compat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from .. import aten
from ..schema import witness
from . import loader

MOST_TILE_TOKENS = 256  # call.h: kMostTokens
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _kernel(dtype: torch.dtype) -> Any:
    """The C++ operators that serve the type now, or None."""
    variant = loader.asked()
    return None if variant is None or dtype not in DTYPES else loader.kernel(variant)


def _kernel_for(q: Tensor, k: Tensor, *tiles: Sequence[int]) -> Any:
    """The C++ operators if they serve this call. They check its shapes themselves."""
    fits = all(math.prod(tile) <= MOST_TILE_TOKENS for tile in tiles)
    return _kernel(q.dtype) if fits and q.numel() and k.numel() else None


def select(
    scores: Tensor, at_most: int, threshold: Tensor | None = None, count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`aten.select`, several times faster for fp32 scores and a fixed number of tiles."""
    fixed = threshold is None and count is None and 1 <= at_most <= scores.shape[-1]
    kernel = _kernel(torch.float32) if fixed and scores.dtype == torch.float32 else None
    if kernel is None or not scores.numel():
        return aten.select(scores, at_most, threshold, count)
    tiles = scores.new_empty((*scores.shape[:-1], at_most), dtype=torch.int32)
    kernel.select(scores.reshape(-1, scores.shape[-1]).contiguous(), tiles.view(-1, at_most))
    return tiles, torch.full(scores.shape[:-1], at_most, dtype=torch.int32)


def _rows(x: Tensor) -> Tensor:
    """x with a contiguous last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _site(
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
) -> tuple[Any, ...]:
    """The same as the C++ takes it: nothing is optional but the padding."""
    padding = None if key_padding is None else key_padding.contiguous()
    lists = (tiles.contiguous(), counts.contiguous())
    return *lists, grid, tile, q_start, kv_start, padding, scale, q_grid or grid, q_tile or tile


def attend(q: Tensor, k: Tensor, v: Tensor, *site: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`aten.attend`."""
    plain = _site(*site)
    kernel = _kernel_for(q, k, plain[3], plain[-1])
    if kernel is None:
        return aten.attend(q, k, v, *site)
    batch, heads, tokens, width = q.shape
    out = q.new_empty((batch, tokens, heads, width))
    lse = q.new_empty((batch, heads, tokens), dtype=torch.float32)
    kernel.attend(_rows(q), _rows(k), _rows(v), *plain, out, lse)
    return out, lse, witness(q, site[2])


def attend_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`aten.attend_backward`."""
    plain = _site(*rest[:8], *rest[9:])  # rest[8] is the witness
    kernel = _kernel_for(q, k, plain[3], plain[-1])
    if kernel is None:
        return aten.attend_backward(grad_out, q, k, v, out, lse, *rest)

    def like(x: Tensor, new: Any) -> Tensor:
        return new(x, (x.shape[0], x.shape[2], x.shape[1], x.shape[3]))

    # Keys that take no part are not visited.
    new = torch.Tensor.new_empty if plain[6] is None else torch.Tensor.new_zeros
    grads = like(q, torch.Tensor.new_empty), like(k, new), like(v, new)
    rows = [_rows(x) for x in (grad_out, q, k, v, out)]
    kernel.attend_backward(*rows, lse.contiguous(), *plain, *grads)
    return grads


_KERNELS = Library("vsa_compile", "IMPL")
_KERNELS.impl("select", select, "CPU")
_KERNELS.impl("attend", attend, "CPU")
_KERNELS.impl("attend_backward", attend_backward, "CPU")
