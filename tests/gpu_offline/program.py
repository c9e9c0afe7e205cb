"""A program that Inductor rendered for a GPU: its source text and the kernels in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import sympy
import torch


@dataclass(frozen=True)
class Program:
    """The Python source that Inductor's wrapper code generator wrote.

    symbols: values of its integer arguments, by position; tensors are the other arguments.
    order: which of the rendered function's `*tensors` each of those is: Dynamo orders them by their use.
    """

    source: str
    symbols: dict[int, int]
    order: list[int]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps([self.source, list(self.symbols.items()), self.order]))

    @classmethod
    def load(cls, path: Path) -> Program:
        source, symbols, order = json.loads(path.read_text())
        return cls(source, dict(symbols), order)

    def arguments(self, tensors: list[torch.Tensor]) -> list[Any]:
        """What to call the program with: the tensors, with the integers put between them."""
        arguments: list[Any] = [tensors[i] for i in self.order]
        for position, value in sorted(self.symbols.items()):
            arguments.insert(position, value)
        return arguments

    @property
    def kernels(self) -> dict[str, str]:
        """Kernel name -> source of the module that defines it."""
        call = r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str='cuda'\)"
        return dict(re.findall(call, self.source, re.S))

    @property
    def template_kernels(self) -> dict[str, str]:
        return {name: text for name, text in self.kernels.items() if "@triton_heuristics.template(" in text}

    def template_kernel(self, kind: str) -> tuple[str, str]:
        """Name and source of the one kernel that was rendered from this template."""
        (found,) = (item for item in self.template_kernels.items() if kind_of(item[1]) == kind)
        return found

    @property
    def calls(self) -> str:
        """The part that allocates buffers and launches kernels."""
        return self.source[self.source.index("def call(") :]


# An argument that kernels of one template have, and none further down has.
_ARGUMENTS = {
    "arg_ORDER": "attend_dkdv",
    "arg_OUT": "attend_dq",
    "arg_LSE": "attend_fwd",
    "arg_COLUMNS": "transpose_lists",
    "arg_STARTS": "rank_columns",
    "arg_SCORES": "select",
}


def kind_of(source: str) -> str:
    """The template that a kernel was rendered from; that of a triton_op has its name."""
    named = re.search(r"^def vsa_(\w+)\(", source, re.M)
    if named is not None:
        return named[1]
    return next(kind for name, kind in _ARGUMENTS.items() if re.search(rf"\b{name}\b", source))


# Constant folding would run operators on the device.
SETTINGS = {"fx_graph_cache": False, "compile_threads": 1, "joint_graph_constant_folding": False}


class _RenderedError(Exception):
    pass


def render(function: Callable, *inputs: Any, dynamic: bool = False) -> Program:
    """What Inductor generates for `function` on inputs of a fake device. Nothing is compiled or run."""
    import torch._functorch.config as functorch_config
    import torch._inductor.config as inductor_config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.graph import GraphLowering

    programs: list[Program] = []
    order: list[int] = []

    def inductor(module: Any, example_inputs: Any) -> Any:
        names = "".join(node.target for node in module.graph.find_nodes(op="placeholder"))
        order[:] = map(int, re.findall(r"L_tensors_(\d+)_", names))  # Dynamo may try twice
        return compile_fx(module, example_inputs)

    def keep_program(graph: Any) -> Any:
        wrapper, _ = graph.codegen()
        inputs = enumerate(graph.graph_inputs.values())
        symbols = {i: graph.sizevars.optimization_hint(x) for i, x in inputs if isinstance(x, sympy.Expr)}
        programs.append(Program(wrapper.value, symbols, order))
        raise _RenderedError

    torch._dynamo.reset()
    with (
        mock.patch.object(GraphLowering, "compile_to_module", keep_program),
        functorch_config.patch(enable_autograd_cache=False),
        inductor_config.patch(SETTINGS),
        torch.no_grad(),
    ):
        try:
            torch.compile(function, backend=inductor, dynamic=dynamic, fullgraph=True)(*inputs)
        except Exception as error:
            if not programs:
                raise error
    (program,) = programs
    return program
