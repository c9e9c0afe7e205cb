"""Renders whole graphs, forward and backward, as torch.compile(model, backend="vsa") makes them.

Autograd on fake CUDA tensors ends the process (C++ asks a real driver). So the model is traced on the meta
device, where autograd runs, and each of its graphs is moved to the fake GPU right before Inductor lowers it;
what a graph holds on the CPU stays there. Unlike `program.render` this runs all of Inductor but the compilation
of kernels, so that it also decides about CUDA graphs: what it decided is part of the result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from gpu_offline.program import SETTINGS
from vsa_compile import torch_compat, vsa


@dataclass
class Rendered:
    """source: the program. cuda_graphs: how many Inductor made of it; skipped: why it made none or several."""

    source: str
    cuda_graphs: int = 0
    skipped: list[str] = field(default_factory=list)


class _EnoughError(Exception):
    """Everything is rendered, and nothing can run."""


def render_training(function: Callable, *inputs: Any, **options: Any) -> list[Rendered]:
    """[forward, backward] of `function` on inputs on the meta device, some of which ask for a gradient;
    [forward] if none does. `options` are those of the backend."""
    rendered: list[Rendered] = []

    def compile_moved(module: Any, example_inputs: Any, patches: dict[str, Any]) -> Any:
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner

        def lower(graph: Any, graph_inputs: list, **kwargs: Any) -> Any:
            result = compile_fx_inner(_moved(graph), [_on_gpu(x) for x in graph_inputs], **kwargs)
            if kwargs.get("is_backward") or kwargs.get("is_inference"):
                raise _EnoughError
            return result

        return compile_fx(module, example_inputs, inner_compile=lower, config_patches=patches)

    torch._dynamo.reset()
    with (
        _rendering(rendered),
        mock.patch.object(torch_compat, "compile_with_inductor", compile_moved),
    ):
        try:
            torch.compile(function, backend=vsa, fullgraph=True, dynamic=False, options=options)(*inputs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            if not isinstance(error.inner_exception, _EnoughError):
                raise
    return rendered


@contextlib.contextmanager
def _rendering(rendered: list[Rendered]) -> Iterator[None]:
    """Within it Inductor appends to `rendered` in the place of compiling kernels."""
    from torch._functorch import config as functorch_config
    from torch._inductor import compile_fx, config, output_code
    from torch._inductor.graph import GraphLowering

    def keep_program(graph: Any) -> Any:
        wrapper, _ = graph.codegen_with_cpp_wrapper() if graph.cpp_wrapper else graph.codegen()
        rendered.append(made := Rendered(wrapper.value))

        def keep_count(functions: list) -> None:
            made.cuda_graphs = len(functions)

        runner = SimpleNamespace(recursively_apply_fns=keep_count, partitions=[])
        return SimpleNamespace(call=lambda *_: None, runner=runner)

    def keep_reason(reason: str) -> None:
        rendered[-1].skipped.append(reason)

    with (
        mock.patch.object(GraphLowering, "compile_to_module", keep_program),
        mock.patch.object(compile_fx, "log_cudagraph_skip_and_bump_counter", keep_reason),
        mock.patch.object(output_code, "log_cudagraph_skip_and_bump_counter", keep_reason),
        functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
        config.patch(SETTINGS),
    ):
        yield


def _moved(module: Any) -> Any:
    """The graph, with the GPU wherever it names the meta device."""
    gpu = torch.device("cuda", 0)

    def moved(x: Any) -> Any:
        return gpu if isinstance(x, torch.device) and x.type == "meta" else x

    for node in module.graph.nodes:
        node.args, node.kwargs = map_aggregate(node.args, moved), map_aggregate(node.kwargs, moved)
        if "val" in node.meta:
            node.meta["val"] = torch.utils._pytree.tree_map(_on_gpu, node.meta["val"])
    module.recompile()
    return module


def _on_gpu(x: Any) -> Any:
    """A fake tensor of the meta device on the fake GPU, in the same fake mode."""
    if not isinstance(x, Tensor) or x.device.type != "meta":
        return x
    with x.fake_mode:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
