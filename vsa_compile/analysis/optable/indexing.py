"""Operators that read or write a part of a tensor, in order or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch

from ..algebra import REORDERED, UNKNOWN, Axis, respelled, rigid, unit
from ..facts import Fact
from ..graph_facts import example_of, sizes_of
from ..pieces import cut, single_of
from ..sizes import Size, equal
from ..values import Known, Layout, OpCall, Result, Taken, taken_at
from . import carry
from .table import op


@op("getitem")
def _getitem(call: OpCall) -> Result:
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


def taken_by(call: OpCall, layout: Layout, items: Sequence[object]) -> Taken:
    """The positions that integer indices take, as in x[:, i], where i may be a tensor without dimensions."""
    result, position = (), 0
    for item in items:
        if item is None:
            continue
        if not (isinstance(item, slice) or is_tensor(item)) or _is_number(item):
            result += taken_at(layout[position], call.literal(item))
        position += _consumed(item)
    return result


def items_of(index: object, rank: int) -> list[object]:
    """One item per dimension and None per new one; a boolean mask stands for several dimensions."""
    items: list[object] = list(index) if isinstance(index, (tuple, list)) else [index]
    used = sum(_consumed(item) for item in items)
    at = next((i for i, item in enumerate(items) if item is Ellipsis), None)
    if at is None:
        items.append(Ellipsis)
        at = len(items) - 1
    items[at : at + 1] = [slice(None)] * (rank - used)
    return items


def _consumed(item: object) -> int:
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    mask = example_of(item)
    is_mask = isinstance(mask, torch.Tensor) and mask.dtype in (torch.bool, torch.uint8)
    return mask.dim() if is_mask else 1


def is_tensor(item: object) -> bool:
    return isinstance(item, (list, tuple)) or isinstance(example_of(item), torch.Tensor)


def _is_number(item: object) -> bool:
    """Whether an index is a tensor of one integer."""
    value = example_of(item)
    return isinstance(value, torch.Tensor) and value.dim() == 0 and value.dtype is not torch.bool


def indexed(call: OpCall, layout: Layout, index: object, sizes: Sequence[Size] = ()) -> Layout | None:
    """The axes of x[index]; `sizes` are the result's, if known.

    What an index tensor takes has an order of its own.
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
        single_of(*taken) if equal(size, 1) else Axis(size, rigid=order_of_taken(taken, items))
        for size in sizes[at : at + len(sizes) - len(result)]
    ]
    return [*result[:at], *new, *result[at:]]


def _neighbours(positions: Sequence[int]) -> list[int]:
    return list(range(positions[0], positions[0] + len(positions)))


def order_of_taken(taken: Sequence[Axis], items: Sequence[object]) -> str:
    """The rigidity of the axis that an index takes from `taken`.

    Integers put the entries into another order. A mask keeps their order; but if that was unknown before, the
    index may be what sorts them.
    """
    masks = all(getattr(example_of(item), "dtype", None) is torch.bool for item in items if is_tensor(item))
    return UNKNOWN if masks or UNKNOWN in map(rigid, taken) else REORDERED


def _fact_at(call: OpCall, source: Known, index: object) -> Fact | None:
    """The fact of x[index]: claims along the fact's dimension are cut, others kept or dropped."""
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


def _place(items: Sequence[object], dim: int) -> tuple[object, int]:
    """The item that indexes a dimension, and how many of the result's dimensions follow that dimension."""
    position = 0
    for number, item in enumerate(items):
        if item is None:
            continue
        if position == dim:
            return item, sum(later is None or isinstance(later, slice) for later in items[number + 1 :])
        position += 1
    return None, 0


def run_of(call: OpCall, size: Size, item: slice, least: int = 1) -> tuple[Size, Size] | None:
    """(start, stop) of a slice with step 1; None if they are not known.

    `least`: how far below 0 a symbol must be to count from the end. x[-n:] is all of x if n is 0.
    """
    if call.literal(item.step) not in (None, 1):
        return None
    start, stop = (
        _position(call, end, default, size, least) for end, default in ((item.start, 0), (item.stop, size))
    )
    if start is None or stop is None:
        return None
    if isinstance(size, int):
        start, stop = (min(max(end, 0), size) if isinstance(end, int) else end for end in (start, stop))
    return start, stop


def sliced(call: OpCall, axis: Axis, item: slice, real: Size | None = None) -> Axis:
    """axis[item], with the size `real` in the graph, if that is known.

    x[:-n] with a data-dependent n is empty at n = 0, and so its size is a symbol of its own. If the graph
    proves that size to be a positive number, n is not 0, and the slice is all but the last n entries.
    """
    run = run_of(call, axis.size, item, least=0)  # the walk compares the sizes
    if run is None:
        return strided(axis, item)
    start, stop = run
    taken = cut(axis, start, stop)
    positive = isinstance(real, int) and real > 0 and isinstance(start, int) and start >= 0
    if positive and not equal(taken.size, real):
        return respelled(taken, real)
    return taken


