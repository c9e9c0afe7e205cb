"""What the parts of this folder ask of each other: where kernels go, and how a leaf is lowered to them."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from .templates import Template


class Target(Protocol):
    """Where a lowering's kernels go: `graph`, where they become nodes, or `launch`, where they run.

    Its values are Inductor IR, or tensors in that guise; sizes may be symbolic.
    """

    def template_buffer(self, template: Template, inputs: list[Any], /, **facts: Any) -> Any:
        """The output of a template; facts: those of `launch.prepared`."""
        ...

    def new_buffer(self, size: Any, dtype: torch.dtype, device: torch.device, /) -> Any:
        """Memory that holds anything."""
        ...

    def shape_carrier(self, like: Any, sizes: Any, /) -> Any:
        """A view of these sizes, whose entries nobody reads."""
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
        """Whether both are equal whenever the kernel runs."""
        ...


class Lowering(Protocol):
    """How one leaf becomes kernels: `attend`, `backward`, `selection`."""

    TEMPLATES: tuple[Template, ...]

    def unsupported(self, target: Target, args: Any, /) -> str | None:
        """Why the templates cannot serve this call; None if they can."""
        ...

    def lower(self, target: Target, args: Any, /) -> tuple[Any, ...]:
        """The leaf's results."""
        ...
