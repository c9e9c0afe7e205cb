"""Operators that take tensors apart along a dimension, or put them together."""

from __future__ import annotations

from ..algebra import REORDERED, UNKNOWN, Axis, concatenate, multiply, origins, same, unit, wholes
from ..facts import Fact, constant
from ..graph_facts import sizes_of
from ..pieces import cut
from ..sizes import Size, equal
from ..unify import join
from ..values import Known, Layout, OpCall, Result, broadcast, in_order_of_all, taken_at
from . import carry
from .table import op


def _pieces_of(call: OpCall) -> list[Known]:
    return [known for known in map(call.known, call.arg(0, "tensors", ())) if known is not None]


def _concatenated(call: OpCall, layout: Layout) -> Fact | None:
    dim = _along(call) - len(layout)
    tensors = call.arg(0, "tensors", ())
    if any(len(call.layout(one) or layout) != len(layout) for one in tensors):
        return None
    sizes = [(call.layout(one) or layout)[dim].size for one in tensors]
    return carry.concatenated([call.fact(one) for one in tensors], dim, sizes, call.proofs)


@op("cat", "concat", "concatenate", "hstack", "vstack", "dstack", fact=_concatenated)
def _cat(call: OpCall) -> Result:
    tensors = [known for known in _pieces_of(call) if len(known.axes) == len(call.sizes)]
    if not tensors:
        return None
    dim = _along(call)
    sizes = [1 if d == dim else size for d, size in enumerate(call.sizes)]
    others = [Known([*one.axes[:dim], unit(), *one.axes[dim + 1 :]], table=one.table) for one in tensors]
    result = in_order_of_all(broadcast(others, sizes), others)
    result[dim] = _in_turn(tensors, dim) or concatenate([one.axes[dim] for one in tensors])
    return result


def _along(call: OpCall) -> int:
    """The dimension along which values are concatenated."""
    named = {"hstack": min(1, len(call.sizes) - 1), "vstack": 0, "dstack": 2}.get(call.name)
    return call.arg(1, "dim", 0) % len(call.sizes) if named is None else named


def _in_turn(tensors: list[Known], dim: int) -> Axis | None:
    """The tokens of frames that were taken one by one: frames * tokens of a frame."""
    outer = _put_together(tensors) if len(tensors) > 1 else None
    alike = all(equal(one.axes[dim].size, tensors[0].axes[dim].size) for one in tensors)
    if outer is None or not alike:
        return None
    inner = [join(one.axes[dim] for one in tensors)]
    return multiply(
        [outer, *in_order_of_all(inner, [Known([one.axes[dim]], table=one.table) for one in tensors])]
    )


@op("stack")
def _stack(call: OpCall) -> Result:
    tensors = _pieces_of(call)
    if not tensors:
        return None
    dim = call.arg(1, "dim", 0) % len(call.sizes)
    result = broadcast(tensors, [*call.sizes[:dim], *call.sizes[dim + 1 :]])
    result = in_order_of_all(result, tensors)
    one = unit() if len(tensors) == 1 else None
    # Of several videos, positions of the new axis are other tokens; q, k and v are layers of one.
    origin = [(call.node, 0)] if _of_several(tensors) else []
    result.insert(dim, one or _put_together(tensors) or Axis(call.sizes[dim], origin, rigid=UNKNOWN))
    return result


def _of_several(tensors: list[Known]) -> bool:
    """Whether values have tokens of different videos."""
    pairs = [pair for one in tensors[1:] for pair in zip(tensors[0].axes, one.axes, strict=False)]
    return any(all(map(origins, (*wholes(a), *wholes(b)))) and not same(a, b) for a, b in pairs if a is not b)


def _put_together(tensors: list[Known]) -> Axis | None:
    """The axis whose positions these are, if they are all of them, in order; a reordered axis if they are
    positions of one axis in another order."""
    parts = [one.taken[-1] for one in tensors if one.taken]
    if len(parts) < len(tensors) or any(one.taken[:-1] != tensors[0].taken[:-1] for one in tensors):
        return None
    axis, positions = parts[0][0], [position for _, position in parts if isinstance(position, int)]
    if len(positions) < len(parts) or any(other is not axis for other, _ in parts):
        return None
    if positions != sorted(positions):
        return Axis(len(parts), rigid=REORDERED)
    return axis if positions == [*range(len(parts))] and equal(axis.size, len(parts)) else None


