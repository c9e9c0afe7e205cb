"""Pieces of an axis: cutting, finding and replacing them."""

from __future__ import annotations

from itertools import pairwise

from torch.fx import Node

from .algebra import (
    REORDERED,
    UNKNOWN,
    Axis,
    Cut,
    concatenate,
    factors,
    form_of,
    leaves,
    multiply,
    origins,
    pieces,
    rigid,
    run,
    same,
    segments,
    unit,
    wholes,
)
from .sizes import Size, at_most, divided, equal, product


def cut(axis: Axis, start: Size, stop: Size) -> Axis:
    """axis[start:stop]: the axis itself, some of its segments and runs of them, or a run of it."""
    if equal(start, 0) and equal(stop, axis.size):
        return axis
    begin: Size = 0
    taken: list[Axis] = []
    for segment in segments(axis):
        end = begin + segment.size
        first, last = _between(start, begin, end), _between(stop, begin, end)
        if first is None or last is None:  # the order of the ends depends on data
            return run(axis, start, stop)
        if not equal(first, last):
            all_of_it = equal(first, begin) and equal(last, end)
            taken.append(segment if all_of_it else run(segment, first - begin, last - begin))
        begin = end
    return concatenate(taken) if taken else run(axis, start, stop)


def _between(position: Size, begin: Size, end: Size) -> Size | None:
    """`position` clamped to [begin, end]; None if their order is not known."""
    if at_most(position, begin):
        return begin
    if at_most(end, position):
        return end
    return position if at_most(begin, position) and at_most(position, end) else None


def single_of(*axes: Axis) -> Axis:
    """A position that an index takes out of axes: two that are taken out are not the same."""
    result, several = unit(), [axis for axis in axes if not equal(axis.size, 1)]
    result.thinned = several[0] if several else None
    return result


def put(axis: Axis, start: Size, piece: Axis) -> Axis:
    """The axis after `piece` was put at `start`."""
    stop = start + piece.size
    return concatenate([cut(axis, 0, start), piece, cut(axis, stop, axis.size)])


def put_somewhere(axis: Axis, piece: Axis) -> Axis:
    """The axis after `piece` was put at unknown positions."""
    return Axis(axis.size, rigid=REORDERED if rigid(piece) == REORDERED else UNKNOWN)


def place(piece: Axis, axis: Axis) -> Size | None:
    """Where a piece of an axis starts; None if it is not found, or found twice."""
    if _is(piece, axis):
        return 0
    first, begin = segments(piece)[0], 0
    starts: list[Size] = []
    for segment in segments(axis):
        start = _start_within(first, segment)
        if start is not None and same(cut(axis, begin + start, begin + start + piece.size), piece):
            starts.append(begin + start)
        begin = begin + segment.size
    return starts[0] if len(starts) == 1 else None


def _start_within(piece: Axis, segment: Axis) -> Size | None:
    if _is(piece, segment):
        return 0
    if piece.cut is None:
        return None
    base, start, stop = piece.cut
    if same(base, segment):
        return start
    whole, begin, end = segment.cut or (segment, 0, segment.size)
    inside = same(base, whole) and at_most(begin, start) and at_most(stop, end)
    return start - begin if inside else None


def _is(piece: Axis, axis: Axis) -> bool:
    """Whether an axis is the piece; axes of size 1 must be the same object."""
    return piece is axis or (not equal(piece.size, 1) and same(piece, axis))


def replaced(axis: Axis, old: Axis, new: Axis) -> Axis | None:
    """`axis` with `new` for `old`, which is all of it, a factor or a piece; None if `old` is not in it."""
    if _is(old, axis):
        return new
    if old.thinned is not None and same(old.thinned, axis):
        return put_somewhere(axis, new)
    start = place(old, axis)
    if start is not None:
        return put(axis, start, new)
    for taken, assembled in ((segments, concatenate), (_nodes, multiply)):
        parts = taken(axis)
        found = [replaced(part, old, new) for part in parts] if len(parts) > 1 else []
        if sum(one is not None for one in found) == 1:
            return assembled([one or part for one, part in zip(found, parts, strict=True)])
    return None


def _nodes(axis: Axis) -> list[Axis]:
    return wholes(axis, opaque=True)


