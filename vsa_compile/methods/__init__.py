"""Sparse attention methods: each one short file of plain PyTorch on top of the leaf operators.

A method is a function (q, k, v, gate, site) -> out, all (B, H, N, D). It calls `torch.ops.vsa.select`
and `torch.ops.vsa.attend` and names no device.
May be imported by ops and above; imports grid, errors and torch.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..errors import ArgumentError, unknown_name
from .site import Site
from .vsa import vsa

Method = Callable[[Tensor, Tensor, Tensor, Tensor | None, Site], Tensor]

_METHODS: dict[str, Method] = {"vsa": vsa}


def names() -> tuple[str, ...]:
    """All known method names, sorted."""
    return tuple(sorted(_METHODS))


def get(name: str) -> Method:
    """The method called `name`; ArgumentError with the nearest name if there is none."""
    if name not in _METHODS:
        raise ArgumentError(unknown_name("method", name, names()))
    return _METHODS[name]


__all__ = ["Method", "Site", "get", "names"]
