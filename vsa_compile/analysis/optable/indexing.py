"""Rules of x[...] and x[...] = y, and of taking one output of several."""

from __future__ import annotations

from typing import Any

import sympy
from torch.fx import Node

from ..algebra import Axis, find, respelled, unit
from ..graph_facts import Call, Layout, Value, broadcast, unknown
from ..sizes import equal
from .table import rule
from .views import cut


@rule("getitem")
def _getitem(call: Call) -> Value:
    source, index = call.value(call.node.args[0]), call.node.args[1]
    if isinstance(source, tuple):
        return source[index] if isinstance(index, int) and -len(source) <= index < len(source) else None
    return indexed(call, source, index) if isinstance(source, list) else None


@rule("setitem")
def _setitem(call: Call) -> Value:
    """x[index] = value: the written region and the value are the same tokens."""
    target, index, value = call.node.args[:3]
    layout, written = call.layout(target), call.layout(value)
    if layout is None or written is None:
        return None
    region = indexed(call, layout, index)
    if region is not None:
        broadcast([region, written], [axis.size for axis in region])
    return None


def scatters(node: Node) -> bool:
    """Whether a setitem writes through a tensor index, which may reorder tokens."""
    index = node.args[1]
    items = index if isinstance(index, tuple) else (index,)
    return any(isinstance(item, Node) and hasattr(item.meta.get("example_value"), "dim") for item in items)


def indexed(call: Call, layout: Layout, index: Any) -> Layout | None:
    """The axes of x[index] for slices, integers, None and Ellipsis; None for anything else."""
    items = list(index) if isinstance(index, tuple) else [index]
    used = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis not in items:
        items.append(Ellipsis)
    at = items.index(Ellipsis)
    items[at : at + 1] = [slice(None)] * (len(layout) - used)

    result: Layout = []
    remaining = iter(layout)
    for item in items:
        if item is None:
            result.append(unit())
        elif isinstance(item, slice):
            real = call.sizes[len(result)] if len(result) < len(call.sizes) else None
            result.append(_sliced(call, next(remaining), item, real))
        elif isinstance(call.literal(item), bool) or _is_tensor(call, item):
            return None
        else:
            next(remaining)  # an integer: the dimension is gone
    return result


def _is_tensor(call: Call, item: Any) -> bool:
    return isinstance(item, (list, tuple)) or isinstance(call.value(item), list)


def _sliced(call: Call, axis: Axis, item: slice, real: Any = None) -> Axis:
    """axis[item], whose size in the graph is `real` where that is known.

    x[:-n] with n from data is empty at n = 0, so that its size is a symbol of its own. Where the graph
    proves that size to be a positive number, n is not 0, and it is all but the last n after all.
    """
    size = find(axis).size
    if item.step not in (None, 1):
        return _unknown_size()
    start = _position(call, item.start, 0, size)
    stop = _position(call, item.stop, size, size)
    if start is None or stop is None:
        return _unknown_size()
    if isinstance(stop, int) and isinstance(size, int):
        stop = min(stop, size)
    taken = cut(axis, start, stop)
    positive = isinstance(real, int) and real > 0 and isinstance(start, int) and start >= 0
    if positive and not equal(find(taken).size, real):
        return respelled(taken, real)
    return taken


def _position(call: Call, item: Any, default: Any, size: Any) -> Any:
    if item is None:
        return default
    value = call.literal(item)
    if isinstance(value, int) and value < 0:
        return size + value
    if getattr(value, "could_extract_minus_sign", bool)():
        return size + value
    return value


def _unknown_size() -> Axis:
    """An axis equal to no other; the walk puts the real output's size in its place."""
    return Axis(sympy.Dummy("unknown"))


@rule("slice")
def _slice(call: Call) -> Value:
    layout, dim = call.input, call.arg(1, "dim", 0)
    if layout is None:
        return None
    result = list(layout)
    item = slice(call.arg(2, "start"), call.arg(3, "end"), call.arg(4, "step"))
    result[dim] = _sliced(call, layout[dim], item)
    return result


@rule("copy")
def _copy(call: Call) -> Value:
    """x.copy_(y): the written region and the value are the same tokens."""
    target, source = call.input, call.layout(call.arg(1, "src"))
    if target is not None and source is not None:
        broadcast([target, source], [axis.size for axis in target])
    return target


@rule("index_select", "gather", "take_along_dim", "sort", "flip", "roll", "masked_select", "index")
def _reordered(call: Call) -> Value:
    """Positions move: nothing is known of the result. Listed so that nobody takes them for pointwise."""
    return unknown(call.example)
