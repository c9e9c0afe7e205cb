"""Attention calls that run eagerly within a prepared model: handed to what `patch_attention` put there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..torch_compat import no_frame, scripts_as
from .calls import running

NAME = "scaled_dot_product_attention"
original: Callable[..., Tensor] = F.scaled_dot_product_attention

_compilers: list[Callable[[Callable], Callable]] = []  # those that `compiled_by` was entered with
_installing = Lock()


def _routed(*args: Any, **kwargs: Any) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention; within a model that `patch_attention` got, an eager
    call becomes a graph of its own."""
    if torch.compiler.is_compiling():
        return original(*args, **kwargs)
    call = running.in_force()
    if call is None or call.attention is None:
        return original(*args, **kwargs)
    return call.attention(*args, **kwargs)


# As that function is found, for pickles and messages.
_routed.__module__, _routed.__name__, _routed.__qualname__ = F.__name__, NAME, NAME


def install() -> None:
    """Route the calls of every module that is loaded, by whatever name it has the function. May be repeated,
    for modules that were loaded since."""
    with _installing:
        no_frame(_routed)
        scripts_as(_routed, original)
        for name, module in [*sys.modules.items()]:
            ours = name.partition(".")[0] in ("torch", "vsa_compile") and module is not F
            for key, value in () if ours else [*getattr(module, "__dict__", {}).items()]:
                if value is original:
                    setattr(module, key, _routed)


@contextmanager
def compiled_by(compiler: Callable[[Callable], Callable]) -> Iterator[None]:
    """While entered, the graphs of eager calls are compiled by `compiler`, in the place of the backend."""
    _compilers.append(compiler)
    try:
        yield
    finally:
        _compilers.remove(compiler)


def compiler() -> Callable[[Callable], Callable] | None:
    """The innermost of `compiled_by`; None outside."""
    return _compilers[-1] if _compilers else None


def modules_on_stack() -> list[nn.Module]:
    """The modules whose methods are being called, innermost first."""
    frame, modules = sys._getframe(1), []
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            modules.append(owner)
        frame = frame.f_back
    return modules


def code_on_stack() -> list[tuple[str, str, int]]:
    """(file, function, line) of the Python code that runs, innermost first, without torch's and ours."""
    frame, code = sys._getframe(1), []
    while frame is not None:
        ours = frame.f_globals.get("__name__", "").partition(".")[0] in ("torch", "vsa_compile", "contextlib")
        if not ours:
            code.append((frame.f_code.co_filename, frame.f_code.co_name, frame.f_lineno))
        frame = frame.f_back
    return code
