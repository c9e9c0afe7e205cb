"""Operators that take or write part of a tensor, in order or out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch

from ..algebra import REORDERED, UNKNOWN, Axis, respelled, rigid, unit
from ..facts import Fact
from ..graph_facts import example_of, sizes_of
from ..pieces import cut
from ..sizes import equal
from ..values import Known, Layout, OpCall, Taken, Value, taken_at
from . import carry
from .table import op


@op("getitem")
def _getitem(call: OpCall) -> Value:
    source, index = call.read(call.node.args[0]), call.node.args[1]
    if isinstance(source, tuple):
        return source[index] if isinstance(index, int) and -len(source) <= index < len(source) else None
    if not isinstance(source, Known):
        return None
    axes = indexed(call, source.axes, index, call.sizes)
    return axes and Known(
        axes, _fact_at(call, source, index), source.table, source.given,
        source.taken + taken_by(call, source.axes, items_of(index, len(source.axes)))
    )  # fmt: skip


def taken_by(call: OpCall, layout: Layout, items: Sequence[Any]) -> Taken:
    """Which positions x[:, i] takes."""
    result, position = (), 0
    for item in items:
        if item is None:
            continue
        if not (isinstance(item, slice) or is_tensor(item)):
            result += taken_at(layout[position], call.literal(item))
        position += _consumed(item)
    return result


def items_of(index: Any, rank: int) -> list[Any]:
    """One item for each dimension, and None for each new one; a boolean mask stands for several."""
    items = list(index) if isinstance(index, (tuple, list)) else [index]
    used = sum(_consumed(item) for item in items)
    at = next((i for i, item in enumerate(items) if item is Ellipsis), None)
    if at is None:
        items.append(Ellipsis)
        at = len(items) - 1
    items[at : at + 1] = [slice(None)] * (rank - used)
    return items


def _consumed(item: Any) -> int:
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    mask = example_of(item)
    is_mask = isinstance(mask, torch.Tensor) and mask.dtype in (torch.bool, torch.uint8)
    return mask.dim() if is_mask else 1


def is_tensor(item: Any) -> bool:
    return isinstance(item, (list, tuple)) or isinstance(example_of(item), torch.Tensor)


def indexed(call: OpCall, layout: Layout, index: Any, sizes: Sequence[Any] = ()) -> Layout | None:
    """The axes of x[index]; `sizes` are those of the result, where they are known.

    What an index tensor takes is in an order of its own.
    """
    items = items_of(index, len(layout))
    by_tensor = [position for position, item in enumerate(items) if is_tensor(item)]
    if any(isinstance(call.literal(item), bool) for item in items):
        return None
    result: Layout = []
    taken: list[Axis] = []
    at: int | None = None
    position = 0
    for item in items:
        if item is None:
            result.append(unit())
        elif isinstance(item, slice):
            real = sizes[len(result)] if not by_tensor and len(result) < len(sizes) else None
            result.append(sliced(call, layout[position], item, real))
        elif is_tensor(item):
            at = len(result) if at is None else at if by_tensor == _neighbours(by_tensor) else 0
            taken += layout[position : position + _consumed(item)]
        position += _consumed(item)
    if at is None:
        return result
    new = [
        unit() if equal(size, 1) else Axis(size, rigid=order_of_taken(taken, items))
        for size in sizes[at : at + len(sizes) - len(result)]
    ]
    return [*result[:at], *new, *result[at:]]


def _neighbours(positions: Sequence[int]) -> list[int]:
    return list(range(positions[0], positions[0] + len(positions)))


def order_of_taken(taken: Sequence[Axis], items: Sequence[Any]) -> str:
    """How rigid the axis is that an index takes from `taken`.

    An index of numbers puts them in another order. A mask leaves them in theirs, and of an order that is
    unknown before, the index may be what puts it right.
    """
    masks = all(getattr(example_of(item), "dtype", None) is torch.bool for item in items if is_tensor(item))
    return UNKNOWN if masks or UNKNOWN in map(rigid, taken) else REORDERED


def _fact_at(call: OpCall, source: Known, index: Any) -> Fact | None:
    """What x[index] is, where x is known: claims of the last dimension are cut, others kept or dropped."""
    fact = call.fact(call.node.args[0])
    if fact is None:
        return None
    everywhere = Fact(fact.everywhere)
    items = items_of(index, len(source.axes))
    if any(is_tensor(item) for item in items):
        return everywhere
    ours, behind = _place(items, len(source.axes) + fact.dim)
    if not isinstance(ours, slice):
        return everywhere
    run = run_of(call, source.axes[fact.dim].size, ours)
    if run is None:
        return everywhere
    return Fact(carry.cut(fact, fact.dim, *run, call.proofs).claims, -1 - behind)  # pyright: ignore[reportOptionalMemberAccess]


def _place(items: Sequence[Any], dim: int) -> tuple[Any, int]:
    """The item that indexes a dimension, and how many dimensions of the result come behind its own."""
    position = 0
    for number, item in enumerate(items):
        if item is None:
            continue
        if position == dim:
            return item, sum(later is None or isinstance(later, slice) for later in items[number + 1 :])
        position += 1
    return None, 0


def run_of(call: OpCall, size: Any, item: slice) -> tuple[Any, Any] | None:
    """(start, stop) of a slice of step 1; None where they are not known."""
    if call.literal(item.step) not in (None, 1):
        return None
    start, stop = _position(call, item.start, 0, size), _position(call, item.stop, size, size)
    if start is None or stop is None:
        return None
    if isinstance(size, int):
        start, stop = (min(max(end, 0), size) if isinstance(end, int) else end for end in (start, stop))
    return start, stop


def sliced(call: OpCall, axis: Axis, item: slice, real: Any = None) -> Axis:
    """axis[item], whose size in the graph is `real` where that is known.

    x[:-n] with n from data is empty at n = 0, so that its size is a symbol of its own. Where the graph
    proves that size to be a positive number, n is not 0, and it is all but the last n after all.
    """
    run = run_of(call, axis.size, item)
    if run is None:
        return strided(axis, item)
    start, stop = run
    taken = cut(axis, start, stop)
    positive = isinstance(real, int) and real > 0 and isinstance(start, int) and start >= 0
    if positive and not equal(taken.size, real):
        return respelled(taken, real)
    return taken


def strided(axis: Axis, item: slice) -> Axis:
    """Every so many of an axis, one object however often it is taken; the walk puts in the real size."""
    key = ("strided", str(item))
    if key not in axis.joins:
        axis.joins[key] = Axis(sympy.Dummy("unknown"))
        axis.joins[key].thinned = axis
    return axis.joins[key]


def _position(call: OpCall, item: Any, default: Any, size: Any) -> Any:
    if item is None:
        return default
    value = call.literal(item)
    if isinstance(value, int) and value < 0:
        return size + value
    if getattr(value, "could_extract_minus_sign", bool)():
        return size + value
    return value if isinstance(value, (int, sympy.Basic)) else None


@op("slice", fact=lambda call, layout: _slice_fact(call, layout))
def _slice(call: OpCall) -> Any:
    layout, dim = call.input, call.arg(1, "dim", 0)
    if layout is None:
        return None
    result = list(layout)
    result[dim] = sliced(call, layout[dim], slice_of(call, 2))
    return result


def slice_of(call: OpCall, position: int) -> slice:
    """The slice that aten spells as three arguments, from a position on."""
    start, stop, step = (call.arg(position + i, name) for i, name in enumerate(("start", "end", "step")))
    return slice(start, None if isinstance(stop, int) and stop > 2**62 else stop, step)


def _slice_fact(call: OpCall, layout: Layout) -> Fact | None:
    fact, axes, dim = call.fact(call.self_), call.input or [], call.arg(1, "dim", 0)
    run = run_of(call, axes[dim].size, slice_of(call, 2))
    if fact is None or run is None:
        return fact and Fact(fact.everywhere)
    return carry.cut(fact, dim % len(axes) - len(axes), *run, call.proofs)


# --- Reorderings ---------------------------------------------------------------------------------


def _only(call: OpCall, dims: Any) -> Any:
    """The input's axes, but for those that were put into another order."""
    layout = call.input
    if layout is None or len(layout) != len(call.sizes):
        return None
    moved = {dim % len(layout) for dim in (dims if isinstance(dims, (tuple, list)) else [dims])}
    return [
        Axis(size, rigid=REORDERED if rigid(axis) != UNKNOWN else UNKNOWN) if dim in moved
        else axis if equal(axis.size, size) else Axis(size, rigid=UNKNOWN)
        for dim, (axis, size) in enumerate(zip(layout, call.sizes, strict=True))
    ]  # fmt: skip


