"""Operators that rearrange dimensions: views and copies."""

from __future__ import annotations

from itertools import combinations

from ..algebra import (
    REORDERED,
    UNKNOWN,
    Axis,
    concatenate,
    factors,
    mark_origins,
    multiply,
    origins,
    rigid,
    unit,
    wholes,
)
from ..facts import Fact, constant
from ..graph_facts import sizes_of
from ..pieces import cut
from ..regroup import regroup
from ..sizes import Size, equal
from ..values import Known, Layout, OpCall, Result, broadcast, taken_at
from . import carry
from .table import op, python


@op(
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as",
    "_unsafe_view", "_reshape_alias", fact=carry.moved,
)  # fmt: skip
def _reshape(call: OpCall) -> Result:
    """A regrouping of the same elements in the same order, which the output sizes describe fully."""
    if call.name == "view" and isinstance(call.arg(1, "dtype"), type(call.example.dtype)):
        return None  # the same bits in another dtype
    return regroup(call.input, call.sizes) if call.input is not None else None


def _show_video(layout: Layout) -> None:
    """Mark tokens that were split into three dimensions as a video, if channels were moved in front of them.

    (B, N, c p q) -> (B, T, H, W, c, p, q) -> (B, c, T, H, p, W, q) is an unpatchify: it makes a picture of
    channels over three axes. Splitting a dimension into three alone proves nothing: audio is pooled that way.
    """
    pieces = [(position, axis) for position, axis in enumerate(layout) if axis.whole and not origins(axis)]
    for three in combinations(pieces, 3):
        first = three[0][0]
        if (
            first < 2
            or equal(layout[first - 1].size, 1)
            or any(axis is layout[first - 1] for _, axis in three)
        ):
            continue
        axes = [axis for _, axis in three]
        whole = wholes(multiply(axes), opaque=True)
        if len(whole) == 1 and len(factors(whole[0])) == 3 and not rigid(whole[0]):
            mark_origins(axes, ("unpatchify", whole[0]))


@op("permute", fact=carry.moved)
def _permute(call: OpCall) -> Result:
    layout = call.input
    if layout is None:
        return None
    result = [layout[dim] for dim in call.rest(1, "dims")]
    _show_video(result)
    return result


@op("transpose", "swapaxes", "swapdims", fact=carry.turned)
def _transpose(call: OpCall) -> Result:
    layout = call.input
    if layout is None:
        return None
    a, b = (call.arg(i, f"dim{i - 1}", call.arg(i, f"axis{i - 1}")) for i in (1, 2))
    result = list(layout)
    result[a], result[b] = result[b], result[a]
    _show_video(result)
    return result


@op("t", fact=carry.turned)
def _matrix_transpose(call: OpCall) -> Result:
    layout = call.input
    return layout and [*layout[:-2], *layout[-2:][::-1]]


@python(getattr, fact=carry.turned)
def _attribute(call: OpCall) -> Result:
    """x.mT and other attributes that are tensors; sizes and dtypes are not."""
    layout, name = call.input, call.node.args[1]
    if layout is None or name not in ("mT", "mH", "T", "H", "real", "data"):
        return None
    if name in ("real", "data"):
        return layout
    return layout[::-1] if name in ("T", "H") else _matrix_transpose(call)


@op("movedim", "moveaxis", fact=carry.moved)
def _movedim(call: OpCall) -> Result:
    layout = call.input
    if layout is None:
        return None
    source, destination = (
        [dim % len(layout) for dim in (dims if isinstance(dims, (tuple, list)) else [dims])]
        for dims in (call.arg(1, "source"), call.arg(2, "destination"))
    )
    rest = iter([axis for dim, axis in enumerate(layout) if dim not in source])
    moved = dict(zip(destination, source, strict=True))
    result = [layout[moved[dim]] if dim in moved else next(rest) for dim in range(len(layout))]
    _show_video(result)
    return result