@op(
    "split", "chunk", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "hsplit", "vsplit",
    "dsplit",
)  # fmt: skip
def _split(call: OpCall) -> Result:
    known = call.known(call.self_)
    named = {"hsplit": 1, "vsplit": 0, "dsplit": 2}.get(call.name)
    dim: int = call.arg(2, "dim", 0) if named is None else named
    if known is None or not isinstance(call.example, (tuple, list)):
        return None
    layout, start = known.axes, 0
    dim %= len(layout)
    pieces = []
    for example in call.example:
        stop = start + (sizes_of(example) or [])[dim]
        axes = [*layout[:dim], cut(layout[dim], start, stop), *layout[dim + 1 :]]
        fact = carry.cut(call.fact(call.self_), dim - len(layout), start, stop, call.proofs)
        pieces.append(Known(axes, fact, known.table, taken=known.taken))
        start = stop
    return tuple(pieces) if equal(start, layout[dim].size) else None  # tensor_split may go back


@op("unbind")
def _unbind(call: OpCall) -> Result:
    known, dim = call.known(call.self_), call.arg(1, "dim", 0)
    if known is None or not isinstance(call.example, (tuple, list)):
        return None
    axes, axis = _without(known.axes, dim), known.axes[dim]
    fact = _without_dim(call, dim)
    return tuple(
        Known(list(axes), fact, known.table, taken=known.taken + taken_at(axis, i))
        for i in range(len(call.example))
    )


def _without_dim(call: OpCall, dim: int) -> Fact | None:
    """The fact of x.select(dim, any position)."""
    layout, fact = call.input or [], call.fact(call.self_)
    if fact is None:
        return None
    gone = dim % len(layout) - len(layout)
    if fact.dim == gone:
        return Fact(fact.everywhere)
    return Fact(fact.claims, fact.dim + (fact.dim < gone))


def _narrowed(call: OpCall, layout: Layout) -> Fact | None:
    dim = call.arg(1, "dim") % len(layout) - len(layout)
    start, length = call.literal(call.arg(2, "start")), call.literal(call.arg(3, "length"))
    return carry.cut(call.fact(call.self_), dim, start, start + length, call.proofs)


@op("narrow", fact=_narrowed)
def _narrow(call: OpCall) -> Result:
    layout, dim = call.input, call.arg(1, "dim")
    start, length = call.literal(call.arg(2, "start")), call.literal(call.arg(3, "length"))
    if layout is None or start is None or length is None or _may_be_negative(start):
        return None
    result = list(layout)
    result[dim] = cut(layout[dim], start, start + length)
    return result


@op("select")
def _select(call: OpCall) -> Result:
    known, dim, index = call.known(call.self_), call.arg(1, "dim"), call.literal(call.arg(2, "index"))
    if known is None:
        return None
    taken = known.taken + taken_at(known.axes[dim], index)
    return Known(_without(known.axes, dim), _without_dim(call, dim), known.table, taken=taken)


def _without(layout: Layout, dim: int) -> Layout:
    dim %= len(layout)
    return [*layout[:dim], *layout[dim + 1 :]]


def _may_be_negative(size: Size) -> bool:
    """Whether a size is below 0 for some values of its symbols."""
    return size < 0 if isinstance(size, int) else not size.is_nonnegative


def _paddings(call: OpCall) -> list[tuple[Size, Size]]:
    """(before, after) for each padded dimension, last dimension first."""
    amounts = [call.literal(amount) for amount in call.rest(1, "pad")]
    return list(zip(amounts[::2], amounts[1::2], strict=True))


def _padded(call: OpCall, layout: Layout) -> Fact | None:
    """The fact of constant padding: pieces of the filling around the input."""
    if call.arg(2, "mode", "constant") != "constant" or not layout:
        return None
    filling, fact = constant(call.literal(call.arg(3, "value")) or 0), call.fact(call.self_)
    for back, (before, after) in enumerate(_paddings(call), start=1):
        if equal(before, 0) and equal(after, 0):
            continue
        inner = layout[-back].size - before - after
        parts = [filling, fact or Fact(dim=-back), filling]
        fact = carry.concatenated(parts, -back, [before, inner, after], call.proofs)
    return carry.fitting(fact, call.example.dtype)


@op("pad", fact=_padded)
def _pad(call: OpCall) -> Result:
    """Padding is a concatenation; on pixel axes a convolution then derives its axis from it."""
    layout = call.input
    if layout is None:
        return None
    result = list(layout)
    for pair, (before, after) in enumerate(_paddings(call)):
        axis = result[-1 - pair]
        if _may_be_negative(before) or _may_be_negative(after):
            result[-1 - pair] = Axis(axis.size + before + after, rigid=UNKNOWN)
        elif not (equal(before, 0) and equal(after, 0)):
            result[-1 - pair] = concatenate([Axis(before), axis, Axis(after)])
    return result
