"""Why the queries of a call show no video, and whether a hint may say that they are one."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch.fx import Node

from ..analysis import Analysis, Segment, same_tokens
from ..analysis.algebra import REORDERED, Axis, equal, factors, origins, same, shares, wholes
from ..analysis.pieces import reordered_by
from ..analysis.tokens import offset, out_of_order, within
from ..analysis.walk import AttentionCall
from ..grid import Grid
from ..torch_compat import depends_on_data, is_floor_division
from . import refusals
from .refusals import Reason


def fills(analysis: Analysis, segment: Segment, grid: Grid, videos: Sequence[tuple[Segment, ...]]) -> bool:
    """Whether a hinted grid may apply to a segment: it has as many tokens, and nothing contradicts it.

    Reordered tokens, looked-up ids and axes in another order are no video; axes that are known in part may be
    (frames, rows * cols). An input of the graph is something else, a text as long as the video, if
    `videos`, what the graph shows of them in the queries of each call, in whatever order, are as many tokens.
    """
    if analysis.hint(segment.size) != grid.tokens or segment.order == REORDERED or segment.in_windows:
        return False
    if segment.axis in analysis.inputs and any(grid.tokens in _lengths(analysis, video) for video in videos):
        return False
    atoms = wholes(segment.axis, opaque=True)
    if len(atoms) == 1:
        return not _is_one_axis(atoms[0], [])
    sizes = [analysis.hint(atom.size) for atom in atoms]
    ends = {prod(sizes[: i + 1]) for i in range(len(sizes))}
    shown = ends <= {grid.frames, grid.frames * grid.rows, grid.tokens}
    return shown and all(atom.whole is None for atom in atoms) and not out_of_order(atoms)


def _lengths(analysis: Analysis, video: tuple[Segment, ...]) -> list[int]:
    """How long the videos of a call are in the example inputs: one that was cut and reordered, all parts."""
    parts = sum(analysis.hint(one.size) for one in video if one.order == REORDERED)
    return [parts, *(analysis.hint(one.size) for one in video)]


def same_samples(analysis: Analysis, call: AttentionCall) -> bool:
    """Whether row b of queries and keys is of one sample, or nothing is known of both but that they are two
    inputs of the graph."""
    q, k = call.known["query"], call.known["key"]
    places = dict(q.taken)
    for axis, at in k.taken:  # q = x[0] and k = x[1]; in q, k, v = qkv.unbind(2) a layer made the axis
        if axis in places and places[axis] != at and _of_an_input(analysis, axis):
            return False
    if not (q.given and k.given):
        return shares(q.axes[0], k.axes[0])
    return not (q.axes[0].cut and k.axes[0].cut) or same(q.axes[0], k.axes[0])


def _of_an_input(analysis: Analysis, axis: Axis) -> bool:
    """Whether an axis is one of an input of the graph, or was split from one."""
    node: Axis | None = axis
    while node is not None:
        if not node.members.isdisjoint(analysis.inputs):
            return True
        node = node.whole
    return False


def why_no_video(
    analysis: Analysis,
    call: AttentionCall,
    segments: tuple[Segment, ...],
    keys: tuple[Segment, ...],
    shows_video: bool,
) -> Reason:
    same = len(segments) == len(keys) and all(
        same_tokens(q.axis, k.axis) for q, k in zip(segments, keys, strict=True)
    )
    longest = max(segments, key=lambda segment: analysis.hint(segment.size))
    as_long = equal(offset(segments, len(segments)), offset(keys, len(keys)))
    # The keys may contain those tokens and others: [text | video] for queries that are the video alone.
    same = same or any(within(longest.axis, k.axis) is not None for k in keys)
    if not same and _told_apart_by_data(segments, keys):
        return refusals.lengths_are_data()
    if as_long and longest.factors == 2 and longest.order and _split_by_stranger(longest.axis):
        return refusals.split_by_a_symbol()
    if not same and (shows_video or longest.factors > 1 or not as_long):
        return refusals.cross()
    if longest.in_windows:
        return refusals.windows(repr(longest.axis))
    if longest.order == REORDERED:
        return refusals.reordered(reordered_by(longest.axis), asked=not shows_video)
    if longest.factors == 2:
        return refusals.unknown_grid() if _split_by_stranger(longest.axis) else refusals.two_axes()
    if longest.factors > 2:
        return refusals.not_raster(repr(longest.axis))
    known = shows_video or longest.factors == 0 or _is_one_axis(longest.axis, _batch(call))
    return refusals.one_axis() if known else refusals.unknown_grid()


def _told_apart_by_data(segments: tuple[Segment, ...], keys: tuple[Segment, ...]) -> bool:
    """Whether queries and keys may be the same tokens after all, cut at a data-dependent length."""
    known = [[one for one in side if not depends_on_data(one.size)] for side in (segments, keys)]
    cut = all(len(rest) < len(side) for rest, side in zip(known, (segments, keys), strict=True))
    alike = len(known[0]) == len(known[1])
    return cut and alike and all(same_tokens(q.axis, k.axis) for q, k in zip(*known, strict=True))


def _split_by_stranger(tokens: Axis) -> bool:
    """Whether n tokens are x * (n // x), with an x that is not known to be an axis of them (the number of
    frames in another input, for instance). Such tokens have two axes in writing, but may have three."""
    sizes = [whole.size for whole in wholes(tokens)]
    return any(
        not isinstance(rest, int) and is_floor_division(rest) and equal(rest.args[1], size)
        for size, rest in (sizes, sizes[::-1])
    )


def _batch(call: AttentionCall) -> list[Axis]:
    """The factors of the queries' batch dimension."""
    return [factor for axis in call.known["query"].axes[:-3] for factor in factors(axis)]


def _is_one_axis(tokens: Axis, batch: list[Axis]) -> bool:
    """Whether tokens are known to be one axis of a value: looked-up ids, or frames with rows in the batch.

    An axis of an input proves nothing: the input may be coordinates, (batch, 3, tokens, 2).
    """
    for value, _ in origins(tokens):
        inputs = isinstance(value, Node) and value.op in ("placeholder", "get_attr")
        others = [at for axis in batch for origin, at in origins(axis) if origin is value]
        if not inputs or any(at > 0 for at in others):
            return True
    return False
