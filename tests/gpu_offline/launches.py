"""What a rendered program launches, in order, and which tensors each launch reads and writes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from gpu_offline.program import Program, kind_of

# What a template writes besides the output that epilogues fuse into; to Inductor it is an input.
_SECOND_OUTPUT = {
    "select": "arg_TILES",
    "attend_fwd": "arg_LSE",
    "attend_dq": "arg_DELTA",
    "attend_dkdv": "arg_GRAD_K",
    "transpose_lists": "arg_COLUMNS",
}


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

    def writers(self, name: str) -> list[str]:
        return [launch.kind for launch in self.all if name in launch.writes]

    def writer(self, name: str) -> Launch:
        """The one launch that writes a tensor."""
        (found,) = (launch for launch in self.all if name in launch.writes)
        return found

    def reader(self, name: str) -> Launch:
        """The one launch that reads a tensor."""
        (found,) = (launch for launch in self.all if name in launch.reads)
        return found

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
        kind = _kind(source)
        reads, writes = set(), set()
        for name, argument in zip(self._parameters(kernel), call.args, strict=False):
            if name.startswith(("out_", "in_out_")) or name == _SECOND_OUTPUT.get(kind):
                writes.add(_tensor(argument))
            elif name.startswith(("in_", "arg_")):
                reads.add(_tensor(argument))
            if name.startswith("in_out_"):
                reads.add(_tensor(argument))
        return Launch(kernel, kind, frozenset(reads), frozenset(writes))


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
