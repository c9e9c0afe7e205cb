"""Axis algebra: every dimension of every value is an ordered product of atoms, or a concatenation.

A token dimension that was flattened from (frames, rows, cols) is the product of three atoms; a joint
sequence is a concatenation of a video product and a text atom. Where two dimensions must be the same
axis (they are added, multiplied, concatenated beside each other, ...), `unify` makes them one, so
that knowledge flows forwards and backwards. No tensors, no graph: sizes are ints or sympy.

Symbolic sizes are compared by algebra alone; nothing here adds a guard.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import sympy

from ..torch_compat import is_floor_division

Size = Any  # int | sympy.Expr
Origin = tuple[Hashable, int]  # (the value that introduced the axes, position among them)


def equal(a: Size, b: Size) -> bool:
    """Whether two sizes are the same for all values of their symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return a == b or _is_zero(a - b)


@lru_cache(maxsize=4096)
def _is_zero(difference: Any) -> bool:
    return bool(sympy.expand(_exact(difference)) == 0)


@lru_cache(maxsize=4096)
def _exact(size: Any) -> Any:
    """a // b written as the quotient where b divides a, and a // (a // d) as d.

    So Dynamo spells the last size of a reshape that splits a exactly.
    """

    def quotient(x: Any) -> Any:
        a, b = x.args
        if is_floor_division(b) and b.args[0] == a:
            return b.args[1]
        numerator, denominator = sympy.fraction(sympy.cancel(a / b))
        return numerator if denominator == 1 else x

    return size.replace(is_floor_division, quotient) if size.has(sympy.Function) else size


def divided(a: Size, b: Size) -> Size | None:
    """a / b where b divides a for all values of the symbols, else None.

    a divided by a // d is d: the callers compare sizes of one reshape, so the division was exact.
    """
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    return _quotient(_exact(sympy.sympify(a)), _exact(sympy.sympify(b)))


@lru_cache(maxsize=4096)
def _quotient(a: Any, b: Any) -> Size | None:
    if is_floor_division(b) and b.args[0] == a:
        return _plain(b.args[1])
    numerator, denominator = sympy.fraction(sympy.cancel(a / b)) if b != 0 else (0, 0)
    return _plain(numerator) if denominator == 1 else None


def _plain(size: Any) -> Size:
    return int(size) if size.is_Integer else size


def product(sizes: Iterable[Size]) -> Size:
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


class Axis:
    """One dimension, as far as it is known: an atom, a product of axes, or a concatenation.

    `origins` says which axis of which multi-dimensional value an atom is: tokens whose three atoms
    are three axes of one value, in increasing position, are raster video tokens. `whole` is the atom
    that an axis was split from.
    """

    __slots__ = ("forward", "origins", "parts", "segments", "size", "whole")

    def __init__(self, size: Size, origins: Iterable[Origin] = ()) -> None:
        self.size = size
        self.origins: set[Origin] = set(origins)
        self.forward: Axis | None = None
        self.parts: tuple[Axis, ...] | None = None
        self.segments: tuple[Axis, ...] | None = None
        self.whole: Axis | None = None

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
    """The concatenation; empty segments vanish."""
    known = [segment for axis in axes for segment in segments(axis) if not equal(segment.size, 0)]
    if len(known) == 1:
        return known[0]
    total: Size = 0
    for axis in known:
        total = total + axis.size
    result = Axis(total)
    result.segments = tuple(known)
    return result


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


def split(atom: Axis, major: Size) -> Axis:
    """Turn `atom` into major * rest; returns the major part. The parts keep the atom's origins."""
    rest = divided(atom.size, major)
    atom.parts = (Axis(major, atom.origins), Axis(rest, atom.origins))
    for part in atom.parts:
        part.whole = atom
    return atom.parts[0]


def wholes(axis: Axis, *, opaque: bool = False) -> list[Axis]:
    """The factors of `axis`, with atoms that were split and stand together again put back whole.

    Windows in one block split rows and cols for good; the tokens of the next block are still rows and
    cols. Atoms without origins are put back only if `opaque`: bare tokens are one, their grid is not.
    """
    result: list[Axis] = []
    for factor in factors(axis):
        result.append(find(factor))
        while (whole := result[-1].whole) is not None and (opaque or whole.origins):
            if list(map(find, whole.parts or ())) != result[-2:]:
                break
            result[-2:] = [whole]
    return result


def derived(axis: Axis, size: Size) -> Axis:
    """A new axis that runs along `axis` at another resolution (convolution, pooling, padding)."""
    sources = [find(piece) for piece in segments(axis)]
    known = [source for source in sources if source.origins]
    return Axis(size, known[0].origins if len(known) == 1 else ())


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

    One table of positions may turn the queries of one video and the keys of another.
    """
    if not _alike(a, b):
        copies = _copy(a), _copy(b)
        unify(a, copies[1])
        unify(b, copies[0])


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
    result.parts = axis.parts and tuple(map(_copy, axis.parts))
    result.segments = axis.segments and tuple(map(_copy, axis.segments))
    return result


def _bind(atom: Axis, other: Axis) -> None:
    if _occurs(atom, other):
        return
    atom.forward = other
    other.whole = other.whole or atom.whole
    if other.is_atom:
        other.origins |= atom.origins


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
        elif b.is_atom and divided(b.size, a.size) is not None:
            unify(a, split(b, a.size))
            right.extend(factors(b)[:0:-1])
        elif a.is_atom and divided(a.size, b.size) is not None:
            unify(split(a, b.size), b)
            left.extend(factors(a)[:0:-1])
        else:
            return


def regroup(axes: Sequence[Axis], sizes: Sequence[Size]) -> list[Axis]:
    """The dimensions of a reshape of `axes` to `sizes`, which have the same product.

    Atoms that straddle an output boundary are split; what cannot be followed becomes a new atom.
    An atom without origins that is split into three whole dimensions at once shows a grid.
    """
    pending = [factor for axis in axes for factor in factors(axis)][::-1]
    result: list[Axis] = []
    for size in sizes:
        if equal(size, 1):
            result.append(unit())
            continue
        taken = _take(pending, size)
        if taken is None:
            return result + [Axis(s) for s in sizes[len(result) :]]
        result.append(multiply(taken))
    return result


def _take(pending: list[Axis], size: Size) -> list[Axis] | None:
    """Pop factors whose product is `size`, splitting the last one if need be."""
    taken: list[Axis] = []
    while not equal(size, 1):
        if not pending:
            return None
        factor = find(pending.pop())
        if equal(factor.size, size):
            return [*taken, factor]
        rest = divided(size, factor.size)
        if rest is not None:
            taken.append(factor)
            size = rest
        elif factor.is_atom and divided(factor.size, size) is not None:
            taken.append(split(factor, size))
            pending.extend(factors(factor)[:0:-1])
            return taken
        else:
            return None
    return taken


def mark_origins(axes: Sequence[Axis], origin: Hashable) -> None:
    """Record that `axes` are axes of one value; products and concatenations are not atoms, so skipped."""
    for position, axis in enumerate(axes):
        axis = find(axis)
        if axis.is_atom:
            axis.origins.add((origin, position))
