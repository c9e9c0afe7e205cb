"""Builds kernel.cpp on first use, for the instruction set that this processor offers or the user selects, and
loads it; logs once if that fails.
"""

from __future__ import annotations

import functools
import logging
import os
import platform
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ... import errors, torch_compat
from ...errors import OptionError

log = logging.getLogger("vsa_compile.cpu")

VARIABLE = "VSA_COMPILE_CPU"
_FOLDER = Path(__file__).parent
_NOTICE_AFTER = 2.0  # seconds; a cached library loads in less


@dataclass(frozen=True)
class _Variant:
    """One compilation of kernel.cpp. `flags` follow Inductor's own flags, which include -march=native."""

    capability: str  # at::vec's name of the instruction set
    flags: tuple[str, ...]  # for g++ and clang++
    windows: tuple[str, ...] = ()  # for Microsoft's compiler


_X86 = ("-march=x86-64",)  # only what every processor has
_VARIANTS = {
    "avx512": _Variant(
        "AVX512", ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"), ("/arch:AVX512",)
    ),
    "avx2": _Variant("AVX2", (*_X86, "-mavx2", "-mfma", "-mf16c"), ("/arch:AVX2",)),
    "neon": _Variant("NEON", ()),
    "plain": _Variant("DEFAULT", _X86 if platform.machine() in ("x86_64", "AMD64") else ()),
}


def variants() -> tuple[str, ...]:
    """The variants that this processor can run, fastest first."""
    if platform.machine() in ("arm64", "aarch64"):
        return ("neon", "plain")
    capability = torch.backends.cpu.get_cpu_capability()
    offered = ("avx512", "avx2") if "AVX512" in capability else ("avx2",) if capability == "AVX2" else ()
    return (*offered, "plain")


def asked() -> str | None:
    """The variant that calls use at present, or None for ATen: the fastest, unless VSA_COMPILE_CPU names one.

    Raises OptionError if it names a variant that this processor cannot run.
    """
    named = os.environ.get(VARIABLE, "")
    if named == "aten":
        return None
    offered = variants()
    if named and named not in offered:
        raise OptionError(errors.no_such_variant(VARIABLE, named, offered))
    return named or offered[0]


def source(variant: str) -> str:
    """kernel.cpp with our headers inlined, so that caches are keyed by the whole text and the flags."""
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

    return f"{_definitions(variant)}\n{inlined('kernel.cpp')}"


def _definitions(variant: str) -> str:
    """The macros that at::vec and kernel.cpp depend on, independent of Inductor's command line."""
    capability = _VARIANTS[variant].capability
    known = [f"#undef CPU_CAPABILITY_{each.capability}" for each in _VARIANTS.values()]
    chosen = [
        "#undef CPU_CAPABILITY",
        f"#define CPU_CAPABILITY {capability}",
        f"#define CPU_CAPABILITY_{capability}",
        f"#define VSA_VARIANT {_namespace(variant)}",
    ]
    return "\n".join((*known, *chosen))


def _namespace(variant: str) -> str:
    return f"vsa_compile_{variant}"


def flags(variant: str) -> tuple[str, ...]:
    """The flags for the compiler that Inductor uses on this platform."""
    return _VARIANTS[variant].windows if platform.system() == "Windows" else _VARIANTS[variant].flags


_building = threading.Lock()  # a second thread waits, then loads what the first has built


def _build(variant: str) -> Any:
    """Compile, or load from Inductor's cache; logs a notice if the user has to wait for the compiler."""
    message = f"compiling the CPU attention kernel ({variant}): some seconds, once per machine"
    notice = threading.Timer(_NOTICE_AFTER, log.warning, (message,))
    notice.daemon = True
    notice.start()
    try:
        with _building:
            torch_compat.load_cpp(source(variant), flags(variant))
    finally:
        notice.cancel()
    return getattr(torch.ops, _namespace(variant))


@functools.cache
def kernel(variant: str) -> Any:
    """The operators attend, attend_backward and select of a variant; None, and a log line, on failure."""
    try:
        return _build(variant)
    except Exception as error:  # any failure of a compiler or linker: ATen can compute instead
        log.warning(
            "the CPU attention kernel is not available, ATen runs instead, several times slower: %s", error
        )
        return None
