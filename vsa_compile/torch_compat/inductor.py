"""Inductor: compilation, cache keys, lowerings, Triton templates, the C++ loader.

Imported inside the functions: importing vsa_compile loads neither Inductor nor triton.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch.fx import GraphModule

IR: TypeAlias = Any  # a value of Inductor's IR: TensorBox and its kin
Size: TypeAlias = Any  # an int or the sympy expression of a symbolic size


def compile_with_inductor(
    module: GraphModule, example_inputs: Sequence[Any], patches: dict[str, Any]
) -> Callable:
    """Compile with Inductor under `patches`, which also hold for the backward, compiled later."""
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(module, example_inputs, config_patches=patches)  # pyright: ignore[reportReturnType]


def triton_missing() -> type[Exception]:
    """The exception of Inductor for a graph on a GPU when triton cannot be imported."""
    from torch._inductor.exc import TritonMissing

    return TritonMissing


def mode_patches(mode: str | None) -> dict[str, Any]:
    """The config patches behind a mode of torch.compile. Raises RuntimeError for an unknown mode."""
    if mode is None:
        return {}
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode))  # pyright: ignore[reportArgumentType]


def inductor_settings() -> Iterable[str]:
    """The names of all Inductor settings."""
    from torch._inductor import config

    return config.get_config_copy().keys()


def reset_inductor() -> None:
    """Do what torch.compile's own Inductor wrapper does on `torch._dynamo.reset()`."""
    import sys

    # Only if CUDA graphs were ever used: loading the module here would only cost time.
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    if trees is not None:
        trees.reset_cudagraph_trees()


