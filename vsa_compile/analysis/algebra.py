"""Axis algebra: every dimension of every value is an ordered product of atoms, or a concatenation.

A token dimension that was flattened from (frames, rows, cols) is the product of three atoms; a joint
sequence is a concatenation of a video product and a text atom. Where two dimensions must be the same
axis (they are added, multiplied, concatenated beside each other, ...), `unify` makes them one, so
that knowledge flows forwards and backwards. No tensors, no graph: sizes are ints or sympy.

Symbolic sizes are compared by algebra alone; nothing here adds a guard.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import sympy

from .sizes import Size, divided, equal, product

Origin = tuple[Hashable, int]  # (the value that introduced the axes, position among them)
Run = tuple["Axis", Size, Size]  # (the axis that it was cut from, start, stop)


class Axis:
    """One dimension, as far as it is known: an atom, a product of axes, or a concatenation.

    `origins` says which axis of which multi-dimensional value an atom is: tokens whose three atoms
    are three axes of one value, in increasing position, are raster video tokens. `whole` is the atom
    that an axis was split from; `cut` the axis that it is a run of, with the run's start and stop.
    `shown` is the size as the graph has it, where `size` is spelled as a quotient of others.
    `respelled` are the same tokens with a size that is proved equal, but spelled otherwise.
    """

    __slots__ = ("cut", "forward", "origins", "parts", "respelled", "segments", "shown", "size", "whole")

    def __init__(self, size: Size, origins: Iterable[Origin] = ()) -> None:
        self.size = size
        self.origins: set[Origin] = set(origins)
        self.forward: Axis | None = None
        self.parts: tuple[Axis, ...] | None = None
        self.segments: tuple[Axis, ...] | None = None
        self.whole: Axis | None = None
        self.cut: Run | None = None
        self.respelled: Axis | None = None
        self.shown: Size = size

    @property
    def is_atom(self) -> bool:
        return self.parts is None and self.segments is None

    def __repr__(self) -> str:
        axis = find(self)
        if axis.parts is not None:
            return "*".join(map(repr, factors(axis))) or "1"
        if axis.segments is not None:
            return "[" + " | ".join(map(repr, axis.segments)) + "]"
        return str(axis.size)


def find(axis: Axis) -> Axis:
    """The representative that `axis` was unified with."""
    while axis.forward is not None:
        axis = axis.forward
    return axis


def unit() -> Axis:
    """An axis of size 1: it carries nothing and unifies with nothing."""
    return Axis(1)


def multiply(axes: Sequence[Axis]) -> Axis:
    """The product, first factor slowest."""
    known = [axis for part in axes for axis in factors(part)]
    if len(known) == 1:
        return known[0]
    result = Axis(product(axis.size for axis in known))
    result.parts = tuple(known)
    return result


def concatenate(axes: Sequence[Axis]) -> Axis:
    """The concatenation; empty segments vanish, and runs of one axis that follow each other are one run."""
    pieces = [piece for axis in axes for piece in segments(axis) if not equal(piece.size, 0)]
    known = [segment for piece in _joined(pieces) for segment in segments(piece)]
    if len(known) == 1:
        return known[0]
    total: Size = 0
    for axis in known:
        total = total + axis.size
    result = Axis(total)
    result.segments = tuple(known)
    return result


def run(axis: Axis, start: Size, stop: Size) -> Axis:
    """axis[start:stop], of which nothing is known but where it came from."""
    axis = find(axis)
    base, offset = (axis.cut[0], axis.cut[1]) if axis.cut else (axis, 0)
    result = Axis(stop - start)
    result.cut = (base, offset + start, offset + stop)
    return result


def _joined(pieces: Sequence[Axis]) -> list[Axis]:
    result: list[Axis] = []
    for piece in pieces:
        result.append(piece)
        while len(result) > 1 and (joined := _join(*result[-2:])) is not None:
            result[-2:] = [joined]
    return result


def _join(left: Axis, right: Axis) -> Axis | None:
    """The run that two runs are together, or the axis itself where they are all of it."""
    if left.cut is None or right.cut is None:
        return None
    (base, start, middle), (other, begin, stop) = left.cut, right.cut
    if not (equal(middle, begin) and same(base, other)):
        return None
    if find(base).is_atom and not (left.is_atom and right.is_atom):
        return None  # a run of it was marked: the runs know more than the axis that they were cut from
    return find(base) if equal(start, 0) and equal(stop, base.size) else run(base, start, stop)


def factors(axis: Axis) -> list[Axis]:
    """Atoms and concatenations whose ordered product is `axis`; factors of size 1 are left out."""
    axis = find(axis)
    if axis.parts is None:
        return [] if equal(axis.size, 1) else [axis]
    return [factor for part in axis.parts for factor in factors(part)]


def segments(axis: Axis) -> list[Axis]:
    """The pieces of a concatenation, in order; of anything else, the axis itself."""
    axis = find(axis)
    if axis.segments is None:
        return [axis]
    return [piece for segment in axis.segments for piece in segments(segment)]


def split(atom: Axis, sizes: Sequence[Size]) -> tuple[Axis, ...]:
    """Turn `atom` into a product of axes of these sizes; returns them. They keep the atom's origins."""
    atom.parts = tuple(Axis(size, atom.origins) for size in sizes)
    for part in atom.parts:
        part.whole = atom
    return atom.parts


