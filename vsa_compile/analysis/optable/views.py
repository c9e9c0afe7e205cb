"""Rules of ops that rearrange dimensions and move no data, or only copy it."""

from __future__ import annotations

from typing import Any

import sympy

from ..algebra import (
    Axis,
    concatenate,
    equal,
    factors,
    find,
    mark_origins,
    multiply,
    run,
    segments,
    unify,
    unit,
    wholes,
)
from ..graph_facts import Call, Layout, Value, sizes_of
from ..regroup import regroup
from .table import rule


@rule(
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "_unsafe_view"
)
def _reshape(call: Call) -> Value:
    """Any regrouping of the same elements in the same order: the output sizes say it all."""
    layout = call.input
    if layout is None:
        return None
    opaque = [dim for dim in layout if _is_opaque(dim)]
    result = regroup(layout, call.sizes)
    for position, axis in enumerate(opaque):
        # A whole axis that is split into three dimensions at once is a grid (an unpatchify, say).
        pieces = [find(factor) for factor in factors(axis)]
        if len(pieces) == 3 and all(any(find(dim) is piece for dim in result) for piece in pieces):
            mark_origins(pieces, (call.node, position))
    return result


def _is_opaque(axis: Axis) -> bool:
    """Whether an axis is one atom, however it was split before, of which nothing but its size is known."""
    known = any(find(factor).origins for factor in factors(axis))
    return not known and len(wholes(axis, opaque=True)) == 1


@rule("hint")
def _hint(call: Call) -> Value:
    """vsa_compile::hint: the tokens (last dimension but one), from `start` on, are raster video of a grid.

    Without a start they all are. That frames * rows * cols is their number is known to be so then, but not by
    algebra: cols is spelled as the rest.
    """
    layout, grid = call.input, [call.literal(size) for size in call.arg(1, "grid")]
    if layout is None:
        return None
    tokens, start = call.sizes[-2], call.literal(call.arg(2, "start"))
    frames, rows, cols = (Axis(size) for size in grid)
    if start is None and not equal(multiply([frames, rows, cols]).size, tokens):
        cols.size = sympy.sympify(tokens) / (frames.size * rows.size)
    mark_origins([frames, rows, cols], call.node)
    video = multiply([frames, rows, cols])
    if start is not None:
        video = concatenate([Axis(start), video, Axis(tokens - start - video.size)])
    unify(layout[-2], video)
    return [*layout[:-2], video, layout[-1]]


@rule("gate")
def _gate(call: Call) -> Value:
    """vsa_compile::gate: the first argument as it is."""
    return call.input


@rule("permute")
def _permute(call: Call) -> Value:
    layout = call.input
    order = call.rest(1, "dims")
    return layout and [layout[dim] for dim in order]


@rule("transpose", "swapaxes", "swapdims")
def _transpose(call: Call) -> Value:
    layout = call.input
    if layout is None:
        return None
    a, b = call.arg(1, "dim0"), call.arg(2, "dim1")
    result = list(layout)
    result[a], result[b] = result[b], result[a]
    return result


@rule("t", "mT")
def _matrix_transpose(call: Call) -> Value:
    layout = call.input
    return layout and [*layout[:-2], *layout[-2:][::-1]]


@rule("getattr")
def _attribute(call: Call) -> Value:
    """x.mT; nothing else that changes a tensor is an attribute in graphs."""
    return _matrix_transpose(call) if call.node.args[1] == "mT" else None


@rule("movedim", "moveaxis")
def _movedim(call: Call) -> Value:
    layout = call.input
    if layout is None:
        return None
    source, destination = (
        [dim % len(layout) for dim in (dims if isinstance(dims, (tuple, list)) else [dims])]
        for dims in (call.arg(1, "source"), call.arg(2, "destination"))
    )
    rest = iter([axis for dim, axis in enumerate(layout) if dim not in source])
    moved = dict(zip(destination, source, strict=True))
    return [layout[moved[dim]] if dim in moved else next(rest) for dim in range(len(layout))]


@rule("expand", "expand_as", "broadcast_to")
def _expand(call: Call) -> Value:
    """A stretched dimension is a new axis: its positions are copies, not the tokens of another value."""
    layout = call.input
    if layout is None:
        return None
    aligned = [unit()] * (len(call.sizes) - len(layout)) + layout
    return [
        axis if equal(axis.size, size) else Axis(size) for axis, size in zip(aligned, call.sizes, strict=True)
    ]


@rule("repeat", "tile")
def _repeat(call: Call) -> Value:
    layout = call.input
    if layout is None:
        return None
    times = [call.literal(t) for t in call.rest(1, "repeats")]
    aligned = [unit()] * (len(times) - len(layout)) + layout
    return [
        axis if equal(t, 1) else multiply([Axis(t), axis]) for axis, t in zip(aligned, times, strict=True)
    ] if len(aligned) == len(times) else None  # fmt: skip


