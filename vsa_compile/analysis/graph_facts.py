"""What a rule sees of a graph node: its arguments, their axes, its own sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from ..torch_compat import size_expression
from .algebra import Axis, Size, agree, equal, unify, unit

Layout = list[Axis]  # one axis per dimension of a tensor
Value = Any  # Layout for a tensor, a tuple of Values for a tuple or list, else None


def sizes_of(example: Any) -> list[Size] | None:
    """The sizes of a tensor as ints or sympy expressions; None for anything that is no tensor."""
    if not isinstance(example, torch.Tensor):
        return None
    return [size_expression(size) for size in example.shape]


def unknown(example: Any) -> Value:
    """The value about which nothing but its sizes is known."""
    sizes = sizes_of(example)
    if sizes is not None:
        return [unit() if equal(size, 1) else Axis(size) for size in sizes]
    if isinstance(example, (tuple, list)):
        return tuple(unknown(item) for item in example)
    return None


def example_of(node: Any) -> Any:
    """The example value of a node (Dynamo's or export's name for it), or the literal itself."""
    if not isinstance(node, Node):
        return node
    meta = node.meta
    return meta["example_value"] if "example_value" in meta else meta.get("val")


class Call:
    """One op call under analysis. Arguments are found by name or position, whichever was used."""

    def __init__(self, node: Node, name: str, read: Callable[[Any], Value]) -> None:
        self.node = node
        self.name = name
        self._read = read
        self.example = example_of(node)

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """The raw argument: a Node, a literal, or `default`."""
        if name in self.node.kwargs:
            return self.node.kwargs[name]
        return self.node.args[position] if position < len(self.node.args) else default

    def rest(self, position: int, name: str) -> Sequence[Any]:
        """Varargs that may also come as one sequence: x.view(2, 3) and x.view((2, 3))."""
        value = self.arg(position, name, ())
        return value if isinstance(value, (tuple, list)) else self.node.args[position:]

    def layout(self, argument: Any) -> Layout | None:
        """The axes of a tensor argument."""
        value = self._read(argument)
        return value if isinstance(value, list) else None

    def value(self, argument: Any) -> Value:
        return self._read(argument)

    @property
    def input(self) -> Layout | None:
        return self.layout(self.arg(0, "input"))

    @property
    def sizes(self) -> list[Size]:
        return sizes_of(self.example) or []

    def literal(self, argument: Any) -> Any:
        """An int or sympy size of an argument that is a literal, a SymInt or a node that holds one."""
        value = example_of(argument)
        return size_expression(value) if isinstance(value, (int, torch.SymInt)) else value


def broadcast(layouts: Sequence[Layout], sizes: Sequence[Size]) -> Layout:
    """Axes of an elementwise result of `sizes`: aligned from the right, equal axes made one.

    What is broadcast against a value of the full shape (a table of positions, a bias) is not its tokens.
    """
    full = [layout for layout in layouts if len(layout) == len(sizes) and _fills(layout, sizes)]
    if full:
        for layout in layouts:
            meet = unify if any(layout is one for one in full) else agree
            for axis, other in zip(full[0][::-1], layout[::-1], strict=False):
                meet(axis, other)
        return [unit() if equal(size, 1) else axis for axis, size in zip(full[0], sizes, strict=True)]
    result: Layout = []
    for position, size in enumerate(sizes):
        back = len(sizes) - position
        aligned = [layout[-back] for layout in layouts if len(layout) >= back]
        matching = [axis for axis in aligned if equal(axis.size, size)]
        if not matching or equal(size, 1):
            result.append(unit() if equal(size, 1) else Axis(size))
            continue
        for other in matching[1:]:
            unify(matching[0], other)
        result.append(matching[0])
    return result


def _fills(layout: Layout, sizes: Sequence[Size]) -> bool:
    return all(equal(axis.size, size) for axis, size in zip(layout, sizes, strict=True))


def op_name(node: Node) -> str:
    """The plain name of what a node calls: "view", "scaled_dot_product_attention", "add", ...

    In-place spellings lose their underscore; the overload of an aten op its suffix.
    """
    target = node.target
    if isinstance(target, str):
        name = target
    elif isinstance(target, torch._ops.OpOverload):
        name = target.overloadpacket.__name__
    else:
        name = getattr(target, "__name__", str(target))
    if name.endswith("_") and not name.endswith("__") and name not in ("and_", "or_", "not_"):
        name = name.rstrip("_")
    return name
