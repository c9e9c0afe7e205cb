"""What a value is computed from, as far back as the layers that made its tokens' features."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch.fx import Node

from .graph_facts import op_name
from .walk import Analysis

# What lies behind these is not the same features any more.
_LAYERS = (
    "linear", "addmm", "matmul", "bmm", "mm", "einsum", "embedding", "conv1d", "conv2d", "conv3d",
    "scaled_dot_product_attention",
)  # fmt: skip


def nearest(analysis: Analysis, node: Any, names: Collection[str]) -> list[Node]:
    """The calls of an operator in `names` that `node` is computed from, without other layers between.

    Follows views, pointwise operators, norms, concatenation and what is written into a value; goes out of
    checkpointed bodies through their inputs, and into none.
    """
    found: list[Node] = []
    seen: set[Node] = set()
    left = [node]
    while left:
        node = left.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        seen.add(node)
        name = op_name(node) if node.op in ("call_function", "call_method") else ""
        if name in names:
            found.append(node)
        elif node.op == "placeholder":
            left.append(analysis.outer.get(node))
        elif name == "gate":  # passes its first argument on
            left.append(node.args[0])
        elif name and name not in _LAYERS:
            left += [*node.all_input_nodes, *_written_into(node)]
    return found


def _written_into(node: Node) -> Iterator[Any]:
    """The values of node[...] = value: the rotary embeddings of many models are written so."""
    for user in node.users:
        if op_name(user) in ("setitem", "copy") and user.args[0] is node:
            yield user.args[-1]
