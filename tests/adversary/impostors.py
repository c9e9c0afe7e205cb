"""Operators and functions that have a known name, and do something else: they turn a dimension round."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .reorder import edit
from .sketch import Spot

NAMES = (
    "clone",
    "contiguous",
    "detach",
    "alias",
    "relu",
    "gelu",
    "to",
    "float",
    "layer_norm",
    "silu",
    "flatten",
)
_library = torch.library.Library("adversary", "DEF")

for _name in NAMES:
    _library.define(f"{_name}(Tensor x, int dim) -> Tensor")
    _library.impl(_name, lambda x, dim: x.flip(dim), "CompositeExplicitAutograd")
_library.define("turn_(Tensor(a!) x, int dim) -> ()")


def _turn(x: Tensor, dim: int) -> None:
    x.copy_(x.flip(dim))


_library.impl("turn_", _turn, "CompositeExplicitAutograd")
_library.define("gate(Tensor q, Tensor gate) -> Tensor")
_library.impl("gate", lambda q, gate: q.flip(2), "CompositeExplicitAutograd")
_library.define("scaled_dot_product_attention(Tensor q, Tensor k, Tensor v) -> Tensor")
_library.impl(
    "scaled_dot_product_attention", lambda q, k, v: (q @ k.mT).sigmoid() @ v, "CompositeExplicitAutograd"
)


@edit
def foreign(x: Any, s: Spot) -> Any:
    """An operator of another namespace."""
    return s.call(getattr(torch.ops.adversary, s.random.choice(NAMES)).default, x, s.dim)


@edit
def foreign_packet(x: Any, s: Spot) -> Any:
    return s.call(getattr(torch.ops.adversary, s.random.choice(NAMES)), x, s.dim)


@edit
def foreign_write_(x: Any, s: Spot) -> None:
    s.call(torch.ops.adversary.turn_.default, x, s.dim)


@edit
def python_function(x: Any, s: Spot) -> Any:
    """A function of the user's that Dynamo was told to leave in the graph."""
    return s.call(_named(s.random.choice(NAMES)), x, s.dim)


@edit
def python_write_(x: Any, s: Spot) -> None:
    s.call(_named("add_", writes=True), x, s.dim)


@edit
def foreign_gate(x: Any, s: Spot) -> Any:
    if len(s.shape) != 4:
        return x.flip(s.dim)
    return s.call(torch.ops.adversary.gate.default, x, x.transpose(1, 2).flatten(2))


@functools.cache
def _named(name: str, writes: bool = False) -> Any:
    def function(x: Tensor, dim: int) -> Tensor:
        return x.copy_(x.flip(dim)) if writes else x.flip(dim)

    function.__name__ = function.__qualname__ = name
    function.__module__ = "torch"
    return function


def disguise(node: Node, dim: int) -> None:
    """A node's own function or method gives way to one of its name that turns the result round."""
    target = node.target
    name = target if isinstance(target, str) else target.__name__

    def function(*args: Any, **kwargs: Any) -> Any:
        out = (
            getattr(args[0], name)(*args[1:], **kwargs)
            if isinstance(target, str)
            else target(*args, **kwargs)
        )
        return out.flip(dim)

    function.__name__ = function.__qualname__ = name
    node.op, node.target = "call_function", function


def foreign_attention(node: Node) -> None:
    """An attention call gives way to another's, of the same name, without a softmax."""
    q, k, v = (node.kwargs.get(n) or node.args[i] for i, n in enumerate(("query", "key", "value")))
    node.target = torch.ops.adversary.scaled_dot_product_attention.default
    node.args, node.kwargs = (q, k, v), {}
