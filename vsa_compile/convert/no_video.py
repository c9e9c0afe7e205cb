"""Why queries show no video, for people, and where runs of tokens lie.

May be imported by sites alone; imports errors, layout and torch_compat.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ..analysis import Analysis, Segment, same_tokens
from ..analysis.algebra import Axis, Size, equal, factors, find
from ..torch_compat import depends_on_data, is_floor_division
from . import refusals
from .refusals import Reason


def within(tokens: Axis, keys: Axis) -> Size | None:
    """Where tokens start in a run of keys that holds them: all of it, or cut from it. None if unknown."""
    if equal(tokens.size, 1) or same_tokens(tokens, keys):
        return None if equal(tokens.size, 1) else 0
    run = find(tokens).cut
    return run[1] if run is not None and same_tokens(run[0], keys) else None


def why_no_video(
    analysis: Analysis,
    arguments: dict[str, Any],
    segments: tuple[Segment, ...],
    keys: tuple[Segment, ...],
    shows_video: bool,
) -> Reason:
    same = len(segments) == len(keys) and all(
        same_tokens(q.axis, k.axis) for q, k in zip(segments, keys, strict=True)
    )
    longest = max(segments, key=lambda segment: analysis.hint(segment.size))
    as_long = equal(offset(segments, len(segments)), offset(keys, len(keys)))
    # Or the keys are those tokens and others: [text | video] for queries that are the video alone.
    same = same or any(within(longest.axis, k.axis) is not None for k in keys)
    if not same and _told_apart_by_data(segments, keys):
        return refusals.lengths_are_data()
    if not same and (shows_video or longest.factors > 1 or not as_long):
        return refusals.cross()
    if longest.factors == 2:
        return refusals.unknown_grid() if _split_by_stranger(longest.axis) else refusals.two_axes()
    if longest.factors > 2:
        return refusals.not_raster(repr(longest.axis))
    known = shows_video or longest.factors == 0 or _is_one_axis(longest.axis, _batch(analysis, arguments))
    return refusals.one_axis() if known else refusals.unknown_grid()


def _told_apart_by_data(segments: tuple[Segment, ...], keys: tuple[Segment, ...]) -> bool:
    """Whether queries and keys may be the same tokens after all, cut apart at a length that is data."""
    pairs = list(zip(segments, keys, strict=False))
    data = [depends_on_data(q.size) and depends_on_data(k.size) for q, k in pairs]
    alike = len(segments) == len(keys) and any(data)
    return alike and all(d or same_tokens(q.axis, k.axis) for d, (q, k) in zip(data, pairs, strict=True))


def _split_by_stranger(tokens: Axis) -> bool:
    """Whether n tokens are x * (n // x), with an x that the graph does not know to be an axis of them (frames
    that it counts in another input, say). Two axes in writing, they may be three."""
    sizes = [factor.size for factor in factors(tokens)]
    return any(
        not isinstance(rest, int) and is_floor_division(rest) and equal(rest.args[1], size)
        for size, rest in (sizes, sizes[::-1])
    )


def _batch(analysis: Analysis, arguments: dict[str, Any]) -> list[Axis]:
    """What the queries' batch dimension is made of."""
    layout = analysis.values[arguments["query"]]
    return [factor for axis in layout[:-3] for factor in factors(axis)]


def _is_one_axis(tokens: Axis, batch: list[Axis]) -> bool:
    """Whether tokens are known to be one axis of a value: looked-up ids, or frames with rows in the batch.

    That they are one axis of an input alone says nothing: it may be (batch, 3, tokens, 2) coordinates.
    """
    for value, _ in find(tokens).origins:
        inputs = isinstance(value, Node) and value.op in ("placeholder", "get_attr")
        others = [at for axis in batch for origin, at in find(axis).origins if origin is value]
        if not inputs or any(at > 0 for at in others):
            return True
    return False


def offset(segments: tuple[Segment, ...], index: int) -> Size:
    total: Size = 0
    for segment in segments[:index]:
        total = total + segment.size
    return total
