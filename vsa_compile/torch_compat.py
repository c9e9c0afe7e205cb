"""The only file that names private torch APIs. Each is probed for, never told by a version number.

May be imported by everything but grid, errors and options.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch


def size_expression(size: int | torch.SymInt) -> int | sympy.Expr:
    """A size as an int, or as the sympy expression of a SymInt, known equalities applied. Adds no guard.

    Checked on torch 2.13.
    """
    if not isinstance(size, torch.SymInt):
        return int(size)
    node: Any = size.node
    expression = node.shape_env.simplify(node.expr)
    return int(expression) if expression.is_Integer else expression
