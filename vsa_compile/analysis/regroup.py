"""Reshapes in axis algebra: the same factors in the same order, under other dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ..torch_compat import is_floor_division
from .algebra import REORDERED, Axis, factors, is_atom, multiply, split, unit
from .sizes import Size, divided, equal, product, quotient_of_floor


def regroup(axes: Sequence[Axis], sizes: Sequence[Size]) -> list[Axis]:
    """The dimensions after a reshape of `axes` to `sizes`, which have the same product.

    Atoms across a boundary of output dimensions are split; dimensions that cannot be followed are unknown.
    """
    before, after = _kept(axes, sizes), 0
    if before < len(sizes):
        after = _kept(axes[before:][::-1], sizes[before:][::-1])
    wanted = sizes[before : len(sizes) - after]
    inside = [factor for axis in axes[before : len(axes) - after] for factor in factors(axis)]
    followed = all(isinstance(size, int) for size in wanted) or _fits(inside, wanted)
    factored = [_Real(factor) for factor in inside]
    made, left = _filled(factored, wanted) if followed else ([], factored)
    result = [multiply([piece.axis for piece in dim]) if dim else unit() for dim in made]
    result += _lost(multiply([factor.axis for factor in left]), wanted[len(made) :])
    return [*axes[:before], *result, *axes[len(axes) - after :]]


def _lost(axis: Axis, sizes: Sequence[Size]) -> list[Axis]:
    """Dimensions that could not be followed: pieces across the factors of an axis.

    Together, in this order, they are that axis again; one of them alone, or moved, is in no order of it.
    """
    parts = [unit() if equal(size, 1) else Axis(size, rigid=REORDERED) for size in sizes]
    real = tuple(part for part in parts if not equal(part.size, 1))
    for part in real:
        part.astride = (axis, real)
    return [axis if real == (part,) else part for part in parts]


def _kept(axes: Sequence[Axis], sizes: Sequence[Size]) -> int:
    """How many leading dimensions a reshape keeps."""
    pairs = zip(axes, sizes, strict=False)
    return next(
        (i for i, (axis, size) in enumerate(pairs) if not equal(axis.size, size)), min(len(axes), len(sizes))
    )


def _fits(inside: Sequence[Axis], wanted: Sequence[Size]) -> bool:
    """Whether a reshape can be followed to its end, in case it cuts an n into n // d and d.

    If so, n is divided without a remainder: each n // d * d is at most n, and the products are equal. If
    something is left over, that does not follow.
    """
    rehearsed = [_Rehearsed(factor.size, is_atom(factor)) for factor in inside]
    made, _ = _filled(rehearsed, wanted)
    return len(made) == len(wanted) or not any(one.cut_by_floor for one in rehearsed)


class _Rehearsed:
    """A factor that is cut on trial: the axis stays as it is."""

    def __init__(self, size: Size, atom: bool, parent: _Rehearsed | None = None) -> None:
        self.size, self.atom, self.parent, self.cut_by_floor = size, atom, parent, False

    def cut(self, sizes: Sequence[Size]) -> list[_Rehearsed]:
        return [_Rehearsed(size, True, self) for size in sizes]

    def by_floor(self) -> None:
        self.cut_by_floor = True
        if self.parent is not None:
            self.parent.by_floor()


class _Real:
    """A factor whose axis is split when it is cut."""

    def __init__(self, axis: Axis) -> None:
        self.axis, self.size, self.atom = axis, axis.size, is_atom(axis)

    def cut(self, sizes: Sequence[Size]) -> list[_Real]:
        return [_Real(piece) for piece in split(self.axis, sizes)]

    def by_floor(self) -> None:
        pass


Factor = TypeVar("Factor", _Rehearsed, _Real)


def _filled(factors: Sequence[Factor], sizes: Sequence[Size]) -> tuple[list[list[Factor]], list[Factor]]:
    """The factors of each dimension, as far as the reshape can be followed, and those that are left."""
    pending, result, left = [*factors][::-1], [], list(sizes)
    while left:
        if pending and (pieces := _pieces(pending[-1], left)):
            pending[-1:] = pieces[::-1]
        before = [*pending]
        taken = [] if equal(left[0], 1) else _take(pending, left[0])
        if taken is None:
            return result, before[::-1]
        result.append(taken)
        del left[0]
    return result, pending[::-1]


def _pieces(factor: Factor, sizes: Sequence[Size]) -> list[Factor]:
    """An atom cut into the first few of `sizes`, if the last of them is spelled as a quotient by the others.

    That is how Dynamo spells tokens that become (frames, rows, cols) of symbolic sizes: cols is
    tokens // (frames * rows), and algebra does not see that this quotient has no remainder.
    """
    for stop in range(2, len(sizes) + 1) if factor.atom else ():
        last, before = sizes[stop - 1], product(sizes[: stop - 1])
        if is_floor_division(last) and last.args[0] == factor.size and equal(last.args[1], before):
            factor.by_floor()
            return factor.cut(sizes[:stop])  # pyright: ignore[reportReturnType]
    return []


def _take(pending: list[Factor], size: Size) -> list[Factor] | None:
    """Pop factors whose product is `size`, cutting the last one if necessary."""
    taken: list[Factor] = []
    while not equal(size, 1):
        if not pending:
            return None
        factor = pending.pop()
        if equal(factor.size, 1):
            continue
        if equal(factor.size, size):
            return [*taken, factor]
        if (rest := divided(size, factor.size)) is not None:
            taken.append(factor)
            size = rest
        elif factor.atom and (rest := _rest(factor, size)) is not None:
            first, second = factor.cut((size, rest))
            pending.append(second)
            return [*taken, first]
        else:
            return None
    return taken


def _rest(factor: Factor, size: Size) -> Size | None:
    """What is left of an atom after `size` is taken."""
    rest = divided(factor.size, size)
    if rest is None and (rest := quotient_of_floor(factor.size, size)) is not None:
        factor.by_floor()
    return rest