def _everywhere(call: OpCall, _: Any) -> Fact | None:
    """Entries that were moved about: what holds of all of them still does."""
    fact = call.fact(call.self_)
    return fact and Fact(fact.everywhere)


@op("flip", fact=_everywhere)
def _flip(call: OpCall) -> Any:
    return _only(call, call.rest(1, "dims"))


@op("fliplr", "flipud", "rot90", fact=_everywhere)
def _flip_two(call: OpCall) -> Any:
    return _only(call, {"fliplr": 1, "flipud": 0}.get(call.name, call.arg(2, "dims", (0, 1))))


@op("roll", fact=_everywhere)
def _roll(call: OpCall) -> Any:
    dims = call.arg(2, "dims", ())
    return _only(call, range_of(call) if dims in ((), [], None) else dims)


def range_of(call: OpCall) -> tuple[int, ...]:
    return tuple(range(len(call.input or ())))


@op("index_select", "gather", "take_along_dim", fact=_everywhere)
def _gather(call: OpCall) -> Any:
    position = 2 if call.name == "take_along_dim" else 1
    dim = call.arg(position, "dim")
    return None if dim is None else _only(call, dim)


@op("argsort")
def _argsort(call: OpCall) -> Any:
    return _only(call, call.arg(1, "dim", -1))


@op("sort", "topk", "msort")
def _sort(call: OpCall) -> Any:
    """Values and where they were."""
    dim, known = call.arg(2 if call.name == "topk" else 1, "dim", -1), call.known(call.self_)
    if known is None or not isinstance(call.example, (tuple, list)):
        return None
    sizes = sizes_of(call.example[0]) or []
    axes = [axis if position != dim % len(sizes) else Axis(size, rigid=REORDERED)
            for position, (axis, size) in enumerate(zip(known.axes, sizes, strict=True))]  # fmt: skip
    return tuple(Known(list(axes), None, known.table) for _ in call.example)


@op("index", fact=_everywhere)
def _index(call: OpCall) -> Any:
    """x[tensors]: what aten makes of an index that holds tensors, None where a dimension is taken whole."""
    items = [slice(None) if index is None else index for index in call.arg(1, "indices")]
    return call.input and indexed(call, call.input, items, call.sizes)


@op("masked_select", "take", "nonzero", "unique", "argwhere", fact=None)
def _picked(call: OpCall) -> Any:
    """Which entries is data: nothing is known of their order."""
    return None
