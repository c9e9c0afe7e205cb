"""The number of video tokens from which the kernel at hand beats dense attention: min_tokens=None.

A table, not a timing at run time, so that every process makes the same decision, with the same graphs and
cache keys. It holds for the default method, tile and sparsity; what was not measured stays dense.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from . import cpu
from .break_even_table import CPU
from .cpu import loader
from .gpu.call import DTYPES, WIDEST_HEAD, too_old

# Nothing was measured on GPUs: this is a guess.
TEMPLATES = 4096


class KernelAtHand(NamedTuple):
    """The kernel that a call runs through. name: for people. least: the number of video tokens from which it
    beats dense attention; None if no size is known to. measured: whether `least` is more than a guess.
    faster: how to get a faster kernel, or ""."""

    name: str
    least: int | None
    measured: bool = True
    faster: str = ""


def kernel_at_hand(device: torch.device, dtype: torch.dtype, tile: Sequence[int], width: int) -> KernelAtHand:
    """The kernel that a call would run through at present; builds the C++ kernel if that serves it.

    Raises OptionError if VSA_COMPILE_CPU names a variant that this processor cannot run.
    """
    if device.type == "cpu":
        return _on_cpu(dtype, tile)
    if device.type == "meta":
        return KernelAtHand("the kernel of the real device", TEMPLATES, measured=False)
    if device.type in ("cuda", "xpu") and dtype in DTYPES and width <= WIDEST_HEAD and not too_old(device):
        return KernelAtHand("the Triton kernel", TEMPLATES, measured=False)
    return KernelAtHand(f"chunked ATen on {device.type} in {_name(dtype)}", None)


def _on_cpu(dtype: torch.dtype, tile: Sequence[int]) -> KernelAtHand:
    variant = loader.asked()
    if variant is not None and dtype in cpu.DTYPES and math.prod(tile) <= cpu.MOST_TILE_TOKENS:
        if loader.kernel(variant) is not None:
            return KernelAtHand(f"the C++ kernel for {variant} in {_name(dtype)}", _least(variant, dtype))
        return _aten(dtype, "install a C++ compiler (g++ or clang++) for a faster kernel")
    return _aten(dtype, f"unset {loader.VARIABLE} for a faster kernel" if variant is None else "")


def _aten(dtype: torch.dtype, faster: str) -> KernelAtHand:
    return KernelAtHand(f"chunked ATen in {_name(dtype)}", _least("aten", dtype), faster=faster)


def _least(kernel: str, dtype: torch.dtype) -> int | None:
    return CPU.get(kernel, {}).get(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
