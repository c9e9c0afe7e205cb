"""Builds kernel.cpp on first use and loads it; says once, in the log, when that cannot be.

May be imported by cpu; imports torch_compat.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import re
import threading
from pathlib import Path

import torch

from ... import torch_compat

log = logging.getLogger("vsa_compile.cpu")

_FOLDER = Path(__file__).parent
_NOTICE_AFTER = 2.0  # seconds; a cached library loads in less

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class View(ctypes.Structure):
    """A (B, heads, N, D) tensor whose last dimension is contiguous; strides in elements."""

    _fields_ = [(name, ctypes.c_int64) for name in ("data", "batch", "head", "token")]


class Call(ctypes.Structure):
    """`struct Call` of kernel.cpp, field by field."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("batch", "heads", "kv_heads", "q_tokens", "kv_tokens", "width")
        ),
        ("grid", ctypes.c_int64 * 3),
        ("tile", ctypes.c_int64 * 3),
        ("q_grid", ctypes.c_int64 * 3),
        ("q_tile", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("q_start", "kv_start", "listed", "padding_batch", "dtype")),
        *((name, ctypes.c_void_p) for name in ("tiles", "counts", "key_padding")),
        ("scale", ctypes.c_double),
        *((name, View) for name in ("q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v")),
        ("lse", ctypes.c_void_p),
    ]


class KernelError(RuntimeError):
    """The C++ kernel failed."""


class Kernel:
    """The functions of kernel.cpp. The GIL is released while they run."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def attend(self, call: Call) -> None:
        self._run("vsa_attend", ctypes.byref(call))

    def attend_backward(self, call: Call) -> None:
        self._run("vsa_attend_backward", ctypes.byref(call))

    def select(self, scores: torch.Tensor, kept: int, tiles: torch.Tensor) -> None:
        """(..., M) f32 contiguous scores into (..., kept) int32 contiguous tiles."""
        rows = tiles.numel() // kept
        sizes = (ctypes.c_int64(size) for size in (rows, scores.shape[-1], kept))
        self._run("vsa_select", ctypes.c_void_p(scores.data_ptr()), *sizes, ctypes.c_void_p(tiles.data_ptr()))

    def probe(self, dtype: torch.dtype) -> None:
        """Raises KernelError if this processor cannot multiply matrices of the type."""
        self._run("vsa_probe", ctypes.c_int64(DTYPES[dtype]))

    def _run(self, name: str, *arguments: object) -> None:
        message = ctypes.create_string_buffer(4096)
        if getattr(self._library, name)(*arguments, message, ctypes.c_int64(len(message))):
            raise KernelError(message.value.decode(errors="replace"))


def source() -> str:
    """kernel.cpp with our headers in place, so that the text alone is the key of every cache."""
    seen: set[str] = set()

    def inlined(name: str) -> str:
        text = (_FOLDER / name).read_text()
        return re.sub(r'^(?:#include "(.+)"|#pragma once)$', include, text, flags=re.MULTILINE)

    def include(match: re.Match[str]) -> str:
        name = match[1]
        if name is None or name in seen:
            return ""
        seen.add(name)
        return inlined(name)

    return inlined("kernel.cpp")


def _build() -> Kernel:
    """Compile, or load from Inductor's cache. A user who waits for the compiler is told so."""
    load = torch_compat.cpp_loader()
    message = "compiling the CPU attention kernel: some seconds, once per machine"
    notice = threading.Timer(_NOTICE_AFTER, log.warning, (message,))
    notice.daemon = True
    notice.start()
    try:
        return Kernel(load(source()))
    finally:
        notice.cancel()


@functools.cache
def _kernel() -> Kernel | None:
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        reason: object = (
            f"it needs AVX-512, and this processor offers {torch.backends.cpu.get_cpu_capability()}"
        )
    else:
        try:
            return _build()
        except Exception as error:  # whatever a compiler or linker may say: ATen still computes
            reason = error
    log.warning(
        "the CPU attention kernel is not available, ATen runs instead, several times slower: %s", reason
    )
    return None


@functools.cache
def kernel(dtype: torch.dtype) -> Kernel | None:
    """The compiled kernel if it serves `dtype` here, else None, with the reason in the log."""
    built = _kernel()
    if built is None:
        return None
    try:
        built.probe(dtype)
    except KernelError as error:
        log.warning("the CPU attention kernel cannot run in %s here, ATen runs instead: %s", dtype, error)
        return None
    return built
