"""Whether it matters that the sparse output has other strides than SDPA's.

The kernels write (B, N, H, D); SDPA may write (B, H, N, D). Views, aliases and users of the output can tell.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node, map_arg
from torch.utils._pytree import tree_leaves

from ..analysis.algebra import Size, equal
from ..analysis.graph_facts import example_of, sizes_of
from ..analysis.optable import name_of
from ..torch_compat import FakeMode, on_examples, size_expression, surely_true
from .edits import NewNode, new_node

aten = torch.ops.aten

# Their results are new and contiguous, whatever the strides of their inputs.
_CONTIGUOUS = ("linear", "matmul", "bmm", "mm", "addmm", "baddbmm")
# They read memory as it is laid out.
_RAW = (
    "as_strided",
    "as_strided_copy",
    "as_strided_scatter",
    "set",
    "data_ptr",
    "untyped_storage",
    "storage",
)
_AUGMENTED = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift concat"
_WRITING = {operator.setitem, *(getattr(operator, f"i{name}") for name in _AUGMENTED.split())}


def places_of(graph: Graph) -> dict[Node, int]:
    return {node: place for place, node in enumerate(graph.nodes)}


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape have the same layout. Adds no guard."""
    return all(
        equal(size, 1) or equal(size_expression(one), size_expression(other))
        for size, one, other in zip(sizes_of(a) or [], a.stride(), b.stride(), strict=True)
    )


def in_order_of(node: Node, value: NewNode, mode: FakeMode | None, hint: Callable[[Size], int]) -> NewNode:
    """`value`, copied so that its dimensions lie in memory in the order of those of `node`, without gaps.

    It then allows every view that `node` allows. `hint` returns a size in the example inputs.
    """
    strides = [hint(size_expression(stride)) for stride in example_of(node).stride()]
    order = sorted(range(len(strides)), key=lambda dim: (-strides[dim], dim))
    if order == sorted(order):
        return new_node(mode, node, aten.contiguous.default, value)
    back = [order.index(dim) for dim in range(len(order))]
    permuted = new_node(mode, node, aten.permute.default, value, order)
    packed = new_node(mode, node, aten.contiguous.default, permuted)
    return new_node(mode, node, aten.permute.default, packed, back)


def changed_by(
    value: NewNode, node: Node, mode: FakeMode | None, places: Mapping[Node, int]
) -> dict[Node, Any] | None:
    """The effect of `value` in the place of `node`: the new examples of later nodes whose strides change.

    None if the change matters: to a view, to a write through an alias that exists in one layout only, to an
    operator that is not torch's, or to users of the graph's outputs. Runs the users of the output on example
    values as long as there is a difference: most models transpose and reshape at once, which ends it.
    """
    now: dict[Node, Any] = {node: value.example}
    changed = {node}
    left = [(places[user], user) for user in node.users]
    seen: set[Node] = set()
    heapify(left)
    while left:
        _, user = heappop(left)  # in graph order, so that all its inputs were visited before
        if user in seen:
            continue
        seen.add(user)
        inputs = [x for x in user.all_input_nodes if x in now]
        if user.op == "output":
            if changed.intersection(inputs):
                return None
            continue
        if not _is_torchs(user) or name_of(user) in _RAW:
            return None
        written = _written(user)
        if written is not None:
            if written in now:
                return None
            continue
        before = example_of(user)
        try:
            arguments, keywords = map_arg((user.args, user.kwargs), lambda x: now.get(x, example_of(x)))
            after = on_examples(mode, user.target, *arguments, **keywords)
        except Exception:
            if name_of(user) in _CONTIGUOUS:
                continue
            return None
        if not _same(before, after):
            changed.add(user)
        elif not any(_shares(before, example_of(x)) or _shares(after, now[x]) for x in inputs):
            continue
        now[user] = after
        for further in user.users:
            heappush(left, (places[further], further))
    return {user: now[user] for user in changed if user is not node}


def _is_torchs(node: Node) -> bool:
    """Whether a node calls an operator of torch itself or of ours, without a body."""
    target: Any = node.target
    if node.op == "call_method":
        return hasattr(Tensor, target)
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace in ("aten", "prims", "vsa_compile")
    name = getattr(target, "__module__", None) or "torch"  # None for built-in functions
    bodies = isinstance(target, torch._ops.HigherOrderOperator)
    return (
        node.op == "call_function" and not bodies and name.split(".")[0] in ("torch", "_operator", "builtins")
    )


def _written(node: Node) -> object:
    """The argument that a node writes into; None if it writes none. Operators that write several arguments
    are rare, and `_is_torchs` does not count them."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if "out" in node.kwargs:
        return node.kwargs["out"]
    if isinstance(node.target, torch._ops.OpOverload):
        writes = node.target._schema.is_mutable
    else:
        writes = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    if writes or node.target in _WRITING or node.kwargs.get("inplace"):
        return node.args[0] if node.args else next(iter(node.kwargs.values()))
    return None


def _same(before: object, after: object) -> bool:
    """Whether two example values of one node have the same strides, or are the same numbers."""
    olds, news = tree_leaves(before), tree_leaves(after)
    if len(olds) != len(news):
        return False
    for old, new_ in zip(olds, news, strict=True):
        if isinstance(old, Tensor) and isinstance(new_, Tensor):
            if not same_strides(old, new_):
                return False
        elif isinstance(old, Tensor) or isinstance(new_, Tensor) or not surely_true(old == new_):
            return False
    return True


def _shares(result: object, argument: object) -> bool:
    """Whether a result shares memory with an argument."""
    storages = {x.untyped_storage()._cdata for x in tree_leaves(argument) if isinstance(x, Tensor)}
    return any(isinstance(x, Tensor) and x.untyped_storage()._cdata in storages for x in tree_leaves(result))
