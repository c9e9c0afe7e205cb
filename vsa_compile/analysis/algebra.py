"""Axis algebra: every dimension of every value is an ordered product of axes, or a concatenation of them.

An `Axis` says *which* tokens lie along a dimension: two values have the same axis if position i of both is
the same token. Its `Form` says *how* they are arranged: into which factors or runs, and which axes of which
value these are. An operation that aligns two values unifies their forms (`unify.py`), but not their axes: one
table of positions may serve two videos. No tensors, no graph: sizes are ints or sympy, compared by algebra.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import count

from .sizes import Size, equal, product

Origin = tuple[Hashable, int]  # (the value that introduced the axes, position among them)
Cut = tuple["Axis", Size, Size]  # (the axis that a run was cut from, start, stop)

UNKNOWN, REORDERED = "unknown", "reordered"

_serial = count()


class Form:
    """How the positions along an axis are arranged; shared by all axes that were aligned with each other.

    An atom, a product of forms (`parts`) or a concatenation of forms (`segments`). `origins` says which axis
    of which multi-dimensional value an atom is: tokens whose three atoms are three axes of one value, in
    increasing order, are raster. `rigid`: a reordering or an unknown operation made the order, so it is not
    that of any operand; a rigid form is unified with nothing. `by`: the name of the reordering.
    """

    __slots__ = ("by", "forward", "origins", "parts", "rigid", "segments", "size")

    def __init__(self, size: Size, origins: Iterable[Origin] = (), rigid: str = "") -> None:
        self.size = size
        self.origins: set[Origin] = set(origins)
        self.rigid = rigid
        self.by = ""
        self.forward: Form | None = None
        self.parts: tuple[Form, ...] | None = None
        self.segments: tuple[Form, ...] | None = None

    @property
    def is_atom(self) -> bool:
        return self.parts is None and self.segments is None

    def found(self) -> Form:
        """The representative of the forms that this one was unified with."""
        form = self
        while form.forward is not None:
            form = form.forward
        return form


class Axis:
    """The tokens of one dimension: a node with a form, a product (`parts`) or a concatenation (`segments`).

    `whole` is the axis that a piece was split from, `cut` the one that a run was cut from, `thinned` the one
    of which every n-th position was taken, `source` the one that had another resolution. `astride`: an axis
    that was reshaped across its factors, and the pieces of it then, of which this is one. `members` are the
    axes whose tokens a node combines elementwise: the sum of two videos has both. `shown` is the size as the
    graph spells it, if `size` is spelled as a quotient of other sizes.
    """

    __slots__ = (
        "astride", "cut", "form", "joins", "made", "members", "parts", "pieces", "respelled", "runs",
        "segments", "serial", "shown", "size", "source", "thinned", "whole",
    )  # fmt: skip

    def __init__(
        self, size: Size, origins: Iterable[Origin] = (), *, rigid: str = "", form: Form | None = None
    ):
        self.size = size
        self.shown: Size = size
        self.form: Form | None = form or Form(size, origins, rigid)
        self.parts: tuple[Axis, ...] | None = None
        self.segments: tuple[Axis, ...] | None = None
        self.pieces: tuple[Axis, ...] | None = None  # of a node, as its form says
        self.whole: Axis | None = None
        self.cut: Cut | None = None
        self.thinned: Axis | None = None
        self.source: Axis | None = None
        self.astride: tuple[Axis, tuple[Axis, ...]] | None = None
        self.members: frozenset[Axis] = frozenset((self,))
        self.respelled: Axis | None = None
        # One object per result: products and concatenations that begin here, runs, joins.
        self.made: dict[tuple, Axis] = {}
        self.runs: list[Axis] = []
        self.joins: dict[object, Axis] = {}
        self.serial = next(_serial)

    def __repr__(self) -> str:
        pieces = segments(self)
        if len(pieces) > 1:
            return "[" + " | ".join(map(repr, pieces)) + "]"
        atoms = factors(self)
        if len(atoms) == 1 and atoms[0] is self:
            return f"{self.size}" + {"": "", UNKNOWN: "?", REORDERED: "~"}[rigid(self)]
        return "*".join(map(repr, atoms)) or "1"


def unit() -> Axis:
    """An axis of size 1. It holds no information and is unified with nothing."""
    return Axis(1)


def is_atom(axis: Axis) -> bool:
    """Whether an axis is not known to be made of others."""
    return (
        axis.form is not None and axis.parts is None and axis.segments is None and axis.form.found().is_atom
    )


def form_of(axis: Axis) -> Form:
    """The form of an axis; for a product or a concatenation, made of the forms of its pieces."""
    if axis.form is None:
        axis.form = Form(axis.size)
        if axis.segments is not None:
            axis.form.segments = tuple(map(form_of, axis.segments))
        else:
            axis.form.parts = tuple(map(form_of, axis.parts or ()))
    return axis.form.found()


def rigid(axis: Axis) -> str:
    """UNKNOWN or REORDERED if a part of an axis is rigid, else ""."""
    kinds = {form_of(leaf).rigid for leaf in leaves(axis)}
    return REORDERED if REORDERED in kinds else UNKNOWN if UNKNOWN in kinds else ""


def leaves(axis: Axis) -> Iterator[Axis]:
    """The innermost pieces of an axis, through products and concatenations."""
    for piece in segments(axis):
        for factor in factors(piece):
            yield from [factor] if len(segments(factor)) == 1 else leaves(factor)


def origins(axis: Axis) -> set[Origin]:
    """Which axes of which values a node is; empty for a product."""
    return form_of(axis).origins


def _composite(kind: str, size: Size, pieces: tuple[Axis, ...]) -> Axis:
    known = pieces[0].made if pieces else {}
    result = known.get((kind, *pieces))
    if result is None:
        result = known[(kind, *pieces)] = Axis(size)
        result.form = None
        if kind == "product":
            result.parts = pieces
        else:
            result.segments = pieces
    return result


def multiply(axes: Sequence[Axis]) -> Axis:
    """The product of axes, first factor slowest."""
    known = tuple(_reunited([factor for axis in axes for factor in factors(axis)]))
    return known[0] if len(known) == 1 else _composite("product", product(one.size for one in known), known)


def _reunited(axes: list[Axis]) -> list[Axis]:
    """Factors, in which all pieces of an axis that was reshaped across its factors are that axis again."""
    result: list[Axis] = []
    for axis in axes:
        result.append(axis)
        if axis.astride is not None:
            whole, parts = axis.astride
            if tuple(result[-len(parts) :]) == parts:
                result[-len(parts) :] = factors(whole)
    return result


def concatenate(axes: Sequence[Axis]) -> Axis:
    """The concatenation; empty segments are dropped, and adjacent runs of one axis become one run."""
    pieces = [piece for axis in axes for piece in segments(axis) if not equal(piece.size, 0)]
    known = tuple(segment for piece in _adjoined(pieces) for segment in segments(piece))
    if len(known) == 1:
        return known[0]
    total: Size = 0
    for axis in known:
        total = total + axis.size
    return _composite("concatenation", total, known)


def run(axis: Axis, start: Size, stop: Size) -> Axis:
    """axis[start:stop], of which only its origin is known; in an unknown order if the axis is."""
    base, offset = (axis.cut[0], axis.cut[1]) if axis.cut else (axis, 0)
    start, stop = offset + start, offset + stop
    for known in base.runs:
        if known.cut and equal(known.cut[1], start) and equal(known.cut[2], stop):
            return known
    result = Axis(stop - start, rigid=rigid(base))
    result.cut = (base, start, stop)
    base.runs.append(result)
    return result


def _adjoined(pieces: Sequence[Axis]) -> list[Axis]:
    result: list[Axis] = []
    for piece in pieces:
        result.append(piece)
        while len(result) > 1 and (joined := _adjoin(*result[-2:])) is not None:
            result[-2:] = [joined]
    return result


def _adjoin(left: Axis, right: Axis) -> Axis | None:
    """Two adjacent runs as one run, or as the axis if they are all of it; None if they are not adjacent."""
    if left.cut is None or right.cut is None:
        return None
    (base, start, middle), (other, begin, stop) = left.cut, right.cut
    if not (equal(middle, begin) and same(base, other)):
        return None
    if is_atom(base) and not (is_atom(left) and is_atom(right)):
        return None  # a run was marked: the runs know more than the axis that they were cut from
    return base if equal(start, 0) and equal(stop, base.size) else run(base, start, stop)


def pieces(axis: Axis) -> tuple[Axis, ...]:
    """The pieces that a node's form names. The pieces of a join are joins of its members' pieces."""
    if axis.parts is not None or axis.segments is not None:
        return axis.parts or axis.segments or ()
    if axis.pieces is None:
        form = form_of(axis)
        kids = form.parts or form.segments or ()
        if len(axis.members) > 1:
            from .unify import join

            made = [pieces(member) for member in sorted(axis.members, key=lambda member: member.serial)]
            axis.pieces = tuple(join(group) for group in zip(*made, strict=True))
        else:
            axis.pieces = tuple(Axis(kid.size, form=kid) for kid in kids)
        begin: Size = 0
        for piece in axis.pieces:
            if form.parts is not None:
                piece.whole = piece.whole or axis
            elif axis.cut is not None:
                base, start, _ = axis.cut
                piece.cut = piece.cut or (base, start + begin, start + begin + piece.size)
            begin = begin + piece.size
    return axis.pieces


def factors(axis: Axis) -> list[Axis]:
    """The atoms and concatenations whose ordered product is `axis`, without factors of size 1."""
    if axis.parts is not None:
        return [factor for part in axis.parts for factor in factors(part)]
    if axis.segments is None and form_of(axis).parts is not None:
        return [factor for piece in pieces(axis) for factor in factors(piece)]
    return [] if equal(axis.size, 1) else [axis]


def segments(axis: Axis) -> list[Axis]:
    """The pieces of a concatenation, in order; for any other axis, the axis itself."""
    if axis.segments is not None:
        return [piece for segment in axis.segments for piece in segments(segment)]
    if axis.parts is None and form_of(axis).segments is not None:
        return [piece for segment in pieces(axis) for piece in segments(segment)]
    return [axis]


def split(atom: Axis, sizes: Sequence[Size]) -> tuple[Axis, ...]:
    """Turn an atom into a product of axes of these sizes; returns them. They keep the atom's origins."""
    form = form_of(atom)
    form.parts = tuple(Form(size, form.origins, form.rigid) for size in sizes)
    return pieces(atom)


