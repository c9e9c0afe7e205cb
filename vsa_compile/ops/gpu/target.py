"""The interfaces in this folder: where kernels go (`Target`), and how a leaf is lowered to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch

from ...grid import Size
from .templates import Template

IR: TypeAlias = Any  # a value of Inductor's IR, or a tensor with its methods (launch.TensorIR)
CeilDiv: TypeAlias = Callable[[Size, int], Size]  # how a launch grid divides sizes, rounding up


class Target(Protocol):
    """Where the kernels of a lowering go: `graph` makes nodes of them, `launch` runs them.

    Its values are Inductor IR, or tensors with the same methods; sizes may be symbolic.
    """

    def template_buffer(self, template: Template, inputs: list[IR], /, **facts: Any) -> IR:
        """The output of a template; facts: the keyword arguments of `launch.prepared`."""
        ...

    def new_buffer(self, size: tuple, dtype: torch.dtype, device: torch.device, /) -> IR:
        """Uninitialised memory."""
        ...

    def shape_carrier(self, like: IR, sizes: tuple, /) -> IR:
        """A view with these sizes, whose entries are never read."""
        ...

    def expanded(self, x: IR, size: tuple, /) -> IR: ...
    def contiguous(self, x: IR, /) -> IR: ...
    def is_static(self, size: Size, /) -> bool: ...
    def static_size(self, size: Size, /) -> int: ...
    def ceil_div(self, size: Size, by: int, /) -> Size: ...

    def has_tensor_map(self, x: IR, /) -> bool:
        """Whether a kernel may read x through a tensor map (TMA)."""
        ...

    def surely_equal(self, expression: Size, value: int, /) -> bool:
        """Whether both are equal at every run."""
        ...


class Lowering(Protocol):
    """How one leaf becomes kernels: the modules `attend`, `backward` and `selection`."""

    TEMPLATES: tuple[Template, ...]

    def unsupported(self, target: Target, args: Any, /) -> str | None:
        """Why the templates cannot serve this call; None if they can."""
        ...

    def lower(self, target: Target, args: Any, /) -> tuple[IR, ...]:
        """The leaf's results."""
        ...
