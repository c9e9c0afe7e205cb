"""Sizes of axes: ints or sympy expressions, compared by algebra alone; no guards."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import sympy

from ..grid import Size
from ..torch_compat import is_floor_division


def equal(a: Size, b: Size) -> bool:
    """Whether two sizes are equal for all values of their symbols."""
    if a is b:  # first, since small ints are one object, and a graph has hundred thousands of comparisons
        return True
    return a == b if isinstance(a, int) and isinstance(b, int) else _equal(a, b)


def at_most(a: Size, b: Size) -> bool:
    """Whether a <= b for all values of their symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return a <= b
    return equal(a, b) or _is_nonnegative(sympy.sympify(b - a))


@lru_cache(maxsize=4096)
def _equal(a: Size, b: Size) -> bool:
    return a == b or _is_zero(a - b)


@lru_cache(maxsize=4096)
def _is_nonnegative(difference: Size) -> bool:
    return bool(difference.is_nonnegative or sympy.factor(difference).is_nonnegative)


@lru_cache(maxsize=4096)
def _is_zero(difference: Size) -> bool:
    return bool(sympy.expand(_exact(difference)) == 0)


@lru_cache(maxsize=4096)
def _exact(size: Size) -> Size:
    """a // b as a plain quotient where b divides a. (n // (n // d) is not always d: 10 // (10 // 4) is 5.)"""

    def quotient(x: Size) -> Size:
        numerator, denominator = sympy.fraction(sympy.cancel(x.args[0] / x.args[1]))
        return numerator if denominator == 1 else x

    return size.replace(is_floor_division, quotient) if size.has(sympy.Function) else size


def divided(a: Size, b: Size) -> Size | None:
    """a / b if b divides a for all values of their symbols, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    return _quotient(_exact(sympy.sympify(a)), _exact(sympy.sympify(b)))


def quotient_of_floor(a: Size, b: Size) -> Size | None:
    """d if b is a // d, which equals a / b without a remainder; the caller must know that there is none."""
    floor = sympy.sympify(b)
    return _plain(floor.args[1]) if is_floor_division(floor) and equal(floor.args[0], a) else None


@lru_cache(maxsize=4096)
def _quotient(a: Size, b: Size) -> Size | None:
    numerator, denominator = sympy.fraction(sympy.cancel(a / b)) if b != 0 else (0, 0)
    return _plain(numerator) if denominator == 1 else None


def _plain(size: Size) -> Size:
    return int(size) if size.is_Integer else size


def product(sizes: Iterable[Size]) -> Size:
    total: Size = 1
    for size in sizes:
        total = total * size
    return total
