"""Symbolic sizes: their expressions, hints and guards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import sympy
import torch
from torch.fx import GraphModule

if TYPE_CHECKING:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

ShapeEnvironment: TypeAlias = "ShapeEnv"


def size_expression(size: int | torch.SymInt) -> int | sympy.Expr:
    """A size as an int, or as the sympy expression of a SymInt, simplified by known equalities; no guard.

    Checked on torch 2.13.
    """
    if not isinstance(size, torch.SymInt):
        return int(size)
    node: Any = size.node
    expression = node.expr
    return int(expression) if expression.is_Integer else expression


def shape_environment(module: GraphModule) -> ShapeEnvironment | None:
    """The ShapeEnv of a graph's symbolic sizes; None if the graph is static. Checked on torch 2.13."""
    for node in module.graph.nodes:
        example = node.meta.get("example_value", node.meta.get("val"))
        sizes = example.shape if isinstance(example, torch.Tensor) else (example,)
        for size in sizes:
            if isinstance(size, torch.SymInt):
                return size.node.shape_env  # pyright: ignore[reportAttributeAccessIssue]
    return None


def size_hint(size: int | sympy.Expr, environment: Any | None) -> int:
    """A size in the example inputs; 0 if it depends on data. Adds no guard. Checked on torch 2.13."""
    if isinstance(size, int):
        return size
    if environment is None:
        return 0
    if hasattr(environment, "optimization_hint"):  # since 2.13, where size_hint warns
        return int(environment.optimization_hint(size, fallback=0))
    hint = environment.size_hint(size, allow_none=True)
    return 0 if hint is None else int(hint)


def depends_on_data(size: int | sympy.Expr) -> bool:
    """Whether a size is known only at run time: it has an unbacked symbol. Checked on torch 2.13."""
    from torch.utils._sympy.symbol import SymT, symbol_is_type

    symbols = () if isinstance(size, int) else size.free_symbols
    return any(symbol_is_type(symbol, SymT.UNBACKED_INT) for symbol in symbols)


def guard_at_least(size: sympy.Expr, least: int, environment: Any) -> bool:
    """Whether size >= least in the example inputs; the answer becomes a guard. Checked on torch 2.13."""
    return bool(environment.evaluate_expr(sympy.Ge(size, least)))


def guard_equal(size: sympy.Expr, value: int, environment: Any) -> bool:
    """Whether size == value in the example inputs; the answer becomes a guard. Checked on torch 2.13."""
    return bool(environment.evaluate_expr(sympy.Eq(size, value)))


def known_at_least(a: Any, b: Any, environment: ShapeEnvironment | None) -> bool:
    """Whether the graph's present guards imply a >= b. Adds no guard. Checked on torch 2.13."""
    if environment is None or depends_on_data(a) or depends_on_data(b):
        return False
    facts = (sympy.Eq(a, b), sympy.Ge(a, b))
    return any(environment._maybe_evaluate_static(fact) is sympy.true for fact in facts)


def known_equal(a: Any, b: Any) -> bool:
    """Whether a == b. Sizes that depend on data count as different; other comparisons become guards."""
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return guard_or_false(a == b)


def surely_true(comparison: bool | torch.SymBool) -> bool:
    """Whether a comparison of sizes always holds. Adds no guard. Checked on torch 2.13."""
    if isinstance(comparison, bool):
        return comparison
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(comparison)


def symbol_of(example: object) -> sympy.Symbol | None:
    """The symbol of a SymInt that is a single symbol, else None. Checked on torch 2.13."""
    expression = example.node.expr if isinstance(example, torch.SymInt) else None
    return expression if isinstance(expression, sympy.Symbol) else None


def is_floor_division(expression: sympy.Expr) -> bool:
    """Whether a size expression is torch's floor division. Checked on torch 2.13."""
    return type(expression).__name__ in ("FloorDiv", "CleanDiv")


def is_remainder(expression: sympy.Expr) -> bool:
    """Whether a size expression is torch's a % b. Checked on torch 2.13."""
    return type(expression).__name__ in ("Mod", "PythonMod")
