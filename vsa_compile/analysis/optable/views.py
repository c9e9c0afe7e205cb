"""Operators that rearrange dimensions: views and copies."""

from __future__ import annotations

from itertools import combinations

import torch

from ..algebra import (
    Axis,
    factors,
    mark_origins,
    multiply,
    origins,
    rigid,
    unit,
    wholes,
)
from ..regroup import regroup
from ..sizes import equal
from ..values import Layout, OpCall, Result, Volume
from . import carry
from .table import op, own, python


@op(
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as",
    "_unsafe_view", "_reshape_alias", fact=carry.moved,
)  # fmt: skip
def _reshape(call: OpCall) -> Result:
    """A regrouping of the same elements in the same order, which the output sizes describe fully."""
    if call.name == "view" and isinstance(call.arg(1, "dtype"), type(call.example.dtype)):
        return None  # the same bits in another dtype
    return regroup(call.input, call.sizes) if call.input is not None else None


def _show_video(before: Layout, layout: Layout) -> None:
    """Mark tokens that were split into three dimensions as a video, if channels were moved in front of them.
    `before`: the layout before the move.

    (B, N, c p q) -> (B, T, H, W, c, p, q) -> (B, c, T, H, p, W, q) is an unpatchify: it makes a picture of
    channels over three axes. Splitting a dimension into three alone proves nothing: audio is pooled that way.
    Patches have rows and cols or neither: (B, heads, T, H, W, width) is no picture; nor is (B, N, 3, H, D).
    """
    pieces = [(position, axis) for position, axis in enumerate(layout) if axis.whole and not origins(axis)]
    for three in combinations(pieces, 3):
        first, second, third = (position for position, _ in three)
        if (
            first < 2
            or third - second != len(layout) - third
            or max(second - first, third - second) > 2
            or equal(layout[first - 1].size, 1)
            or before.index(layout[first - 1]) < max(before.index(axis) for _, axis in three)
            or any(axis is layout[first - 1] for _, axis in three)
        ):
            continue
        axes = [axis for _, axis in three]
        whole = wholes(multiply(axes), opaque=True)
        if len(whole) == 1 and len(factors(whole[0])) == 3 and not rigid(whole[0]):
            mark_origins(axes, Volume(("unpatchify", whole[0])))


@op("permute", fact=carry.moved)
def _permute(call: OpCall) -> Result:
    layout = call.input
    if layout is None:
        return None
    result = [layout[dim] for dim in call.rest(1, "dims")]
    _show_video(layout, result)
    return result


@op("transpose", "swapaxes", "swapdims", fact=carry.turned)
def _transpose(call: OpCall) -> Result:
    layout = call.input
    if layout is None:
        return None
    a, b = (call.arg(i, f"dim{i - 1}", call.arg(i, f"axis{i - 1}")) for i in (1, 2))
    result = list(layout)
    result[a], result[b] = result[b], result[a]
    _show_video(layout, result)
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


@op("adjoint", fact=carry.turned)
def _adjoint(call: OpCall) -> Result:
    return _matrix_transpose(call)


@own("aten::unfold")
@python(torch.Tensor.unfold)
def _unfolded(call: OpCall) -> Result:
    """x.unfold(dim, size, size): patches along a dimension, whose inside comes last."""
    layout, dim, size = call.input, call.arg(1, "dimension"), call.literal(call.arg(2, "size"))
    if layout is None or not isinstance(dim, int) or not equal(size, call.literal(call.arg(3, "step"))):
        return None
    dim %= len(layout)
    count = call.sizes[dim]
    if not equal(count * size, layout[dim].size):
        return None
    outer, inner = regroup([layout[dim]], [count, size])
    return [*layout[:dim], outer, *layout[dim + 1 :], inner]


@op("pixel_unshuffle", "pixel_shuffle")
def _pixels(call: OpCall) -> Result:
    """(..., C, H * r, W * r) <-> (..., C * r * r, H, W)."""
    layout, r = call.input, call.literal(call.arg(1, "downscale_factor", call.arg(1, "upscale_factor")))
    if layout is None or len(layout) < 3:
        return None
    *front, channels, rows, cols = layout
    inside = call.name == "pixel_unshuffle"
    (c, h, w) = [axis.size for axis in layout[-3:]] if inside else call.sizes[-3:]
    if inside:
        c, h, y, w, x = regroup([channels, rows, cols], [c, call.sizes[-2], r, call.sizes[-1], r])
        return [*front, multiply([c, y, x]), h, w]
    c, y, x, h, w = regroup([channels, rows, cols], [c, r, r, rows.size, cols.size])
    return [*front, c, multiply([h, y]), multiply([w, x])]


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
    _show_video(layout, result)
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


@op("view_as_real")
def _view_as_real(call: OpCall) -> Result:
    layout = call.input
    return layout and [*layout, Axis(2)]


@op("view_as_complex")
def _view_as_complex(call: OpCall) -> Result:
    layout = call.input
    return layout and layout[:-1]