def wholes(axis: Axis, *, opaque: bool = False) -> list[Axis]:
    """The factors of `axis`, in which the pieces of a split atom that stand together again are that atom.

    Windows in one block split rows and cols for good, but the tokens of the next block are still rows and
    cols. Atoms without origins are restored only if `opaque`: bare tokens are one atom, their grid is not.
    """
    result: list[Axis] = []
    for factor in factors(axis):
        result.append(factor)
        while (whole := result[-1].whole) is not None and (opaque or origins(whole)):
            parts = [piece for piece in pieces(whole) if not equal(piece.size, 1)]
            if parts != result[-len(parts) :]:
                break
            result[-len(parts) :] = [whole]
    return result


def respelled(axis: Axis, size: Size) -> Axis:
    """The tokens of `axis` under another spelling of their size, proved equal; always the same object."""
    if axis.respelled is None or not equal(axis.respelled.size, size):
        axis.respelled = Axis(size)
    return axis.respelled


def same(a: Axis, b: Axis) -> bool:
    """Whether two axes are known to be the same tokens, factor by factor and segment by segment."""
    if a is b:
        return True
    left, right = segments(a), segments(b)
    if len(left) != len(right):
        return False
    if len(left) > 1:
        return not _single_of_others(left, right) and all(map(same, left, right))
    left, right = factors(a), factors(b)
    if len(left) != len(right):
        return False
    if not left:  # of size 1: the same, unless both were taken out of others
        return not (taken_out(a) and taken_out(b))
    return not (len(left) == 1 and left[0] is a and right[0] is b) and all(map(same, left, right))