def keyed_pass(key: bytes | None, following: Any | None) -> Callable[[torch.fx.Graph], None]:
    """A post-grad pass that changes nothing but adds `key` to the cache keys of Inductor and AOTAutograd.

    `following` is the user's own pass, which still runs. With a key of None, or a `following` without uuid(),
    torch bypasses its caches. Checked on torch 2.13.
    """
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class KeyedPass(CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            if following is not None:
                following(graph)

        def uuid(self) -> object:
            if following is None:
                return key
            inner = following.uuid() if hasattr(following, "uuid") else None
            return None if inner is None or key is None else (key, inner)

    return KeyedPass()


def register_lowering(operator: torch._ops.OpOverload, lower: Callable) -> None:
    """Make Inductor call `lower` with the lowered arguments of `operator`. Checked on torch 2.13."""
    from torch._inductor.lowering import register_lowering as register

    register(operator, type_promotion_kind=None)(lower)


def eager_lowering(operator: torch._ops.OpOverload) -> Callable:
    """The lowering that calls `operator`'s eager kernel, as Inductor's own does. Checked on torch 2.13."""
    from torch._inductor.lowering import fallback_handler

    return fallback_handler(operator, add_to_fallback_set=False)


def triton_template(name: str, launch_grid: Callable, source: str) -> Any:
    """The template called `name`, made once: Inductor refuses a second one. Checked on torch 2.13."""
    from torch._inductor.select_algorithm import SymbolicGridFn, TritonTemplate

    known = TritonTemplate.all_templates.get(name)
    if known is not None:
        return known
        # Without this option (before 2.12) an input's strides could still change after rendering.
    freeze = "always_freeze_layout" in inspect.signature(TritonTemplate.__init__).parameters
    extra: dict[str, bool] = {"always_freeze_layout": True} if freeze else {}
    return TritonTemplate(name=name, grid=SymbolicGridFn(launch_grid), source=source, **extra)


def template_buffer(
    template: Any,
    inputs: list[IR],
    *,
    mutated: list[IR],
    size: tuple,
    dtype: torch.dtype,
    device: torch.device,
    launch: tuple,
    constants: dict[str, Any],
    configs: list[dict[str, Any]],
    examples: dict[int, Callable[[IR], torch.Tensor]] | None = None,
) -> IR:
    """The contiguous output of a template, launched in its first configuration without any timing.

    Only if the user asked for autotuning (mode="max-autotune") all configurations are timed. `examples` then
    makes the inputs, by position, for which random numbers would be invalid. `mutated` inputs are further
    outputs; `launch` holds the sizes from which the launch grid is computed. Checked on torch 2.13.
    """
    from torch._inductor import config, ir
    from torch._inductor.select_algorithm import autotune_select_algorithm

    inputs = [ir.ExternKernel.realize_input(x) for x in inputs]
    layout = ir.FixedLayout(device, dtype, list(size))
    choices: list[Any] = []
    buffers = {"input_nodes": inputs, "layout": layout, "mutated_inputs": mutated}
    for timed in configs if config.max_autotune else configs[:1]:
        error = template.maybe_append_choice(
            choices, **buffers, call_sizes=list(launch), **constants, **timed
        )
        if error is not None:
            raise error
    made = {"input_gen_fns": examples} if examples and len(choices) > 1 else {}
    chosen = autotune_select_algorithm(template.name, choices, inputs, layout, **made)
    return chosen[0] if isinstance(chosen, tuple) else chosen  # a tuple since 2.12 or 2.13


def has_tensor_map(x: IR) -> bool:
    """Whether TMA can read (B, H, N, D) memory: D contiguous, all other strides multiples of 16 bytes.

    Fixes the layout of `x`, which Inductor could otherwise still change. Checked on torch 2.13.
    """
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    _, layout = ir.as_storage_and_layout(ir.ExternKernel.realize_input(x), freeze=True)
    sizevars, size = V.graph.sizevars, layout.dtype.itemsize
    *outer, inner = layout.stride
    return (
        x.get_name() not in V.graph.unaligned_buffers
        and surely_equal(inner, 1)
        and sizevars.statically_known_multiple_of(layout.offset * size, 16)
        and all(sizevars.statically_known_multiple_of(stride * size, 16) for stride in outer)
        and not any(surely_equal(stride, 0) for stride in outer[1:])
    )


def new_buffer(size: tuple, dtype: torch.dtype, device: torch.device) -> IR:
    """An uninitialised contiguous buffer of the graph, for a template to write. Checked on torch 2.13."""
    from torch._inductor.lowering import empty_strided

    buffer = empty_strided(list(size), None, dtype=dtype, device=device)
    buffer.realize()
    return buffer


def shape_carrier(like: IR, sizes: tuple) -> IR:
    """A view of `like` whose only content is its shape, `sizes`: all strides are 0. Checked on torch 2.13."""
    from torch._inductor.lowering import lowerings

    return lowerings[torch.ops.aten.as_strided.default](like, list(sizes), [0] * len(sizes))


def expanded(x: IR, size: tuple) -> IR:
    """`x.expand(size)` in Inductor's IR. Checked on torch 2.13."""
    from torch._inductor.lowering import lowerings

    return lowerings[torch.ops.aten.expand.default](x, list(size))


def contiguous(x: IR) -> IR:
    """`x` in Inductor's IR, copied if it is not contiguous. Checked on torch 2.13."""
    from torch._inductor import ir

    return ir.ExternKernel.require_contiguous(x)


def is_static(size: Size) -> bool:
    """Whether a size is a number. Adds no guard."""
    return not getattr(size, "free_symbols", None)


def likely_sizes(sizes: Iterable[Size]) -> tuple[int, ...]:
    """The sizes as ints; symbolic ones as in the example inputs. Checked on torch 2.13."""
    from torch._inductor.virtualized import V

    return tuple(V.graph.sizevars.optimization_hint(size) for size in sizes)


def static_size(size: Size) -> int:
    """A size as an int; a symbolic one gets a guard. Checked on torch 2.13."""
    from torch._inductor.virtualized import V

    return V.graph.sizevars.guard_int(size)


def ceil_div(size: Size, by: int) -> Size:
    """size / by, rounded up, for an int or a size expression. Checked on torch 2.13."""
    if isinstance(size, int):
        return -(-size // by)
    from torch.utils._sympy.functions import CeilDiv

    return CeilDiv(size, by)


def surely_equal(expression: Size, value: int) -> bool:
    """Whether a size expression always equals `value`. Adds no guard. Checked on torch 2.13."""
    from torch._inductor.virtualized import V

    return V.graph.sizevars.statically_known_equals(expression, value)


def load_cpp(source: str, flags: Sequence[str]) -> None:
    """Compile C++ source against libtorch through Inductor's cache and load it; what it registers exists
    afterwards. `flags` come after Inductor's own. Checked on torch 2.13."""
    from torch._inductor.codecache import CppCodeCache

    options: dict[str, Any] = {"extra_flags": tuple(flags)}
    if "needs_vec_isa" in inspect.signature(CppCodeCache.load_async).parameters:
        options["needs_vec_isa"] = False  # spares trial builds of what the flags say already
    CppCodeCache.load(source, **options)
