"""The only file that names private torch APIs. Each is probed for, never told by a version number.

May be imported by everything but grid, errors and options.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
    if environment is None:
        return 0
    if hasattr(environment, "optimization_hint"):  # 2.13; its predecessor warns there
        return int(environment.optimization_hint(size, fallback=0))
    hint = environment.size_hint(size, allow_none=True)
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

    return compile_fx(module, example_inputs, config_patches=patches)  # pyright: ignore[reportReturnType]


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


@contextmanager
def without_compiled_calls(model: Any) -> Iterator[Any]:
    """The model as it was before torch.compile(model), model.compile() or a block's .compile().

    The compiled calls are back afterwards, still compiled. Checked on torch 2.13.
    """
    plain = getattr(model, "_orig_mod", model)
    modules = list(plain.modules()) if isinstance(plain, torch.nn.Module) else []
    compiled = [(module, module._compiled_call_impl) for module in modules if module._compiled_call_impl]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield plain
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


def explaining_compile(model: Callable, backend: Callable) -> Callable:
    """torch.compile for a look at the graphs: static sizes, and no share in the recompile limit of code
    that the model already has compiled, where torch can keep them apart (2.13)."""
    isolated = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    extra: dict[str, Any] = {"isolate_recompiles": True} if isolated else {}
    compiled = torch.compile(model, backend=backend, dynamic=False, **extra)

    def run(*args: Any, **kwargs: Any) -> Any:
        limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
        with torch._dynamo.config.patch({limit: 1024}):
            return compiled(*args, **kwargs)

    return run


# --- Inductor: lowerings and Triton templates ---------------------------------------------------
# Imported inside the functions: importing vsa_compile loads neither Inductor nor triton.


def register_lowering(operator: Any, lower: Callable) -> None:
    """Make Inductor call `lower` with the lowered arguments of `operator`. Checked on torch 2.13."""
    from torch._inductor.lowering import register_lowering as register

    register(operator, type_promotion_kind=None)(lower)


def eager_lowering(operator: Any) -> Callable:
    """The lowering that calls `operator`'s eager kernel, as Inductor's own does. Checked on torch 2.13."""
    from torch._inductor.lowering import fallback_handler

    return fallback_handler(operator, add_to_fallback_set=False)


def triton_template(name: str, launch_grid: Callable, source: str) -> Any:
    """The template called `name`, made once: Inductor refuses a name twice. Checked on torch 2.13."""
    from torch._inductor.select_algorithm import SymbolicGridFn, TritonTemplate

    known = TritonTemplate.all_templates.get(name)
    if known is not None:
        return known
    # Without it (up to 2.11 there is none) an input's strides could still change after rendering.
    freeze = "always_freeze_layout" in inspect.signature(TritonTemplate.__init__).parameters
    extra: dict[str, Any] = {"always_freeze_layout": True} if freeze else {}
    return TritonTemplate(name=name, grid=SymbolicGridFn(launch_grid), source=source, **extra)


def template_buffer(
    template: Any,
    inputs: list[Any],
    *,
    mutated: list[Any],
    size: tuple,
    dtype: torch.dtype,
    device: torch.device,
    launch: tuple,
    constants: dict[str, Any],
) -> Any:
    """The contiguous output of a template in its one configuration, so nothing is benchmarked.

    `mutated` inputs are further outputs; `launch` are the sizes that the launch grid is made of.
    Checked on torch 2.13.
    """
    from torch._inductor import ir
    from torch._inductor.select_algorithm import autotune_select_algorithm

    inputs = [ir.ExternKernel.realize_input(x) for x in inputs]
    layout = ir.FixedLayout(device, dtype, list(size))
    choices: list[Any] = []
    buffers = {"input_nodes": inputs, "layout": layout, "mutated_inputs": mutated}
    error = template.maybe_append_choice(choices, **buffers, call_sizes=list(launch), **constants)
    if error is not None:
        raise error
    chosen = autotune_select_algorithm(template.name, choices, inputs, layout)
    return chosen[0] if isinstance(chosen, tuple) else chosen  # a tuple since 2.12 or 2.13


def new_buffer(size: tuple, dtype: torch.dtype, device: torch.device) -> Any:
    """An uninitialised contiguous buffer of the graph, to be written by a template. Checked on torch 2.13."""
    from torch._inductor.lowering import empty_strided

    buffer = empty_strided(list(size), None, dtype=dtype, device=device)
    buffer.realize()
    return buffer


def shape_carrier(like: Any, sizes: tuple) -> Any:
    """An alias of `like` that only carries `sizes`: every stride is 0. Checked on torch 2.13."""
    from torch._inductor.lowering import lowerings

    return lowerings[torch.ops.aten.as_strided.default](like, list(sizes), [0] * len(sizes))


def expanded(x: Any, size: tuple) -> Any:
    """`x.expand(size)` in Inductor's IR. Checked on torch 2.13."""
    from torch._inductor.lowering import lowerings

    return lowerings[torch.ops.aten.expand.default](x, list(size))


def static_size(size: Any) -> int:
    """A size as an int; guards on it if it is symbolic. Checked on torch 2.13."""
    from torch._inductor.virtualized import V

    return V.graph.sizevars.guard_int(size)


def surely(expression: Any, value: int) -> bool:
    """Whether a size expression is `value` whenever the graph runs. Adds no guard. Checked on torch 2.13."""
    from torch._inductor.virtualized import V

    return V.graph.sizevars.statically_known_equals(expression, value)


def cpp_loader() -> Callable[[str], ctypes.CDLL]:
    """Compiles C++ source against libtorch through Inductor's cache and loads it. Checked on torch 2.13."""
    from torch._inductor.codecache import CppCodeCache

    return CppCodeCache.load