def taken_out(axis: Axis) -> bool:
    """Whether an axis is a run or every n-th position of another one."""
    return axis.cut is not None or axis.thinned is not None


def _single_of_others(left: Sequence[Axis], right: Sequence[Axis]) -> bool:
    """Whether a single position that was cut out faces one that was not."""
    return any(equal(x.size, 1) and bool(x.cut) != bool(y.cut) for x, y in zip(left, right, strict=True))


def includes(a: Axis, b: Axis) -> bool:
    """Whether position i of `a` holds token i of `b`, and perhaps others."""
    return _leafwise(a, b, frozenset.issuperset)


def shares(a: Axis, b: Axis) -> bool:
    """Whether position i of both holds one token, and perhaps others."""
    return _leafwise(a, b, lambda x, y: not x.isdisjoint(y))


def _leafwise(a: Axis, b: Axis, holds: Callable[[frozenset[Axis], frozenset[Axis]], bool]) -> bool:
    if a is b or same(a, b):
        return True
    for taken in (segments, factors):
        left, right = taken(a), taken(b)
        if len(left) != len(right) or _single_of_others(left, right):
            return False
        if len(left) > 1:
            return all(_leafwise(x, y, holds) for x, y in zip(left, right, strict=True))
    return bool(left) and holds(left[0].members, right[0].members)


def mark_origins(axes: Sequence[Axis], origin: Hashable) -> None:
    """Record that `axes` are axes of one value; skips products and concatenations, which are no atoms."""
    for position, axis in enumerate(axes):
        if is_atom(axis) and not form_of(axis).rigid and not equal(axis.size, 1):
            form_of(axis).origins.add((origin, position))
