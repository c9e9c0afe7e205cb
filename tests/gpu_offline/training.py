"""Renders whole graphs, forward and backward, as torch.compile(model, backend="vsa") makes them.

    python -m gpu_offline.training FOLDER

writes FOLDER/graphs.json, the graphs of every entry of GRAPHS.

Autograd on fake CUDA tensors ends the process: its C++ asks a real driver. So a model is traced on the meta
device, where autograd runs, and each graph of it is moved to the fake GPU right before Inductor lowers it;
what it has on the CPU stays there. Unlike `program.render` this runs all of Inductor but the compilation of
kernels, so that it also decides about CUDA graphs: what it decided is part of the result.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from gpu_offline.fake_cuda import fake_cuda
from gpu_offline.layer import GRID, make_layer
from gpu_offline.program import SETTINGS
from vsa_compile import SparsitySchedule, add_gates, attention, torch_compat, vsa
from vsa_compile.ops import gpu

OPTIONS = {"grid": GRID, "sparsity": 0.9, "fallback": "error"}
# Without partitions a graph becomes one CUDA graph, or none.
_GRAPHED = {"triton.cudagraphs": True, "graph_partition": False}


@dataclass
class Graph:
    """source: the program. cuda_graphs: how many Inductor makes of it; skipped: why it makes none."""

    source: str
    cuda_graphs: int = 0
    skipped: list[str] = field(default_factory=list)


class _EnoughError(Exception):
    """Everything is rendered, and nothing can run."""


def render_training(function: Callable, inputs: list[Tensor], **options: Any) -> list[Graph]:
    """[forward, backward] of `function` on the meta device, [forward] if no gradient is asked for. `options`
    are those of the backend."""
    graphs: list[Graph] = []

    def compile_moved(module: Any, example_inputs: Any, patches: dict[str, Any]) -> Any:
        from torch._inductor.compile_fx import compile_fx

        def lower(graph: Any, graph_inputs: list, **kwargs: Any) -> Any:
            lowered = lower_on_gpu(graph, graph_inputs, **kwargs)
            if kwargs.get("is_backward") or kwargs.get("is_inference"):
                raise _EnoughError
            return lowered

        return compile_fx(module, example_inputs, inner_compile=lower, config_patches=patches)

    torch._dynamo.reset()
    with _rendering(graphs), mock.patch.object(torch_compat, "compile_with_inductor", compile_moved):
        try:
            torch.compile(function, backend=vsa, fullgraph=True, options=OPTIONS | options)(*inputs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            if not isinstance(error.inner_exception, _EnoughError):
                raise
    return graphs


@contextlib.contextmanager
def _rendering(graphs: list[Graph]) -> Iterator[None]:
    """Within it Inductor appends to `graphs` in the place of compiling kernels."""
    from torch._functorch import config as functorch_config
    from torch._inductor import compile_fx, config, output_code
    from torch._inductor.graph import GraphLowering

    def keep_program(graph: Any) -> Any:
        wrapper, _ = graph.codegen_with_cpp_wrapper() if graph.cpp_wrapper else graph.codegen()
        graphs.append(Graph(wrapper.value))

        def wrap_partitions(functions: list[Callable]) -> None:
            for function in functions:
                function(None)

        runner = SimpleNamespace(recursively_apply_fns=wrap_partitions, partitions=[])
        return SimpleNamespace(call=lambda *_: None, runner=runner)

    def keep_reason(reason: str) -> None:
        graphs[-1].skipped.append(reason)

    def keep_count(call: Callable, *_: Any, **__: Any) -> Callable:
        graphs[-1].cuda_graphs += 1
        return call

    with (
        mock.patch.object(GraphLowering, "compile_to_module", keep_program),
        mock.patch.object(compile_fx, "log_cudagraph_skip_and_bump_counter", keep_reason),
        mock.patch.object(output_code, "log_cudagraph_skip_and_bump_counter", keep_reason),
        mock.patch.object(compile_fx, "cudagraphify", keep_count),
        functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
        config.patch(SETTINGS),
    ):
        yield


def lower_on_gpu(module: Any, inputs: list, **kwargs: Any) -> Any:
    """Inductor's own lowering of a graph, with the GPU wherever the graph names the meta device."""
    from torch._inductor.compile_fx import compile_fx_inner

    cuda = torch.device("cuda", 0)

    def moved(x: Any) -> Any:
        return cuda if isinstance(x, torch.device) and x.type == "meta" else x

    for node in module.graph.nodes:
        node.args, node.kwargs = map_aggregate(node.args, moved), map_aggregate(node.kwargs, moved)
        if "val" in node.meta:
            node.meta["val"] = torch.utils._pytree.tree_map(_on_gpu, node.meta["val"])
    module.recompile()
    return compile_fx_inner(module, [_on_gpu(x) for x in inputs], **kwargs)


def _on_gpu(x: Any) -> Any:
    """A fake tensor of the meta device on the fake GPU, in the same fake mode."""
    if not isinstance(x, Tensor) or x.device.type != "meta":
        return x
    with x.fake_mode:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")


# --- what is rendered -------------------------------------------------------------------------


def _vsa(*, batch: int = 1, trained: bool = True, gated: bool = True, **options: Any) -> list[Graph]:
    layer, inputs = make_layer(batch=batch, trained=trained)
    if gated:
        for parameter in add_gates(layer, *inputs, options={"grid": GRID}):
            parameter.requires_grad_(trained)
    if batch > 1:
        torch._dynamo.mark_dynamic(inputs[0], 0)
    return render_training(layer, inputs, **options)


def _with_scalar_on_cpu() -> list[Graph]:
    """What the check for CUDA graphs must notice: attention, times a number of the CPU."""
    scalar = torch.ones(())

    def scaled(q: Tensor) -> Tensor:
        return attention(q, q, q, grid=(8, 8, 8)) * (scalar + 1).to(q.device)

    q = torch.empty(1, 2, 512, 64, dtype=torch.bfloat16, device="meta")
    return render_training(scaled, [q], inductor=_GRAPHED)


GRAPHS: dict[str, Callable[[], list[Graph]]] = {
    "vsa": lambda: _vsa(mode="reduce-overhead"),
    "bsa": lambda: _vsa(gated=False, method="bsa", inductor=_GRAPHED),
    "schedule": lambda: _vsa(trained=False, sparsity=SparsitySchedule(0.9), inductor=_GRAPHED),
    "dynamic_batch": lambda: _vsa(batch=2, inductor=_GRAPHED),
    "cpp_wrapper": lambda: _vsa(inductor={"cpp_wrapper": True}),
    "scalar_on_cpu": _with_scalar_on_cpu,
}


def main(folder: Path) -> None:
    with fake_cuda():
        assert gpu.register()
        graphs = {name: [asdict(graph) for graph in make()] for name, make in GRAPHS.items()}
    (folder / "graphs.json").write_text(json.dumps(graphs))


def load_graphs(folder: Path) -> dict[str, list[Graph]]:
    graphs = json.loads((folder / "graphs.json").read_text())
    return {name: [Graph(**fields) for fields in made] for name, made in graphs.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