def wholes(axis: Axis, *, opaque: bool = False) -> list[Axis]:
    """The factors of `axis`, with atoms that were split and stand together again put back whole.

    Windows in one block split rows and cols for good; the tokens of the next block are still rows and
    cols. Atoms without origins are put back only if `opaque`: bare tokens are one, their grid is not.
    """
    result: list[Axis] = []
    for factor in factors(axis):
        result.append(find(factor))
        while (whole := result[-1].whole) is not None and (opaque or whole.origins):
            parts = list(map(find, whole.parts or ()))
            if parts != result[-len(parts) :]:
                break
            result[-len(parts) :] = [whole]
    return result


def derived(axis: Axis, size: Size) -> Axis:
    """A new axis that runs along `axis` at another resolution (convolution, pooling, padding)."""
    sources = [find(piece) for piece in segments(axis)]
    known = [source for source in sources if source.origins]
    return Axis(size, known[0].origins if len(known) == 1 else ())


def respelled(axis: Axis, size: Size) -> Axis:
    """The tokens of `axis` under another size that they are proved to have: one axis, whoever asks."""
    axis = find(axis)
    if axis.respelled is None or not equal(axis.respelled.size, size):
        axis.respelled = Axis(size)
    return axis.respelled


def same(a: Axis, b: Axis) -> bool:
    """Whether two axes are known to be the same, factor by factor and segment by segment."""
    a, b = find(a), find(b)
    if a is b:
        return True
    pieces = (segments(a), segments(b))
    if len(pieces[0]) != len(pieces[1]):
        return False
    if len(pieces[0]) > 1:
        return all(map(same, *pieces))
    left, right = factors(a), factors(b)
    if len(left) != len(right):
        return False
    if len(left) == 1 and (find(left[0]).is_atom or find(right[0]).is_atom):
        return find(left[0]) is find(right[0])
    return all(map(same, left, right))


def unify(a: Axis, b: Axis) -> None:
    """Make two axes one. Axes of different size, or with contradicting structure, are left alone."""
    a, b = find(a), find(b)
    if a is b or equal(a.size, 1) or not equal(a.size, b.size):
        return
    if a.is_atom or b.is_atom:
        atom, other = (a, b) if a.is_atom else (b, a)
        _bind(atom, other)
    elif a.segments is not None and b.segments is not None:
        left, right = segments(a), segments(b)
        if len(left) == len(right):
            for x, y in zip(left, right, strict=True):
                unify(x, y)
    elif a.parts is not None and b.parts is not None:
        _align(factors(a), factors(b))
    else:  # a concatenation against a product of one real factor
        left, right = factors(a), factors(b)
        if len(left) == len(right) == 1 and (left[0] is not a or right[0] is not b):
            unify(left[0], right[0])


