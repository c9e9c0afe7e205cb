"""Our own operators that mark a graph: `hint` (a grid) and `gate`."""

from __future__ import annotations

import sympy

from ..algebra import (
    REORDERED,
    Axis,
    concatenate,
    mark_origins,
    multiply,
    rigid,
    segments,
    wholes,
)
from ..pieces import order
from ..sizes import equal
from ..tokens import out_of_order
from ..unify import unify
from ..values import Known, OpCall, Result, Volume
from .table import own


@own("vsa_compile::hint")
def _hint(call: OpCall) -> Result:
    """The tokens (last dimension but one) from `start` on are the raster video of a grid.

    Without a start all are, so frames * rows * cols is their number; if algebra does not show that, cols is
    spelled as the quotient. A hint fills what is unknown; an arrangement that the graph shows stands.
    """
    known, grid = call.known(call.self_), [call.literal(size) for size in call.arg(1, "grid")]
    if known is None:
        return None
    layout = known.axes
    tokens, start = call.sizes[-2], call.literal(call.arg(2, "start"))
    frames, rows, cols = (Axis(size) for size in grid)
    if start is None and not equal(multiply([frames, rows, cols]).size, tokens):
        cols.size = sympy.sympify(tokens) / (frames.size * rows.size)
    mark_origins([frames, rows, cols], Volume(call.node))
    video = multiply([frames, rows, cols])
    if start is not None:
        video = concatenate([Axis(start), video, Axis(tokens - start - video.size)])
    hinted = _hinted(layout[-2], video)
    return Known([*layout[:-2], hinted, layout[-1]], None, known.table)


def _hinted(axis: Axis, video: Axis) -> Axis:
    """The axis of hinted tokens: their own, unified with the hint, or a new one if nothing was known."""
    if order(axis) == REORDERED or out_of_order(wholes(axis)):
        return axis
    if rigid(axis):
        return video if len(segments(axis)) == 1 else axis
    unify(axis, video)
    return axis


@own("vsa_compile::gate")
def _gate(call: OpCall) -> Result:
    """The first argument, unchanged."""
    return call.input
