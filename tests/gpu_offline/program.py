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
    """

    source: str
    symbols: dict[int, int]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps([self.source, list(self.symbols.items())]))

    @classmethod
    def load(cls, path: Path) -> Program:
        source, symbols = json.loads(path.read_text())
        return cls(source, dict(symbols))

    def arguments(self, tensors: list[torch.Tensor]) -> list[Any]:
        """What to call the program with: the tensors, with the integers put between them."""
        arguments: list[Any] = list(tensors)
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

    @property
    def calls(self) -> str:
        """The part that allocates buffers and launches kernels."""
        return self.source[self.source.index("def call(") :]


# Constant folding would run operators on the device.
_SETTINGS = {"fx_graph_cache": False, "compile_threads": 1, "joint_graph_constant_folding": False}


class _RenderedError(Exception):
    pass


def render(function: Callable, *inputs: Any, dynamic: bool = False) -> Program:
    """What Inductor generates for `function` on inputs of a fake device. Nothing is compiled or run."""
    import torch._functorch.config as functorch_config
    import torch._inductor.config as inductor_config
    from torch._inductor.graph import GraphLowering

    programs: list[Program] = []

    def keep_program(graph: Any) -> Any:
        wrapper, _ = graph.codegen()
        inputs = enumerate(graph.graph_inputs.values())
        symbols = {i: graph.sizevars.optimization_hint(x) for i, x in inputs if isinstance(x, sympy.Expr)}
        programs.append(Program(wrapper.value, symbols))
        raise _RenderedError

    torch._dynamo.reset()
    with (
        mock.patch.object(GraphLowering, "compile_to_module", keep_program),
        functorch_config.patch(enable_autograd_cache=False),
        inductor_config.patch(_SETTINGS),
        torch.no_grad(),
    ):
        try:
            torch.compile(function, dynamic=dynamic, fullgraph=True)(*inputs)
        except Exception as error:
            if not programs:
                raise error
    (program,) = programs
    return program