@op("expand", "expand_as", "broadcast_to", fact=carry.stretched)
def _expand(call: OpCall) -> Result:
    """An expanded dimension is a new axis: its positions are copies, not the tokens of another value."""
    layout = call.input
    if layout is None:
        return None
    aligned = [unit()] * (len(call.sizes) - len(layout)) + layout
    return [
        axis if equal(axis.size, size) else Axis(size) for axis, size in zip(aligned, call.sizes, strict=True)
    ]


@op("repeat", "tile", fact=carry.stretched)
def _repeat(call: OpCall) -> Result:
    layout = call.input
    if layout is None:
        return None
    times = [call.literal(t) for t in call.rest(1, "dims" if "dims" in call.node.kwargs else "repeats")]
    times = [1] * (len(layout) - len(times)) + times
    aligned = [unit()] * (len(times) - len(layout)) + layout
    return [
        axis if equal(t, 1) else multiply([Axis(t), axis]) for axis, t in zip(aligned, times, strict=True)
    ]


@op("repeat_interleave", fact=carry.stretched)
def _repeat_interleave(call: OpCall) -> Result:
    layout, times, dim = call.input, call.literal(call.arg(1, "repeats")), call.arg(2, "dim")
    if layout is None or not isinstance(times, int) or dim is None:
        return None
    result = list(layout)
    result[dim] = multiply([result[dim], Axis(times)])
    return result


def _pieces_of(call: OpCall) -> list[Known]:
    return [known for known in map(call.known, call.arg(0, "tensors", ())) if known is not None]


def _concatenated(call: OpCall, layout: Layout) -> Fact | None:
    dim = call.arg(1, "dim", 0) % len(layout) - len(layout)
    tensors = call.arg(0, "tensors", ())
    sizes = [(call.layout(one) or layout)[dim].size for one in tensors]
    return carry.concatenated([call.fact(one) for one in tensors], dim, sizes, call.proofs)


@op("cat", "concat", "concatenate", fact=_concatenated)
def _cat(call: OpCall) -> Result:
    tensors = [known for known in _pieces_of(call) if len(known.axes) == len(call.sizes)]
    if not tensors:
        return None
    dim = call.arg(1, "dim", 0) % len(call.sizes)
    sizes = [1 if d == dim else size for d, size in enumerate(call.sizes)]
    others = [Known([*one.axes[:dim], unit(), *one.axes[dim + 1 :]], table=one.table) for one in tensors]
    result = broadcast(others, sizes)
    result[dim] = concatenate([one.axes[dim] for one in tensors])
    return result


@op("stack")
def _stack(call: OpCall) -> Result:
    tensors = _pieces_of(call)
    if not tensors:
        return None
    dim = call.arg(1, "dim", 0) % len(call.sizes)
    result = broadcast(tensors, [*call.sizes[:dim], *call.sizes[dim + 1 :]])
    one = unit() if len(tensors) == 1 else None
    result.insert(dim, one or _put_together(tensors) or Axis(call.sizes[dim], rigid=UNKNOWN))
    return result


def _put_together(tensors: list[Known]) -> Axis | None:
    """The axis whose positions these are, if they are all of them, in order; a reordered axis if they are
    positions of one axis in another order."""
    parts = [one.taken[-1] for one in tensors if one.taken]
    if len(parts) < len(tensors) or any(one.taken[:-1] != tensors[0].taken[:-1] for one in tensors):
        return None
    axis, positions = parts[0][0], [position for _, position in parts if position is not None]
    if len(positions) < len(parts) or any(other is not axis for other, _ in parts):
        return None
    if positions != sorted(positions):
        return Axis(len(parts), rigid=REORDERED)
    return axis if positions == [*range(len(parts))] and equal(axis.size, len(parts)) else None


@op("split", "chunk", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split")
def _split(call: OpCall) -> Result:
    known, dim = call.known(call.self_), call.arg(2, "dim", 0)
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
    return tuple(pieces)


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


@op("view_as_real")
def _view_as_real(call: OpCall) -> Result:
    layout = call.input
    return layout and [*layout, Axis(2)]


@op("view_as_complex")
def _view_as_complex(call: OpCall) -> Result:
    layout = call.input
    return layout and layout[:-1]


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
