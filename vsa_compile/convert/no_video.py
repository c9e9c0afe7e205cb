"""Why the queries of a call show no video."""

from __future__ import annotations

from torch.fx import Node

from ..analysis import Analysis, Segment, same_tokens
from ..analysis.algebra import REORDERED, Axis, equal, factors, origins, rigid, shares, taken_out, wholes
from ..analysis.pieces import reordered_by
from ..analysis.tokens import offset, within
from ..analysis.values import Known
from ..analysis.walk import AttentionCall
from ..torch_compat import depends_on_data, is_floor_division
from . import refusals
from .refusals import Reason


def same_samples(analysis: Analysis, call: AttentionCall) -> bool:
    """Whether row b of queries and keys is of one sample, or nothing is known of both but that they are two
    inputs of the graph. What stands where heads do may be samples, too: views, or clips."""
    q, k = call.known["query"], call.known["key"]
    taken = dict(q.taken)
    for axis, at in k.taken:  # q = x[0] and k = x[1]; in q, k, v = qkv.unbind(2) a layer made the axis
        if axis in taken and taken[axis] != at and _of_tokens(analysis, axis):
            return False
    if are_inputs(analysis, q, k):
        return True
    heads = q.axes[-3], k.axes[-3]
    views = any(_in_front(one, q.axes[-2]) or _beside(one, q.axes[0]) for one in heads)
    return _one_sample(q.axes[0], k.axes[0]) and (not views or _one_sample(*heads))


def are_inputs(analysis: Analysis, *values: Known) -> bool:
    """Whether values are inputs of the graph, each another one, with all their tokens, for all samples."""
    tokens, samples = ([one.axes[dim] for one in values] for dim in (-2, 0))
    whole = all(node in analysis.inputs for axis in tokens for node in wholes(axis, opaque=True))
    whole = whole and not any(rigid(axis) or taken_out(axis) for axis in samples)
    return whole and all(one.given for one in values) and len({*tokens}) == len(values)


def _one_sample(a: Axis, b: Axis) -> bool:
    """Whether two axes hold the same samples; a single one that was taken out is not just any single one."""
    return shares(a, b) and taken_out(a) == taken_out(b)


def _of_tokens(analysis: Analysis, axis: Axis) -> bool:
    """Whether an axis is one of an input of the graph or of a volume, or was split from one."""
    node: Axis | None = axis
    while node is not None:
        if origins(node) or not node.members.isdisjoint(analysis.inputs):
            return True
        node = node.whole
    return False


def _beside(axis: Axis, batch: Axis) -> bool:
    """Whether an axis was split from the batch: views of each of its samples."""
    base = axis.cut[0] if axis.cut else axis
    return base.whole is not None and base.whole is batch.whole


def _in_front(axis: Axis, tokens: Axis) -> bool:
    """Whether an axis is one of the value that the tokens are of, and in front of them there."""
    base = axis.cut[0] if axis.cut else axis
    found = {} if base.whole else dict(origins(base))  # heads are split from channels
    return any(found.get(value, at) < at for atom in wholes(tokens) for value, at in origins(atom))


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
    known = shows_video or longest.factors == 0 or is_one_axis(longest.axis, _batch(call))
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


def is_one_axis(tokens: Axis, batch: list[Axis]) -> bool:
    """Whether tokens are known to be one axis of a value: looked-up ids, or frames with rows in the batch.

    An axis of an input proves nothing: the input may be coordinates, (batch, 3, tokens, 2).
    """
    for value, _ in origins(tokens):
        inputs = isinstance(value, Node) and value.op in ("placeholder", "get_attr")
        others = [at for axis in batch for origin, at in origins(axis) if origin is value]
        if not inputs or any(at > 0 for at in others):
            return True
    return False
