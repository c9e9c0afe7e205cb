"""What a captured graph itself says of a node: its example value, sizes, arguments, bodies and module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..torch_compat import size_expression
from .sizes import Size


def sizes_of(example: object) -> list[Size] | None:
    """The sizes of a tensor as ints or sympy expressions; None for anything else."""
    if not isinstance(example, torch.Tensor):
        return None
    return [size if type(size) is int else size_expression(size) for size in example.shape]


def example_of(node: object) -> Any:
    """The example value of a node, under Dynamo's or export's name for it; a literal itself."""
    if not isinstance(node, Node):
        return node
    meta = node.meta
    return meta["example_value"] if "example_value" in meta else meta.get("val")


def is_call(node: Node) -> bool:
    return node.op in ("call_function", "call_method")


# What torch takes for its own names, as NumPy spells them.
_NUMPY = {"dim": "axis", "keepdim": "keepdims", "other": "x2"}
_FIRST = ("input", "self", "tensor", "x", "a", "x1")


def argument(node: Node, position: int, name: str, default: object = None) -> Any:
    """A raw argument, passed by name or by position: a Node, a literal, or `default`."""
    for spelled in (name, _NUMPY.get(name)):
        if spelled in node.kwargs:
            return node.kwargs[spelled]
    return node.args[position] if position < len(node.args) else default


def first_argument(node: Node) -> object:
    """The first argument, by position or under any of its names."""
    if node.args:
        return node.args[0]
    return next((node.kwargs[name] for name in _FIRST if name in node.kwargs), None)


def bodies_of(module: GraphModule, node: Node) -> Iterator[GraphModule]:
    """The graphs that are passed to a higher-order operator."""
    for value in node.args:
        if isinstance(value, Node) and value.op == "get_attr":
            body = getattr(module, str(value.target), None)
            if isinstance(body, GraphModule):
                yield body


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """The tensors in an example value, also inside lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def module_path(node: Node) -> str:
    """The path of the innermost module, as `named_modules` spells it; "" if the graph has none."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    path = path.replace(".forward.__self__", "")  # prepare wraps forwards
    path = re.sub(r"getattr\((.*?), ?'(\w+)'\)", r"\1.\2", path)
    path = re.sub(r"\.__dict__\['_modules'\]", "", path)
    path = re.sub(r"^[LG]\['\w+'\]", "", path)
    return ".".join(re.findall(r"\w+", path))
