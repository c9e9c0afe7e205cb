"""The video that a hint shows in a call, where the graph shows none."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple

from ..analysis import Analysis, Segment, read_segments
from ..analysis.algebra import REORDERED, Size, wholes
from ..analysis.pieces import cut
from ..analysis.tokens import offset, out_of_order, within
from ..analysis.walk import AttentionCall
from ..grid import Grid, Hint
from ..torch_compat import guard_equal
from .no_video import are_inputs, is_one_axis

Segments = tuple[Segment, ...]


class Video(NamedTuple):
    """The video of a call: the segments of its queries, and where it starts among queries and keys."""

    segments: Segments
    grid: Grid
    q_start: Size
    kv_start: Size

    @property
    def kv_stop(self) -> Size:
        return self.kv_start + self.grid.tokens


def hinted_video(
    analysis: Analysis,
    call: AttentionCall,
    hint: Hint,
    segments: Segments,
    keys: Segments,
    videos: Sequence[Segments],
    guard: bool,
) -> Video | None:
    """The video at the place that the hint names, else in the only segment of as many tokens; None if there
    is none, or if the graph shows that they are arranged otherwise.

    Its keys must be the same tokens; equal length alone proves nothing. The exception are queries and keys
    that are both inputs of the graph, of which nothing is known: each may hold the video. A symbolic length
    that fits in the example inputs becomes a guard, since the grid is a constant.
    """
    given = len(segments) == len(keys) == 1 and are_inputs(analysis, call.known["query"], call.known["key"])
    named, pinned = _named(analysis, segments, hint), [one.size for one in segments]
    segments, candidates = named or (segments, [*range(len(segments))])
    fit = [i for i in candidates if fills(analysis, segments[i], hint, videos)]
    places = [(i, offset(keys, j) + at) for i in fit for j, key in enumerate(keys)
              if (at := within(segments[i].axis, key.axis)) is not None]  # fmt: skip
    if fit and not places and given:
        pinned += [one.size for one in keys]
        keys, candidates = (_named(analysis, keys, hint) if named else None) or (keys, [0])
        places = [(fit[0], offset(keys, j)) for j in candidates if fills(analysis, keys[j], hint, videos)]
    if len(places) != 1:
        return None
    i, kv_start = places[0]
    values = call.tokens("value")  # in a graph of q, k and v alone they are separate tokens
    pinned = [*(pinned if named or given else [segments[i].size]), *([values.size] if values else [])]
    for size in pinned if guard else ():
        if not isinstance(size, int):
            guard_equal(size, analysis.hint(size), analysis.environment)
    return Video(segments, Grid(*hint.grid), offset(segments, i), kv_start)


def _named(analysis: Analysis, segments: Segments, hint: Hint) -> tuple[Segments, list[int]] | None:
    """The segments with the video that the hint names as one of them, and its index; None if they are another
    number of tokens than the hint says, or if the video lies in several."""
    sizes = [analysis.hint(one.size) for one in segments]
    if sum(sizes) != hint.length:
        return None
    for i, (segment, size) in enumerate(zip(segments, sizes, strict=True)):
        start = hint.start - sum(sizes[:i])
        if start >= 0 and start + hint.tokens <= size:
            ends = sorted({0, start, start + hint.tokens, size})
            runs = [cut(segment.axis, *ends) for ends in pairwise([*ends[:-1], segment.size])]
            parts = [part for run in runs for part in read_segments(run)]
            return (*segments[:i], *parts, *segments[i + 1 :]), [i + ends.index(start)]
    return None


def fills(analysis: Analysis, segment: Segment, hint: Hint, videos: Sequence[Segments]) -> bool:
    """Whether a hinted grid may apply to a segment: it has as many tokens, and nothing contradicts it.

    Reordered tokens, looked-up ids and axes in another order are no video; axes that are known in part may be
    (frames, rows * cols). An input of the graph is something else, a text as long as the video, if
    `videos`, what the graph shows of them in the queries of each call, in whatever order, are as many tokens.
    """
    if analysis.hint(segment.size) != hint.tokens or segment.order == REORDERED or segment.in_windows:
        return False
    whole = segment.axis.cut[0] if segment.axis.cut else segment.axis
    lengths = [length for video in videos for length in _lengths(analysis, video)]
    if whole in analysis.inputs and analysis.hint(whole.size) in lengths:
        return False
    atoms = wholes(segment.axis, opaque=True)
    if len(atoms) == 1:
        return not is_one_axis(atoms[0], [])
    sizes = [analysis.hint(atom.size) for atom in atoms]
    ends = {prod(sizes[: i + 1]) for i in range(len(sizes))}
    grid = Grid(*hint.grid)
    shown = ends <= {grid.frames, grid.frames * grid.rows, grid.tokens}
    return shown and all(atom.whole is None for atom in atoms) and not out_of_order(atoms)


def _lengths(analysis: Analysis, video: Segments) -> list[int]:
    """How long the videos of a call are in the example inputs: one that was cut and reordered, all parts."""
    parts = sum(analysis.hint(one.size) for one in video if one.order == REORDERED)
    return [parts, *(analysis.hint(one.size) for one in video)]
