"""Operators: their registered names, what they write, and which tensors share memory."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch.fx import Node


def owned_namespaces() -> tuple[object, ...]:
    """The namespaces in which torch keeps functions that graphs call, apart from torch, torch.Tensor and
    torch.nn.functional. Checked on torch 2.13.
    """
    compiled: Any = torch._C
    names = ("_nn", "_linalg", "_special", "_fft", "_VariableFunctions")
    return (*(getattr(compiled, name) for name in names), torch.functional)


def registered_name(called: object) -> str | None:
    """The full name of an operator registered with torch: "aten::view", "vsa_compile::gate",
    "higher_order::wrap"; None for anything else. The name is unique in a process. Checked on torch 2.13."""
    if isinstance(called, torch._ops.OpOverload):
        return called._schema.name
    if isinstance(called, torch._ops.OpOverloadPacket):
        return called._qualified_op_name
    if isinstance(called, torch._ops.HigherOrderOperator):
        return f"higher_order::{called.name()}"
    return None


def written_arguments(node: Node) -> list[Node] | None:
    """The argument nodes that a registered operator writes to, by its schema; None if there is no schema.

    Checked on torch 2.13.
    """
    called: Any = node.target
    if isinstance(called, torch._ops.OpOverloadPacket):
        overloads = [getattr(called, name) for name in called.overloads()]
    elif isinstance(called, torch._ops.OpOverload):
        overloads = [called]
    else:
        return None
    written: list[object] = []
    for overload in overloads:
        for position, one in enumerate(overload._schema.arguments):
            if one.alias_info is not None and one.alias_info.is_write:
                value = node.kwargs.get(one.name, node.args[position] if position < len(node.args) else None)
                written += value if isinstance(value, (tuple, list)) else [value]
    return [value for value in dict.fromkeys(written) if isinstance(value, Node)]


def storage_of(tensor: torch.Tensor) -> Hashable | None:
    """A key that all views of one memory share, fake tensors included. Checked on torch 2.13."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a subclass without memory of its own
        return None


def bytes_of(tensor: torch.Tensor) -> tuple[int | torch.SymInt, int | torch.SymInt]:
    """(bytes of a tensor's elements, bytes of its storage)."""
    return tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()


def is_state(node: Node) -> bool:
    """Whether a graph input is a parameter, a buffer or another tensor that a module holds.

    Without Dynamo's record of the source only parameters are recognised. Checked on torch 2.13.
    """
    if isinstance(node.meta.get("example_value", node.meta.get("val")), torch.nn.Parameter):
        return True
    source = getattr(node.meta.get("grapharg"), "source", None) or getattr(node, "_dynamo_source", None)
    while source is not None:
        if "NNModuleSource" in type(source).__name__ or "ParamBufferSource" in type(source).__name__:
            return True
        source = getattr(source, "base", None)
    return False
