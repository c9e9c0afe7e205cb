"""Operators that write into their first argument: its content afterwards.

A rule returns what the first argument becomes, or None if its content is unknown then; values that share its
memory are updated accordingly (`effects.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..algebra import REORDERED, UNKNOWN, Axis, same, unit
from ..facts import Fact, both, constant, fitting, patched
from ..graph_facts import example_of
from ..overwriting import Write
from ..pieces import put, put_somewhere
from ..sizes import Size, equal
from ..unify import meet
from ..values import Known, Layout, OpCall, Result
from .indexing import indexed, is_tensor, items_of, run_of, slice_of, taken_by
from .table import WriteRule, op

# --- x[index] = value -----------------------------------------------------------------------------


def assigned(call: OpCall, target: object, index: object, value: object) -> Known | None:
    """What `target` becomes by target[index] = value."""
    known, written = call.known(target), call.known(value)
    if known is None:
        return None
    fact = _assigned_fact(call, known, target, index, value)
    items = items_of(index, len(known.axes))
    if any(isinstance(call.literal(item), bool) for item in items):
        return None
    if any(is_tensor(item) for item in items):
        return _scattered(call, known, items, written, fact)
    region = indexed(call, known.axes, index)
    if region is None:
        return None
    axes = list(known.axes)
    kept = _dims_kept(items)
    runs = [None if position is None else run_of(call, axes[position].size, item) for position, item in kept]
    whole = [position is None or _is_all(run, axes[position].size)
             for (position, _), run in zip(kept, runs, strict=True)]  # fmt: skip
    taken = taken_by(call, axes, items)
    if written is None:  # a number
        return replace(known, fact=fact, given=False, table=known.table or (all(whole) and not taken))
    values = [unit()] * (len(region) - len(written.axes)) + written.axes[-len(region) or len(written.axes) :]
    if all(whole) and not taken and len(region) == len(axes):  # nothing is left of what it was
        return Known(_spread(values, [axis.size for axis in axes]), fact, written.table, taken=written.taken)
    # Nobody's tokens, such as memory that is as large as another value, have no order to agree with.
    in_order = meet(region, values) if written.table or not known.table else True
    write = Write(known.table, not written.table)
    for i, ((position, _), run, old, new) in enumerate(zip(kept, runs, region, values, strict=True)):
        if position is None:
            continue
        others = not taken and all(whole[:i] + whole[i + 1 :])
        held = write.held(old, new, everywhere=whole[i], all_of_it=others)
        if not in_order and held is not old and not known.table:
            held = Axis(old.size, rigid=UNKNOWN)
        if held is not old:
            axes[position] = put(axes[position], run[0], held) if run else put_somewhere(axes[position], held)
    for axis, now in write.placed(taken, written.taken, all_of_it=all(whole)):
        axes = [now if one is axis else one for one in axes]
    content = write.content(known, written, all_of_it=not taken and all(whole))
    return Known(axes, fact, known.table and written.table, taken=content)


def _dims_kept(items: Sequence[object]) -> list[tuple[int | None, Any]]:
    """(dimension of the target, its item) for each dimension of the region; (None, None) for a new one."""
    kept: list[tuple[int | None, Any]] = []
    position = 0
    for item in items:
        if item is None:
            kept.append((None, None))
            continue
        if isinstance(item, slice):
            kept.append((position, item))
        position += 1
    return kept


def _scattered(
    call: OpCall, known: Known, items: Sequence[object], written: Known | None, fact: Fact | None
) -> Known:
    """After a write at the places that an index names. Writing a number leaves the tokens as they are."""
    if written is None or written.table:
        return replace(known, fact=fact, given=False)
    axes, position = list(known.axes), 0
    places: list[int] = []  # dimensions whose positions an index names
    for item in items:
        consumed = 1
        if item is None:
            continue
        if is_tensor(item):
            mask = example_of(item)
            is_mask = isinstance(mask, torch.Tensor) and mask.dtype in (torch.bool, torch.uint8)
            consumed = mask.dim() if is_mask else 1
            places += range(position, position + consumed)
        position += consumed
    for at, axis in enumerate(axes):
        axes[at] = _placed(axis, written) if at in places else _beside(axis, written, known.table)
    return Known(axes, fact, table=False)


def _beside(axis: Axis, written: Known, blank: bool) -> Axis:
    """The axis of a dimension in which tokens of `written` lie beside those of `axis`, or in blank memory."""
    if equal(axis.size, 1) or any(same(axis, other) for other in written.axes):
        return axis
    alike = [other for other in written.axes if equal(other.size, axis.size)]
    if len(alike) != 1:
        return Axis(axis.size, rigid=UNKNOWN)
    return Write(blank, tokens=True).held(axis, alike[0], everywhere=False, all_of_it=False)


def _placed(axis: Axis, written: Known) -> Axis:
    """The axis along which tokens were put where an index says.

    If they fill all positions, they were permuted; if there are more positions, their order is unknown.
    """
    permuted = any(equal(one.size, axis.size) for one in written.axes if not equal(one.size, 1))
    return Axis(axis.size, rigid=REORDERED if permuted else UNKNOWN)


def _is_all(run: tuple[Size, Size] | None, size: Size) -> bool:
    return bool(run) and equal(run[0], 0) and equal(run[1], size)


def _assigned_fact(call: OpCall, known: Known, target: object, index: object, value: object) -> Fact | None:
    """The fact of a mask after m[index] = value."""
    before, dtype = call.fact(target), example_of(target).dtype
    written = fitting(call.fact(value), dtype)
    everywhere = Fact(written.everywhere) if written else None
    items = items_of(index, len(known.axes))
    either = both(before, everywhere, call.proofs)
    if any(is_tensor(item) or isinstance(call.literal(item), bool) for item in items) or not items:
        return either
    positions = [item for item in items if item is not None]
    *front, last = positions
    size = known.axes[-1].size
    all_rows = all(
        isinstance(item, slice) and _is_all(run_of(call, axis.size, item), axis.size)
        for item, axis in zip(front, known.axes, strict=False)
    )
    run = run_of(call, size, last) if isinstance(last, slice) else _one(call, last, size)
    if run is None or (before is not None and before.dim != -1 and before.claims != before.everywhere):
        return either
    inside = written
    if not isinstance(last, slice) or items[-1] is None or (written and written.dim != -1):
        inside = everywhere
    return patched(before, inside, run, all_rows=all_rows, proofs=call.proofs)


def _one(call: OpCall, item: object, size: Size) -> tuple[int, int] | None:
    at = call.literal(item)
    if not isinstance(at, int):
        return None
    at = size + at if at < 0 else at
    return at, at + 1


@op("setitem", "__setitem__", becomes=lambda call: assigned(call, *call.node.args[:3]))
def _setitem(call: OpCall) -> Result:
    return None


# --- Others ---------------------------------------------------------------------------------------


def _copied_from(call: OpCall) -> Known | None:
    """x.copy_(y): all of x is y afterwards, tokens included. What x was says nothing of y."""
    target, source = call.known(call.self_), call.known(call.arg(1, "src", call.arg(1, "other")))
    if target is None or source is None:
        return None
    axes = _spread(source.axes, [axis.size for axis in target.axes])
    fact = call.fact(call.arg(1, "src", call.arg(1, "other")))
    return Known(axes, fitting(fact, example_of(call.self_).dtype), source.table, taken=source.taken)


def _spread(axes: Layout, sizes: Sequence[Size]) -> Layout:
    """The axes of a value that is expanded to `sizes`."""
    aligned = [unit()] * (len(sizes) - len(axes)) + axes
    return [axis if equal(axis.size, size) else Axis(size) for axis, size in zip(aligned, sizes, strict=True)]


def _now(call: OpCall) -> Layout | None:
    """The axes of the first argument after its write: given by `becomes`."""
    return None


op("copy_", becomes=_copied_from)(_now)
op("copy")(_copied_from)


def _constant_now(value: float | None) -> WriteRule:
    def rule(call: OpCall) -> Known | None:
        known = call.known(call.self_)
        fact = call.fact(call.arg(1, "value")) if value is None else constant(value)
        if known is None:
            return None
        fact = fact and fitting(Fact(fact.everywhere), example_of(call.self_).dtype)
        return Known(list(known.axes), fact, table=True)

    return rule


op("fill_", becomes=_constant_now(None))(_now)
op("fill")(_constant_now(None))
op("zero_", becomes=_constant_now(0))(_now)


def _by_index(call: OpCall) -> Known | None:
    """x after tokens were put, along one dimension, where an index says."""
    known, dim = call.known(call.self_), call.literal(call.arg(1, "dim"))
    source = call.known(call.arg(3, "source", call.arg(3, "src", call.arg(3, "value"))))
    if known is None or not isinstance(dim, int):
        return None
    axes = list(known.axes)
    number = None if source else call.fact(call.arg(3, "value", call.arg(3, "src")))
    if source is not None and not source.table:
        places = dim % len(axes)
        axes = [_placed(axis, source) if at == places else _beside(axis, source, known.table)
                for at, axis in enumerate(axes)]  # fmt: skip
    fact = both(known.fact, number or (source.fact if source else None), call.proofs)
    fact = None if _accumulates(call) else fact
    return Known(axes, fact and Fact(fact.everywhere), known.table and (source is None or source.table))


def _accumulates(call: OpCall) -> bool:
    """Whether what is written is combined with what was there."""
    asked = {"scatter": (4, "reduce"), "put": (3, "accumulate"), "index_put": (3, "accumulate")}.get(
        call.name
    )
    return "add" in call.name or "reduce" in call.name or (asked is not None and bool(call.arg(*asked)))


for _name in (
    "index_copy",
    "index_add",
    "index_fill",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "index_reduce",
):
    op(_name)(_by_index)


def _assigned_by_op(call: OpCall) -> Known | None:
    """The forms that x[index] = value has in a functional graph."""
    value = call.arg(2, "values") if call.name == "index_put" else call.arg(1, "src")
    if call.name == "index_put":
        items = [slice(None) if index is None else index for index in call.arg(1, "indices")]
    else:
        dim = call.arg(2, "dim", 0) % len(call.sizes)
        item = call.arg(3, "index") if "select" in call.name else slice_of(call, 3)
        items = [*[slice(None)] * dim, item]
    made = assigned(call, call.self_, tuple(items), value)
    return replace(made, fact=None) if made is not None and _accumulates(call) else made


op("index_put", "select_scatter", "slice_scatter")(_assigned_by_op)


def _put_by(call: OpCall) -> Known | None:
    """x.masked_scatter(mask, source) and others that put entries anywhere."""
    known = call.known(call.self_)
    source = call.known(call.arg(2, "source", call.arg(1, "src")))
    if known is None or source is None:
        return None
    axes = list(known.axes) if source.table else [
        axis if equal(axis.size, 1) else Axis(axis.size, rigid=REORDERED) for axis in known.axes
    ]  # fmt: skip
    fact = None if _accumulates(call) else both(known.fact, source.fact, call.proofs)
    return Known(axes, fact and Fact(fact.everywhere), known.table and source.table)


op("masked_scatter", "put", "diagonal_scatter")(_put_by)
