"""The target of a lowering under Inductor: kernels become nodes of its graph. Values are Inductor IR.

`launch` offers the same functions on tensors.
"""

from __future__ import annotations

from typing import Any

from ... import torch_compat
from ...torch_compat import (
    ceil_div,
    contiguous,
    expanded,
    has_tensor_map,
    is_static,
    new_buffer,
    shape_carrier,
    static_size,
    surely_equal,
)
from .target import IR
from .templates import Template


def inductor_template(template: Template) -> Any:
    """Inductor's object for a template; always the same one."""
    return torch_compat.triton_template(f"vsa_{template.name}", template.programs, template.source)


def template_buffer(template: Template, inputs: list[IR], **facts: Any) -> IR:
    """`torch_compat.template_buffer` for one of our templates."""
    return torch_compat.template_buffer(inductor_template(template), inputs, **facts)


__all__ = [
    "ceil_div",
    "contiguous",
    "expanded",
    "has_tensor_map",
    "inductor_template",
    "is_static",
    "new_buffer",
    "shape_carrier",
    "static_size",
    "surely_equal",
    "template_buffer",
]
