"""What a rendered program launches, in order, and which tensors each launch reads and writes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from gpu_offline.program import Program, kind_of


@dataclass(frozen=True)
class Launch:
    """kind: a template's name, "pointwise", "reduction", or the name of a library call such as "mm".

    reads, writes: names of tensors in the program; a view goes by the name of what it views.
    """

    kernel: str
    kind: str
    reads: frozenset[str]
    writes: frozenset[str]


@dataclass(frozen=True)
class Launches:
    """All launches of a program that Inductor wrote in Python."""

    program: Program

    @cached_property
    def all(self) -> tuple[Launch, ...]:
        return tuple(self._found())

    @property
    def kinds(self) -> list[str]:
        return [launch.kind for launch in self.all]

    def of(self, kind: str) -> Launch:
        """The one launch of this kind."""
        (found,) = (launch for launch in self.all if launch.kind == kind)
        return found

    def readers(self, name: str) -> list[str]:
        """Kinds of what reads a tensor, in order."""
        return [launch.kind for launch in self.all if name in launch.reads]

    def argument(self, kind: str, parameter: str) -> str:
        """The tensor that the one launch of a kind is given as this parameter."""
        launch = self.of(kind)
        call = next(call for call in self._calls() if _callee(call) == f"{launch.kernel}.run")
        return _tensor(call.args[self._parameters(launch.kernel).index(parameter)])

    def _found(self) -> Iterator[Launch]:
        for call in self._calls():
            callee = _callee(call)
            kernel, _, method = callee.rpartition(".")
            if method == "run" and kernel in self.program.kernels:
                yield self._of_triton(kernel, call)
            elif callee.startswith(("extern_kernels.", "torch.ops.")):
                yield _of_library(callee, call)

    def _calls(self) -> Iterator[ast.Call]:
        body = _without_kernels(self.program.source)
        calls = (node for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Call))
        yield from sorted(calls, key=lambda node: (node.lineno, node.col_offset))

    def _parameters(self, kernel: str) -> list[str]:
        found = re.search(rf"^def {kernel}\((.*?)\):", self.program.kernels[kernel], re.M | re.S)
        assert found is not None, kernel
        return [name.partition(":")[0].strip() for name in found[1].split(",")]

    def _of_triton(self, kernel: str, call: ast.Call) -> Launch:
        source = self.program.kernels[kernel]
        listed = re.search(r"'mutated_arg_names': \[(.*?)\]", source)
        mutated = set(re.findall(r"'(\w+)'", listed[1])) if listed else set()
        reads, writes = set(), set()
        for name, argument in zip(self._parameters(kernel), call.args, strict=False):
            if not name.startswith(("in_", "out_", "arg_")):
                continue
            if name.startswith("out_") or name in mutated:
                writes.add(_tensor(argument))
            if name.startswith(("in_", "arg_")) and not (name.startswith("arg_") and name in mutated):
                reads.add(_tensor(argument))
        return Launch(kernel, _kind(source), frozenset(reads), frozenset(writes))


def _kind(source: str) -> str:
    if "@triton_heuristics.template(" in source:
        return kind_of(source)
    return "pointwise" if "@triton_heuristics.pointwise(" in source else "reduction"


def _of_library(callee: str, call: ast.Call) -> Launch:
    given = [_tensor(argument) for argument in call.args if _is_tensor(argument)]
    out = [_tensor(keyword.value) for keyword in call.keywords if keyword.arg == "out"]
    name = callee.removeprefix("extern_kernels.").removeprefix("torch.ops.").removesuffix(".default")
    return Launch(callee, name, frozenset(given), frozenset(out))


def _callee(call: ast.Call) -> str:
    return ast.unparse(call.func)


def _is_tensor(argument: ast.expr) -> bool:
    return isinstance(argument, ast.Name) or (
        isinstance(argument, ast.Call) and _callee(argument) == "reinterpret_tensor"
    )


def _tensor(argument: ast.expr) -> str:
    """The name under a view."""
    while isinstance(argument, ast.Call):
        argument = argument.args[0]
    return ast.unparse(argument)


def _without_kernels(source: str) -> str:
    """The program without the texts of its kernels, which are strings in it."""
    return re.sub(r"async_compile\.triton\(.*?''', device_str='cuda'\)", "None", source, flags=re.S)