def strided(axis: Axis, item: slice) -> Axis:
    """Every n-th position of an axis, always the same object; the walk fills in the real size."""
    key = ("strided", str(item))
    if key not in axis.joins:
        axis.joins[key] = Axis(sympy.Dummy("unknown"))
        axis.joins[key].thinned = axis
    return axis.joins[key]


def _position(call: OpCall, item: object, default: Size, size: Size, least: int) -> Size | None:
    """Where an end of a slice is; None if it may be below 0 or not."""
    if item is None:
        return default
    value = call.literal(item)
    if not isinstance(value, (int, sympy.Basic)):
        return None
    if call.proofs.at_least(value, 0):
        return value
    return size + value if call.proofs.at_least(-least, value) else None


@op("slice", fact=lambda call, layout: _slice_fact(call, layout))
def _slice(call: OpCall) -> Result:
    layout, dim = call.input, call.arg(1, "dim", 0)
    if layout is None:
        return None
    result = list(layout)
    result[dim] = sliced(call, layout[dim], slice_of(call, 2))
    return result


def slice_of(call: OpCall, position: int) -> slice:
    """The slice that aten spells as three arguments, from `position` on."""
    start, stop, step = (call.arg(position + i, name) for i, name in enumerate(("start", "end", "step")))
    return slice(start, None if isinstance(stop, int) and stop > 2**62 else stop, step)


def _slice_fact(call: OpCall, layout: Layout) -> Fact | None:
    fact, axes, dim = call.fact(call.self_), call.input or [], call.arg(1, "dim", 0)
    run = run_of(call, axes[dim].size, slice_of(call, 2))
    if fact is None or run is None:
        return fact and Fact(fact.everywhere)
    return carry.cut(fact, dim % len(axes) - len(axes), *run, call.proofs)


# --- Reorderings ---------------------------------------------------------------------------------


def _only(call: OpCall, dims: Any) -> Layout | None:
    """The input's axes, with those along `dims` put into another order."""
    layout = call.input
    if not layout or len(layout) != len(call.sizes):
        return None
    moved = {dim % len(layout) for dim in (dims if isinstance(dims, (tuple, list)) else [dims])}
    return [
        single_of(axis) if equal(size, 1) and dim in moved
        else Axis(size, rigid=REORDERED if rigid(axis) != UNKNOWN else UNKNOWN) if dim in moved
        else axis if equal(axis.size, size) else Axis(size, rigid=UNKNOWN)
        for dim, (axis, size) in enumerate(zip(layout, call.sizes, strict=True))
    ]  # fmt: skip


def _everywhere(call: OpCall, _: Layout) -> Fact | None:
    """Of reordered entries only claims about all of them remain."""
    fact = call.fact(call.self_)
    return fact and Fact(fact.everywhere)


@op("flip", fact=_everywhere)
def _flip(call: OpCall) -> Result:
    return _only(call, call.rest(1, "dims"))


@op("fliplr", "flipud", "rot90", fact=_everywhere)
def _flip_two(call: OpCall) -> Result:
    return _only(call, {"fliplr": 1, "flipud": 0}.get(call.name, call.arg(2, "dims", (0, 1))))


@op("roll", fact=_everywhere)
def _roll(call: OpCall) -> Result:
    dims = call.arg(2, "dims", ())
    return _only(call, range_of(call) if dims in ((), [], None) else dims)


def range_of(call: OpCall) -> tuple[int, ...]:
    return tuple(range(len(call.input or ())))


@op("index_select", "gather", "take_along_dim", fact=_everywhere)
def _gather(call: OpCall) -> Result:
    position = 2 if call.name == "take_along_dim" else 1
    dim = call.arg(position, "dim")
    return None if dim is None else _only(call, dim)


@op("argsort")
def _argsort(call: OpCall) -> Result:
    return _only(call, call.arg(1, "dim", -1))


@op("sort", "topk", "msort")
def _sort(call: OpCall) -> Result:
    """The values, and their former positions."""
    dim, known = call.arg(2 if call.name == "topk" else 1, "dim", -1), call.known(call.self_)
    if known is None or not isinstance(call.example, (tuple, list)):
        return None
    sizes = sizes_of(call.example[0]) or []
    axes = [axis if position != dim % len(sizes) else Axis(size, rigid=REORDERED)
            for position, (axis, size) in enumerate(zip(known.axes, sizes, strict=True))]  # fmt: skip
    return tuple(Known(list(axes), None, known.table) for _ in call.example)


@op("index", fact=_everywhere)
def _index(call: OpCall) -> Result:
    """x[tensors] in aten's form: None for a dimension that is taken whole."""
    items = [slice(None) if index is None else index for index in call.arg(1, "indices")]
    return call.input and indexed(call, call.input, items, call.sizes)


@op("masked_select", "take", "nonzero", "unique", "argwhere", fact=None)
def _picked(call: OpCall) -> Result:
    """Data decides which entries are picked: nothing is known of them."""
    return None
