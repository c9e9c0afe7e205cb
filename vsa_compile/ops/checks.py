"""Checks of an operator's arguments. Sizes may be symbolic: only what is certainly wrong is refused.

Each raises ArgumentError with the name, what came and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..errors import ArgumentError, bad_value, differ
from ..grid import Size
from ..torch_compat import surely_true


def refuse(name: str, got: object, allowed: str) -> NoReturn:
    raise ArgumentError(bad_value(name, got, allowed))


def check_shape(name: str, x: Tensor, wanted: Iterable[Size | None]) -> None:
    """None in `wanted` allows any size."""
    wanted = tuple(wanted)
    if x.dim() != len(wanted) or any(
        b is not None and surely_true(a != b) for a, b in zip(x.shape, wanted, strict=True)
    ):
        shown = ", ".join("any" if size is None else str(size) for size in wanted)
        refuse(f"{name}.shape", tuple(x.shape), f"({shown})")


def check_box(name: str, box: Sequence[Size] | None) -> None:
    if box is not None and (len(box) != 3 or any(surely_true(n < 1) for n in box)):
        refuse(name, tuple(box), "three positive integers (frames, rows, cols)")


def check_devices(args: Any, **tensors: Tensor) -> None:
    """All tensors must be on one device."""
    named = tensors | {x.name: getattr(args, x.name) for x in fields(args)}
    devices = {name: x.device for name, x in named.items() if isinstance(x, Tensor)}
    if len(set(devices.values())) > 1:
        raise ArgumentError(differ("device", ", ".join(f"{name} {x}" for name, x in devices.items())))


def check_type(name: str, x: Tensor, dtype: torch.dtype) -> None:
    if x.dtype != dtype:
        refuse(f"{name}.dtype", x.dtype, str(dtype))
