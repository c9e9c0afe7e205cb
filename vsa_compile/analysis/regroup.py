"""A reshape in axis algebra: the same factors in the same order, under other dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from ..torch_compat import is_floor_division
from .algebra import Axis, factors, find, multiply, split, unit
from .sizes import Size, divided, equal, product


def regroup(axes: Sequence[Axis], sizes: Sequence[Size]) -> list[Axis]:
    """The dimensions of a reshape of `axes` to `sizes`, which have the same product.

    Atoms that straddle an output boundary are split; what cannot be followed becomes a new atom.
    An atom without origins that is split into three whole dimensions at once shows a grid.
    """
    before, after = _kept(axes, sizes), 0
    if before < len(sizes):
        after = _kept(axes[before:][::-1], sizes[before:][::-1])
    middle = slice(before, len(sizes) - after)
    pending = [factor for axis in axes[before : len(axes) - after] for factor in factors(axis)][::-1]
    result: list[Axis] = []
    left = list(sizes[middle])
    while left:
        pieces = _pieces(pending[-1], left) if pending else []
        if pieces:
            pending.pop()
            pending += pieces[::-1]
        taken = [] if equal(left[0], 1) else _take(pending, left[0])
        if taken is None:
            result += map(Axis, left)
            break
        result.append(multiply(taken) if taken else unit())
        del left[0]
    return [*axes[:before], *result, *axes[len(axes) - after :]]


def _kept(axes: Sequence[Axis], sizes: Sequence[Size]) -> int:
    """How many leading dimensions a reshape leaves as they are."""
    pairs = zip(axes, sizes, strict=False)
    return next(
        (i for i, (axis, size) in enumerate(pairs) if not equal(axis.size, size)), min(len(axes), len(sizes))
    )


def _pieces(axis: Axis, sizes: Sequence[Size]) -> tuple[Axis, ...]:
    """`axis`, an atom, split into the first few of `sizes`, if the last of these is spelled as its rest.

    So Dynamo spells tokens that become (frames, rows, cols) of symbolic sizes: cols is
    tokens // (frames * rows), of which algebra does not see that it is a quotient without a remainder.
    """
    atom = find(axis)
    for stop in range(2, len(sizes) + 1) if atom.is_atom else ():
        last, before = sizes[stop - 1], product(sizes[: stop - 1])
        if is_floor_division(last) and last.args[0] == atom.size and equal(last.args[1], before):
            return split(atom, sizes[:stop])
    return ()


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
        elif factor.is_atom and (rest := divided(factor.size, size)) is not None:
            taken.append(split(factor, (size, rest))[0])
            pending.extend(factors(factor)[:0:-1])
            return taken
        else:
            return None
    return taken
