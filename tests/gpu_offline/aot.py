"""AOTInductor for the fake GPU: C++ and machine code, down to what a linker with CUDA's libraries would do.

Real: the export, the conversion, the lowering, Triton's compilation of every kernel for the GPU's
architecture, the C++ of the program, and g++'s opinion of it. Not real: kernels are not run to tune them, the
weights are not serialized, nothing is linked or loaded.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton

from gpu_offline.program import SETTINGS


class _WrittenError(Exception):
    """The C++ is written."""


def render_aot(program: torch.export.ExportedProgram) -> str:
    """The C++ that AOTInductor writes for a program on the fake GPU; its kernels are compiled on the way."""
    from torch._inductor.codecache import AotCodeCompiler

    written: list[str] = []

    def keep(_: Any, wrapper_code: str, kernel_code: str, *_rest: Any, **_more: Any) -> None:
        written.append(wrapper_code + kernel_code)
        raise _WrittenError

    args, _ = program.example_inputs
    with mock.patch.object(AotCodeCompiler, "compile", keep), _compiled_not_tuned():
        try:
            torch._inductor.aot_compile(program.module(), args, options=SETTINGS)
        except Exception as error:
            if not written:
                raise error
    return written[0]


@contextlib.contextmanager
def _compiled_not_tuned() -> Iterator[None]:
    """Within it the block that compiles and runs every kernel does the first alone."""
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from triton.compiler import CompiledKernel

    def compile_kernels(wrapper: Any) -> None:
        scope: dict[str, Any] = {}
        exec(wrapper.kernel_autotune_defs.getvalue() + "\nasync_compile.wait(globals())", scope)
        for kernel in scope.values():
            if isinstance(kernel, CachingAutotuner):
                kernel.save_gpu_kernel(0, kernel.launchers[0])

    with (
        mock.patch.object(PythonWrapperCodegen, "generate_and_run_autotune_block", compile_kernels),
        mock.patch.object(CompiledKernel, "_init_handles"),
    ):
        yield


def complaints(source: Path) -> str:
    """What g++ has to say about the C++ of a program, with CUDA's headers as Triton brings them."""
    torch_folder, triton_folder = (Path(module.__file__).parent for module in (torch, triton))
    folders = [
        torch_folder / "include",
        torch_folder / "include/torch/csrc/api/include",
        triton_folder / "backends/nvidia/include",
    ]
    done = subprocess.run(
        ["g++", "-std=c++20", "-fsyntax-only", "-w", "-DUSE_CUDA", *(f"-I{x}" for x in folders), source],
        capture_output=True,
        text=True,
    )
    return done.stderr