def order(axis: Axis) -> str:
    """The rigidity of an axis; REORDERED, too, if its runs are in another order, or one of them is askew."""
    return REORDERED if turned(axis) or _askew(axis) else rigid(axis)


def _askew(axis: Axis) -> bool:
    """Whether an axis has a run of frames * rows * cols, or of another product, that is not of whole frames.

    Rows that were repeated are such a product, (2, rows). What such a run is split into is askew, too.
    """
    return any(map(_of_askew, leaves(axis)))


def _of_askew(node: Axis) -> bool:
    """Whether a node is an askew run or was split from one. Of joined tokens all must be: others give the
    node their order."""
    if len(node.members) > 1:
        return all(map(_of_askew, node.members))
    amid = node.cut is not None and _amid(*node.cut)
    return amid or (node.whole is not None and _of_askew(node.whole))


def _amid(base: Axis, start: Size, stop: Size) -> bool:
    inner = product(one.size for one in wholes(base)[1:])
    return not equal(inner, 1) and any(divided(at, inner) is None for at in (start, stop))


def turned(axis: Axis) -> bool:
    """Whether runs of one axis follow each other in another order than in that axis.

    Of joined tokens, those of one are enough, though others may be in order.
    """
    before: list[Cut] = []
    for segment in segments(axis):
        inner = [factor for factor in factors(segment) if len(segments(factor)) > 1]
        if any(factor is not axis and turned(factor) for factor in inner):
            return True
        cuts = [member.cut for member in segment.members if member.cut is not None]
        if any(
            base is other and at_most(start + 1, stop) for base, start, _ in cuts for other, _, stop in before
        ):
            return True
        before += cuts
    return False


def derived(axis: Axis, size: Size, *, frames: bool = False) -> Axis:
    """A new axis parallel to `axis` at another resolution (convolution, pooling, padding).

    Runs of frames that follow each other in another order, reference frames put first, are a new clip.
    """
    known = [source for source in segments(axis) if origins(source)]
    inside = [part for part in segments(axis) if part.cut is None]
    own = inside[0] if len(inside) == 1 and _is_halo(axis, inside[0]) else axis
    orders = {_order_of_run(part) for part in (segments(axis) if frames else [own])} - {""}
    kept = REORDERED if _interleaved(axis) or REORDERED in orders else "".join(orders)
    result = Axis(size, origins(known[0]) if len(known) == 1 else (), rigid=kept)
    result.source = known[0] if len(known) == 1 else axis
    return result


def _order_of_run(axis: Axis) -> str:
    """The order of an axis. A run of frames and the pixels within each may begin amid one."""
    outer, *inner = factors(axis.cut[0]) if axis.cut else [axis]
    upsampled = inner and _is_of_tokens(outer) and not any(map(_is_of_tokens, inner))
    return rigid(axis) if upsampled else order(axis)


def _is_of_tokens(node: Axis) -> bool:
    """Whether a node is frames, rows or cols of a value, and not channels: inputs have these second."""
    return any(
        position > 1 or not (isinstance(value, Node) and value.op == "placeholder")
        for value, position in origins(node)
    )


def _is_halo(axis: Axis, whole: Axis) -> bool:
    """Whether an axis is another one between runs of it, as circular padding puts them there."""
    return all(one is whole or (one.cut is not None and one.cut[0] is whole) for one in segments(axis))


def _interleaved(axis: Axis) -> bool:
    """Whether an axis holds every n-th position of another one and then others of it, or inner parts of
    frames, rows or cols that do not follow their outer parts."""
    thinned = [segment.thinned for segment in segments(axis) if segment.thinned is not None]
    neighbours = pairwise(factors(axis))
    return len(thinned) > len(set(thinned)) or any(_misplaced(*pair) for pair in neighbours)


def _misplaced(before: Axis, after: Axis) -> bool:
    whole = after.whole
    if whole is None:
        return False
    place = pieces(whole).index(after)
    if before.whole is whole:
        return pieces(whole).index(before) > place
    return place > 0 and _is_of_tokens(whole)  # pixels are parts of channels


def reordered_by(axis: Axis) -> str:
    """The operator that put an axis into another order, or a description."""
    if _askew(axis) and not turned(axis):
        return "they are cut out amid a frame"
    names = (form_of(leaf).by for leaf in leaves(axis))
    return next(filter(None, names), "its runs follow each other in another order than where they come from")
