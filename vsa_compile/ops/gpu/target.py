"""The interfaces in this folder: where kernels go (`Target`), and how a leaf is lowered to them."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from .templates import Template


class Target(Protocol):
    """Where the kernels of a lowering go: `graph` makes nodes of them, `launch` runs them.

    Its values are Inductor IR, or tensors with the same methods; sizes may be symbolic.
    """

    def template_buffer(self, template: Template, inputs: list[Any], /, **facts: Any) -> Any:
        """The output of a template; facts: the keyword arguments of `launch.prepared`."""
        ...

    def new_buffer(self, size: Any, dtype: torch.dtype, device: torch.device, /) -> Any:
        """Uninitialised memory."""
        ...

    def shape_carrier(self, like: Any, sizes: Any, /) -> Any:
        """A view with these sizes, whose entries are never read."""
        ...

    def expanded(self, x: Any, size: Any, /) -> Any: ...
    def contiguous(self, x: Any, /) -> Any: ...
    def is_static(self, size: Any, /) -> bool: ...
    def static_size(self, size: Any, /) -> int: ...
    def ceil_div(self, size: Any, by: int, /) -> Any: ...

    def has_tensor_map(self, x: Any, /) -> bool:
        """Whether a kernel may read x through a tensor map (TMA)."""
        ...

    def surely_equal(self, expression: Any, value: int, /) -> bool:
        """Whether both are equal at every run."""
        ...


class Lowering(Protocol):
    """How one leaf becomes kernels: the modules `attend`, `backward` and `selection`."""

    TEMPLATES: tuple[Template, ...]

    def unsupported(self, target: Target, args: Any, /) -> str | None:
        """Why the templates cannot serve this call; None if they can."""
        ...

    def lower(self, target: Target, args: Any, /) -> tuple[Any, ...]:
        """The leaf's results."""
        ...
