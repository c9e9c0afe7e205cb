"""AOTInductor for the fake GPU, up to the link with CUDA's libraries; and what g++ says to the C++.

    python -m gpu_offline.native FOLDER

writes FOLDER/aot.cpp, the C++ of the layer exported with a dynamic batch, and FOLDER/kernels.json, what its
kernels compiled to.

Real: the export, the conversion, the lowering, Triton's compilation of every kernel for sm_90, the C++. Not
real: kernels are not run to tune them; weights are inputs; nothing is linked or loaded.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor, nn

from gpu_offline.fake_cuda import fake_cuda
from gpu_offline.layer import GRID, make_layer
from gpu_offline.program import SETTINGS
from gpu_offline.training import OPTIONS, lower_on_gpu
from vsa_compile import add_gates, convert_exported
from vsa_compile.ops import gpu


class _WrittenError(Exception):
    """The C++ is written."""


class _Functional(nn.Module):
    """A model that takes its weights as an input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.hidden = [model]  # in a list: no submodule

    def forward(self, weights: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return torch.func.functional_call(self.hidden[0], weights, inputs)


def exported_layer() -> tuple[torch.export.ExportedProgram, tuple]:
    """The gated layer with a dynamic batch, converted; and its arguments."""
    layer, inputs = make_layer(batch=2, trained=False)
    add_gates(layer, *inputs, options={"grid": GRID})
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}
    batch = torch.export.Dim("batch", min=1, max=8)
    shapes = (dict.fromkeys(weights), ({0: batch}, None, None))
    program = torch.export.export(_Functional(layer), (weights, *inputs), dynamic_shapes=shapes)
    convert_exported(program, OPTIONS)
    return program, (weights, *inputs)


def render_aot(program: torch.export.ExportedProgram, arguments: tuple) -> tuple[str, dict[str, Any]]:
    """The C++ that AOTInductor writes, and of every kernel: bytes of machine code and of shared memory."""
    from torch._inductor.codecache import AotCodeCompiler
    from torch._inductor.compile_fx import _aoti_flatten_inputs, compile_fx_aot

    written: list[str] = []
    kernels: dict[str, Any] = {}

    def keep(_: Any, wrapper_code: str, kernel_code: str, *_rest: Any, **_more: Any) -> None:
        written.append(wrapper_code + kernel_code)
        raise _WrittenError

    module = program.module(check_guards=False)
    flat, options = _aoti_flatten_inputs(module, arguments, None, options={})
    with mock.patch.object(AotCodeCompiler, "compile", keep), _compiled_not_tuned(kernels), torch.no_grad():
        try:
            compile_fx_aot(module, flat, lower_on_gpu, config_patches=SETTINGS | options)
        except Exception as error:
            if not written:
                raise error
    return written[0], kernels


@contextlib.contextmanager
def _compiled_not_tuned(kernels: dict[str, Any]) -> Iterator[None]:
    """Within it the step that compiles all kernels, runs them and keeps the fastest does the first alone."""
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.runtime import triton_helpers
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from triton.compiler import CompiledKernel

    def compile_kernels(wrapper: Any) -> None:
        scope: dict[str, Any] = {}
        exec(wrapper.kernel_autotune_defs.getvalue() + "\nasync_compile.wait(globals())", scope)
        for name, kernel in scope.items():
            if isinstance(kernel, CachingAutotuner):
                launcher = kernel.launchers[0]
                kernel.save_gpu_kernel(0, launcher)
                kernels[name] = len(launcher.bin.asm["cubin"]), launcher.bin.metadata.shared

    with (
        mock.patch.object(PythonWrapperCodegen, "generate_and_run_autotune_block", compile_kernels),
        mock.patch.object(triton_helpers, "set_driver_to_gpu"),
        mock.patch.object(CompiledKernel, "_init_handles"),  # loads the machine code
    ):
        yield


# CUDA's headers as Triton brings them lack this one; it chooses between code for the GPU and for the CPU.
_TARGET = "#pragma once\n#define NV_IF_TARGET(...)\n#define NV_IF_ELSE_TARGET(...)\n"


def complaints(source: str) -> str:
    """What g++ has to say to the C++ of a program, up to the assembler."""
    torch_folder, triton_folder = (Path(module.__file__ or "").parent for module in (torch, triton))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "nv").mkdir()
        (Path(folder) / "nv/target").write_text(_TARGET)
        includes = [
            folder,
            torch_folder / "include",
            torch_folder / "include/torch/csrc/api/include",
            triton_folder / "backends/nvidia/include",
            sysconfig.get_paths()["include"],
        ]
        command = ["g++", "-std=c++20", "-fsyntax-only", "-w", "-DUSE_CUDA", *(f"-I{x}" for x in includes)]
        done = subprocess.run([*command, "-xc++", "-"], input=source, capture_output=True, text=True)
    return done.stderr


def main(folder: Path) -> None:
    with fake_cuda():
        assert gpu.register()
        source, kernels = render_aot(*exported_layer())
    (folder / "aot.cpp").write_text(source)
    (folder / "kernels.json").write_text(json.dumps(kernels))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
