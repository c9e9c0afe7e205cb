"""From how many video tokens on the kernel at hand beats dense attention: what min_tokens=None stands for.

A table, no timing at run time: the decision is the same in every process, and so are graphs and cache keys.
It holds for the default method, tile and sparsity; what was not measured is not in it, and stays dense.
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

# On GPUs nothing was measured: this is a guess, kept until it is.
TEMPLATES = 4096


class KernelAtHand(NamedTuple):
    """name: as people read it. least: video tokens from which on it beats dense attention, or None where no
    size is known to. measured: whether that is more than a guess. faster: what to do to have a faster one,
    or ""."""

    name: str
    least: int | None
    measured: bool = True
    faster: str = ""


def kernel_at_hand(device: torch.device, dtype: torch.dtype, tile: Sequence[int], width: int) -> KernelAtHand:
    """What a call would run through now; builds the C++ kernel where that serves it.

    Raises OptionError where VSA_COMPILE_CPU names what this processor does not run.
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
