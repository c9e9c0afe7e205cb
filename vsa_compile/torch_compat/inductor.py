"""Inductor: compilation, cache keys, lowerings, Triton templates, the C++ loader.

Imported inside the functions: importing vsa_compile loads neither Inductor nor triton.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule


def compile_with_inductor(module: GraphModule, example_inputs: Any, patches: dict[str, Any]) -> Callable:
    """Inductor under `patches`, which it applies again around the lazily compiled backward."""
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(module, example_inputs, config_patches=patches)  # pyright: ignore[reportReturnType]


def triton_missing() -> type[Exception]:
    """What Inductor raises where a graph is for a GPU and triton cannot be imported."""
    from torch._inductor.exc import TritonMissing

    return TritonMissing


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


def keyed_pass(key: bytes | None, following: Any | None) -> Any:
    """A post-grad pass that changes nothing, but makes `key` part of Inductor's and AOTAutograd's cache
    keys; `following` is a user's own pass, which still runs. Checked on torch 2.13.

    A key of None makes torch bypass its caches; so does a `following` without uuid(), as it does without us.
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
            return None if inner is None or key is None else (key, inner)

    return KeyedPass()


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
    configs: list[dict[str, Any]],
    examples: dict[int, Callable[[Any], torch.Tensor]] | None = None,
) -> Any:
    """The contiguous output of a template, in its first configuration: nothing is benchmarked.

    Only where the user asked for autotuning (mode="max-autotune") are all configurations timed, on inputs
    of which `examples` makes those, by position, that random numbers would make invalid.
    `mutated` inputs are further outputs; `launch` are the sizes that the launch grid is made of.
    Checked on torch 2.13.
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


def has_tensor_map(x: Any) -> bool:
    """Whether (B, H, N, D) memory suits the TMA hardware: D contiguous, everything else in steps of 16 bytes.

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


def contiguous(x: Any) -> Any:
    """`x` in Inductor's IR, copied if its layout is another. Checked on torch 2.13."""
    from torch._inductor import ir

    return ir.ExternKernel.require_contiguous(x)


def is_static(size: Any) -> bool:
    """Whether a size is a number. Adds no guard."""
    return not getattr(size, "free_symbols", None)


def likely_sizes(sizes: Iterable[Any]) -> tuple[int, ...]:
    """The sizes, with the values of the example inputs where they are symbolic. Checked on torch 2.13."""
    from torch._inductor.virtualized import V

    return tuple(V.graph.sizevars.optimization_hint(size) for size in sizes)


def static_size(size: Any) -> int:
    """A size as an int; guards on it if it is symbolic. Checked on torch 2.13."""
    from torch._inductor.virtualized import V

    return V.graph.sizevars.guard_int(size)


def ceil_div(size: Any, by: int) -> Any:
    """The least integer >= size / by, of an int or of a size expression. Checked on torch 2.13."""
    if isinstance(size, int):
        return -(-size // by)
    from torch.utils._sympy.functions import CeilDiv

    return CeilDiv(size, by)


def surely_equal(expression: Any, value: int) -> bool:
    """Whether a size expression is `value` whenever the graph runs. Adds no guard. Checked on torch 2.13."""
    from torch._inductor.virtualized import V

    return V.graph.sizevars.statically_known_equals(expression, value)


def load_cpp(source: str, flags: Sequence[str]) -> None:
    """Compiles C++ source against libtorch through Inductor's cache, our flags behind Inductor's, and loads
    it: what it registers is there afterwards. Checked on torch 2.13."""
    from torch._inductor.codecache import CppCodeCache

    options: dict[str, Any] = {"extra_flags": tuple(flags)}
    if "needs_vec_isa" in inspect.signature(CppCodeCache.load_async).parameters:
        options["needs_vec_isa"] = False  # spares trial builds of what the flags say already
    CppCodeCache.load(source, **options)