def agree(a: Axis, b: Axis) -> None:
    """Make two axes the same in structure, each learning what the other knows; they stay two.

    One table of positions may turn the queries of one video and the keys of another. Their sizes are equal,
    for they meet in one operation, but need not be spelled so: 210 tokens, a table of 5 * rows * cols.
    """
    if not (_alike(a, b) or equal(find(a).size, 1) or equal(find(b).size, 1)):
        copies = _copy(a), _copy(b)
        unify(a, _sized(copies[1], find(a).size))
        unify(b, _sized(copies[0], find(b).size))


def _alike(a: Axis, b: Axis) -> bool:
    """Whether neither of two axes knows what the other does not."""
    a, b = find(a), find(b)
    if a is b:
        return True
    if not (equal(a.size, b.size) and a.origins == b.origins):
        return False
    pairs = ((a.parts or (), b.parts or ()), (a.segments or (), b.segments or ()))
    return all(len(x) == len(y) and all(map(_alike, x, y)) for x, y in pairs)


def _copy(axis: Axis) -> Axis:
    """The same structure out of new atoms."""
    axis = find(axis)
    result = Axis(axis.size, axis.origins)
    result.shown = axis.shown
    result.parts = axis.parts and tuple(map(_copy, axis.parts))
    result.segments = axis.segments and tuple(map(_copy, axis.segments))
    return result


def _sized(copy: Axis, size: Size) -> Axis:
    """A copy under another spelling of its size: the last factor is the quotient, and shows what it was."""
    atoms = factors(copy)
    if not equal(copy.size, size) and len(atoms) > 1 and all(atom.is_atom for atom in atoms):
        atoms[-1].size = sympy.sympify(size) / product(atom.size for atom in atoms[:-1])
        copy.size, copy.parts = size, tuple(atoms)
    return copy


def _bind(atom: Axis, other: Axis) -> None:
    if _occurs(atom, other):
        return
    atom.forward = other
    other.whole = other.whole or atom.whole
    other.cut = _same_run(atom.cut, other.cut)
    other.respelled = other.respelled or atom.respelled
    if other.parts is None:  # a concatenation too: its pieces are not axes of that value, it is
        other.origins |= atom.origins


def _same_run(a: Run | None, b: Run | None) -> Run | None:
    """What is known of two runs that are one: nothing where they were at different places."""
    if a is None or b is None:
        return a or b
    return b if equal(a[1], b[1]) and equal(a[2], b[2]) else None


def _occurs(atom: Axis, axis: Axis) -> bool:
    axis = find(axis)
    return axis is atom or any(_occurs(atom, part) for part in (axis.parts or axis.segments or ()))


def _align(left: list[Axis], right: list[Axis]) -> None:
    """Unify two factor lists of equal product, splitting the larger atom where they interleave."""
    left, right = left[::-1], right[::-1]
    while left and right:
        a, b = find(left.pop()), find(right.pop())
        if equal(a.size, b.size):
            unify(a, b)
        elif b.is_atom and (rest := divided(b.size, a.size)) is not None:
            unify(a, split(b, (a.size, rest))[0])
            right.extend(factors(b)[:0:-1])
        elif a.is_atom and (rest := divided(a.size, b.size)) is not None:
            unify(split(a, (b.size, rest))[0], b)
            left.extend(factors(a)[:0:-1])
        else:
            return


def mark_origins(axes: Sequence[Axis], origin: Hashable) -> None:
    """Record that `axes` are axes of one value; products and concatenations are not atoms, so skipped."""
    for position, axis in enumerate(axes):
        axis = find(axis)
        if axis.is_atom:
            axis.origins.add((origin, position))