@rule("repeat_interleave")
def _repeat_interleave(call: Call) -> Value:
    layout, times, dim = call.input, call.literal(call.arg(1, "repeats")), call.arg(2, "dim")
    if layout is None or not isinstance(times, int) or dim is None:
        return None
    result = list(layout)
    result[dim] = multiply([result[dim], Axis(times)])
    return result


@rule("cat", "concat", "concatenate")
def _cat(call: Call) -> Value:
    tensors = [layout for layout in map(call.layout, call.arg(0, "tensors")) if layout is not None]
    dim = call.arg(1, "dim", 0)
    tensors = [layout for layout in tensors if len(layout) == len(call.sizes)]
    if not tensors:
        return None
    dim %= len(call.sizes)
    result = [_joined(tensors, d) if d != dim else None for d in range(len(call.sizes))]
    return [axis or concatenate([layout[dim] for layout in tensors]) for axis in result]


@rule("stack")
def _stack(call: Call) -> Value:
    tensors = [layout for layout in map(call.layout, call.arg(0, "tensors")) if layout is not None]
    if not tensors:
        return None
    result: Layout = [_joined(tensors, d) for d in range(len(tensors[0]))]
    dim = call.arg(1, "dim", 0) % (len(result) + 1)
    result.insert(dim, Axis(call.sizes[dim]))
    return result


def _joined(tensors: list[Layout], dim: int) -> Axis:
    for layout in tensors[1:]:
        unify(tensors[0][dim], layout[dim])
    return tensors[0][dim]


@rule("split", "chunk", "tensor_split", "split_with_sizes", "unsafe_chunk")
def _split(call: Call) -> Value:
    layout, dim = call.input, call.arg(2, "dim", 0)
    if layout is None or not isinstance(call.example, (tuple, list)):
        return None
    dim %= len(layout)
    pieces, start = [], 0
    for example in call.example:
        size = (sizes_of(example) or [])[dim]
        pieces.append([*layout[:dim], cut(layout[dim], start, start + size), *layout[dim + 1 :]])
        start = start + size
    return tuple(pieces)


@rule("unbind")
def _unbind(call: Call) -> Value:
    layout, dim = call.input, call.arg(1, "dim", 0)
    if layout is None or not isinstance(call.example, (tuple, list)):
        return None
    dim %= len(layout)
    return tuple([*layout[:dim], *layout[dim + 1 :]] for _ in call.example)


@rule("narrow")
def _narrow(call: Call) -> Value:
    layout, dim = call.input, call.arg(1, "dim")
    start, length = call.literal(call.arg(2, "start")), call.literal(call.arg(3, "length"))
    if layout is None or start is None or length is None:
        return None
    result = list(layout)
    result[dim] = cut(layout[dim], start, start + length)
    return result


@rule("select")
def _select(call: Call) -> Value:
    layout = call.input
    return layout and _without(layout, call.arg(1, "dim"))


def _without(layout: Layout, dim: int) -> Layout:
    dim %= len(layout)
    return [*layout[:dim], *layout[dim + 1 :]]


def cut(axis: Axis, start: Any, stop: Any) -> Axis:
    """axis[start:stop]: whole segments of a concatenation, the axis itself, or a run of it."""
    size = find(axis).size
    if equal(start, 0) and equal(stop, size):
        return axis
    begin: Any = 0
    taken: list[Axis] = []
    inside = False
    for segment in segments(axis):
        inside = inside or equal(begin, start)
        if inside:
            taken.append(segment)
        begin = begin + segment.size
        if inside and equal(begin, stop):
            return concatenate(taken)
    return run(axis, start, stop)


@rule("view_as_real")
def _view_as_real(call: Call) -> Value:
    layout = call.input
    return layout and [*layout, Axis(2)]


@rule("view_as_complex")
def _view_as_complex(call: Call) -> Value:
    layout = call.input
    return layout and layout[:-1]


@rule("pad")
def _pad(call: Call) -> Value:
    """Padding makes a concatenation; on pixel axes a convolution then derives its axis from it."""
    layout, amounts = call.input, call.rest(1, "pad")
    if layout is None:
        return None
    result = list(layout)
    for pair in range(len(amounts) // 2):
        before, after = (call.literal(a) for a in amounts[2 * pair : 2 * pair + 2])
        if not (equal(before, 0) and equal(after, 0)):
            result[-1 - pair] = concatenate([Axis(before), result[-1 - pair], Axis(after)])
    return result
