"""The only file that names private torch APIs. Each is probed for, never told by a version number.

May be imported by everything but grid, errors and options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import sympy
import torch
from torch.fx import GraphModule

def size_expression(size: int | torch.SymInt) -> int | sympy.Expr:
    """A size as an int, or as the sympy expression of a SymInt, known equalities applied. Adds no guard.

    Checked on torch 2.13.
    """
    if not isinstance(size, torch.SymInt):
        return int(size)
    node: Any = size.node
    expression = node.expr
    return int(expression) if expression.is_Integer else expression


def shape_environment(module: GraphModule) -> Any | None:
    """The ShapeEnv behind a graph's symbolic sizes; None for a static graph. Checked on torch 2.13."""
    for node in module.graph.nodes:
        example = node.meta.get("example_value", node.meta.get("val"))
        sizes = example.shape if isinstance(example, torch.Tensor) else (example,)
        for size in sizes:
            if isinstance(size, torch.SymInt):
                return size.node.shape_env  # pyright: ignore[reportAttributeAccessIssue]
    return None


def size_hint(size: int | sympy.Expr, environment: Any | None) -> int:
    """The size on the example inputs; 0 where it depends on data. Adds no guard. Checked on torch 2.13."""
    if isinstance(size, int):
        return size
    hint = environment.size_hint(size, allow_none=True) if environment is not None else None
    return 0 if hint is None else int(hint)


def guard_at_least(size: sympy.Expr, least: int, environment: Any) -> bool:
    """Whether size >= least on the example inputs, made a guard of the graph. Checked on torch 2.13."""
    return bool(environment.evaluate_expr(sympy.Ge(size, least)))


def symbol_of(example: Any) -> sympy.Symbol | None:
    """The symbol that a SymInt consists of, if it is a bare one. Checked on torch 2.13."""
    expression = example.node.expr if isinstance(example, torch.SymInt) else None
    return expression if isinstance(expression, sympy.Symbol) else None


def is_floor_division(expression: sympy.Expr) -> bool:
    """Whether a size expression is torch's floor division. Checked on torch 2.13."""
    return type(expression).__name__ in ("FloorDiv", "CleanDiv")


def compile_with_inductor(module: GraphModule, example_inputs: Any, patches: dict[str, Any]) -> Callable:
    """Inductor under `patches`, which it applies again around the lazily compiled backward."""
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(module, example_inputs, config_patches=patches)


def mode_patches(mode: str | None) -> dict[str, Any]:
    """The config patches that torch.compile's `mode` stands for; raises RuntimeError for another mode."""
    if mode is None:
        return {}
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode))  # pyright: ignore[reportArgumentType]


def inductor_settings() -> Iterable[str]:
    """Names of all Inductor settings."""
    from torch._inductor import config

    return config.get_config_copy().keys()


def reset_inductor() -> None:
    """What torch.compile's own Inductor wrapper does when `torch._dynamo.reset()` is called."""
    import sys

    # Only if the CUDA graph machinery was ever used: loading it here would be pure cost.
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    if trees is not None:
        trees.reset_cudagraph_trees()


def counters() -> Any:
    """Dynamo's counter table: counters()["vsa_compile"]["converted"], ..."""
    from torch._dynamo.utils import counters as table

    return table


def keyed_pass(key: bytes, following: Any | None) -> Any:
    """A post-grad pass that changes nothing, but makes `key` part of Inductor's and AOTAutograd's cache
    keys; `following` is a user's own pass, which still runs. Checked on torch 2.13.

    A `following` without uuid() makes torch bypass its caches, exactly as it does without us.
    """
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class KeyedPass(CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            if following is not None:
                following(graph)

        def uuid(self) -> Any:
            if following is None:
                return key
            inner = following.uuid() if hasattr(following, "uuid") else None
            return None if inner is None else (key, inner)

    return KeyedPass()


def fake_mode_of(module: GraphModule) -> Any | None:
    """The FakeTensorMode of a captured graph's example values."""
    from torch._subclasses.fake_tensor import FakeTensor

    for node in module.graph.nodes:
        example = node.meta.get("example_value", node.meta.get("val"))
        if isinstance(example, FakeTensor):
            return example.fake_mode
    return None
