"""Sizes that are data, and which of them are equal."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from .graph_facts import example_of, op_name, sizes_of
from .sizes import Size


def equal_counts(graph: Graph) -> dict[Any, Size]:
    """Sizes from data that are equal since they count the same mask: x[~mask] and y[~mask] are as long.

    Every `~mask` is another value to torch, and so every x[~mask] has a size of its own.
    """
    counts: dict[Any, Size] = {}
    same: dict[Any, Size] = {}
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method") or not node.args:
            continue
        name = op_name(node)
        if (name == "setitem" or str(node.target).endswith("_")) and _is_boolean(node.args[0]):
            return {}  # a mask that changes counts something else afterwards
        if name != "getitem" or not _is_boolean(node.args[1]):
            continue
        size = (sizes_of(example_of(node)) or [0])[0]
        known = counts.setdefault(_spelled(node.args[1]), size)
        if not isinstance(size, int) and size.is_Symbol and size != known:
            same[size] = known
    return same


def _is_boolean(argument: Any) -> bool:
    return getattr(example_of(argument), "dtype", None) is torch.bool


def _spelled(mask: Node) -> Any:
    """A key that two masks share if they are the same: a node, or its complement."""
    negated = op_name(mask) in ("invert", "bitwise_not", "logical_not")
    return ("not", _spelled(mask.args[0])) if negated else mask  # pyright: ignore[reportArgumentType]
