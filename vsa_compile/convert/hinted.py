"""The video that a hint shows in a call, where the graph shows none."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple

from ..analysis import Analysis, Segment, read_segments, same_tokens
from ..analysis.algebra import REORDERED, Size, equal, wholes
from ..analysis.pieces import cut
from ..analysis.tokens import offset, out_of_order, within
from ..analysis.walk import AttentionCall
from ..grid import Grid, Hint
from ..torch_compat import depends_on_data, guard_equal
from .no_video import are_inputs, is_one_axis

Segments = tuple[Segment, ...]


class Video(NamedTuple):
    """The video of a call: the segments of its queries, where it starts among queries and keys, and whether a
    hint had to say so."""

    segments: Segments
    grid: Grid
    q_start: Size
    kv_start: Size
    hinted: bool = False

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
    """The video at the place that the hint names, or in the only segment of as many tokens if it names none;
    None if there is none, or if the graph shows that they are arranged otherwise.

    Its keys must be the same tokens; equal length alone proves nothing. The exception are queries and keys
    that are both inputs of the graph, of which nothing is known: each may hold the video. A symbolic length
    that fits in the example inputs becomes a guard, since the grid is a constant.
    """
    given = len(segments) == len(keys) == 1 and are_inputs(analysis, call.known["query"], call.known["key"])
    whole = [one.size for one in segments]
    segments, candidates = _candidates(analysis, segments, hint)
    fit = [i for i in candidates if fills(analysis, segments[i], hint, videos)]
    places = [(i, offset(keys, j) + at) for i in fit for j, key in enumerate(keys)
              if (at := within(segments[i].axis, key.axis)) is not None]  # fmt: skip
    if fit and not places and given:
        whole += [one.size for one in keys]
        keys, candidates = _candidates(analysis, keys, hint)
        places = [(fit[0], offset(keys, j)) for j in candidates if fills(analysis, keys[j], hint, videos)]
    if len(places) != 1:
        return None
    i, kv_start = places[0]
    values, of_keys = call.tokens("value"), call.tokens("key")
    pinned = whole if given or hint.length is not None else [segments[i].size]
    if values is not None and of_keys is not None and not same_tokens(values, of_keys):
        pinned = [*pinned, values.size]  # in a graph of q, k and v alone they are separate tokens
    known = {size: analysis.hint(size) for size in pinned if not isinstance(size, int)}
    for size, tokens in known.items() if guard else ():
        guard_equal(size, tokens, analysis.environment)
    q_start, kv_start = (_as_numbers(at, known) for at in (offset(segments, i), kv_start))
    return Video(segments, Grid(*hint.grid), q_start, kv_start, hinted=True)


def _as_numbers(size: Size, known: dict[Size, int]) -> Size:
    """A size in which symbols that were pinned are numbers: they are no inputs of the graph any more."""
    numbers = {one: number for one, number in known.items() if getattr(one, "is_Symbol", False)}
    made = size if isinstance(size, int) else size.subs(numbers)
    return int(made) if isinstance(made, int) or made.is_Integer else made


def _candidates(analysis: Analysis, segments: Segments, hint: Hint) -> tuple[Segments, list[int]]:
    """The segments, and the indices of those that the hint may speak of. If it names a place in a sequence,
    the video there is a segment of its own."""
    if hint.length is None:
        return segments, [*range(len(segments))]
    if any(depends_on_data(one.size) for one in segments):
        return segments, []
    sizes = [analysis.hint(one.size) for one in segments]
    if sum(sizes) != hint.length:
        return segments, [i for i, one in enumerate(segments) if _is_named(analysis, one, hint)]
    for i, (segment, size) in enumerate(zip(segments, sizes, strict=True)):
        start = hint.start - sum(sizes[:i])
        if start >= 0 and start + hint.tokens <= size:
            ends = sorted({0, start, start + hint.tokens, size})
            runs = [cut(segment.axis, *ends) for ends in pairwise([*ends[:-1], segment.size])]
            parts = [part for run in runs for part in read_segments(run)]
            return (*segments[:i], *parts, *segments[i + 1 :]), [i + ends.index(start)]
    return segments, []


def _is_named(analysis: Analysis, segment: Segment, hint: Hint) -> bool:
    """Whether a segment was cut out of a sequence where the hint says that the video is."""
    if segment.axis.cut is None:
        return False
    whole, start, _ = segment.axis.cut
    return analysis.hint(whole.size) == hint.length and equal(start, hint.start)


def fills(analysis: Analysis, segment: Segment, hint: Hint, videos: Sequence[Segments]) -> bool:
    """Whether a hinted grid may apply to a segment: it has as many tokens, and nothing contradicts it.

    Reordered tokens, looked-up ids and axes in another order are no video; axes that are known in part may be
    (frames, rows * cols). An input of the graph is something else, a text as long as the video, if
    `videos`, what the graph shows of them in the queries of each call, in whatever order, are as many tokens.
    """
    if analysis.hint(segment.size) != hint.tokens or segment.order == REORDERED or segment.in_windows:
        return False
    if segment.grid is not None and tuple(map(analysis.hint, segment.grid)) != hint.grid:
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
