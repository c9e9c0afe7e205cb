"""Sizes of axes: ints, or sympy expressions that are compared by algebra alone, without guards."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import sympy

from ..torch_compat import is_floor_division

Size = Any  # int | sympy.Expr


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
