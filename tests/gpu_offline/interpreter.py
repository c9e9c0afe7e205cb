"""Runs rendered programs on the CPU, their template kernels under Triton's interpreter.

    TRITON_INTERPRET=1 python -m gpu_offline.interpreter FOLDER [faults | SEED COUNT]

runs FOLDER/<case>.json of every case (or of random ones) and writes FOLDER/<case>.pt, the list of outputs
or a sentence that says what went wrong; likewise FOLDER/<fault>.pt of every seeded fault. A kernel that is
not a template is an error: it would be a copy that the lowering is supposed to avoid.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from gpu_offline.cases import Case, random_cases
from gpu_offline.faults import FAULTS, Fault
from gpu_offline.kernels import load_kernel
from gpu_offline.program import Program, kind_of
from gpu_offline.selections import SELECTIONS, Selection, random_selections
from gpu_offline.tables import ALL, AUTOTUNED


def compute_bf16_as_bf16() -> None:
    """Mend the interpreter, which keeps bf16 as the uint16 of its bits and then does integer arithmetic.

    Dot products get fp32 operands; sums and products are computed in fp32 and rounded; and rounding is to
    nearest even, as hardware does it, where the interpreter cuts off.
    """
    builder = interpreter.InterpreterBuilder
    dot, binary, trunc = builder.create_dot, builder.binary_op, builder.create_fp_trunc

    def is_bf16(handle: Any) -> bool:
        return handle.dtype.scalar == tl.bfloat16

    def widened(handle: Any) -> Any:
        if not is_bf16(handle):
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def mended_dot(builder: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        return dot(builder, widened(a), widened(b), d, *options)

    def mended_binary(builder: Any, a: Any, b: Any, operation: Callable) -> Any:
        if not is_bf16(a):
            return binary(builder, a, b, operation)
        result = operation(widened(a).data, widened(b).data)
        if result.dtype == np.bool_:
            return interpreter.TensorHandle(result, tl.int1)
        return rounded(result)

    def rounded(data: np.ndarray) -> Any:
        bits = torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(bits, tl.bfloat16)

    def mended_trunc(builder: Any, source: Any, to: Any) -> Any:
        narrowed = source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16
        return rounded(source.data) if narrowed else trunc(builder, source, to)

    builder.create_dot = mended_dot
    builder.binary_op = mended_binary
    builder.create_fp_trunc = mended_trunc


class _Launcher:
    """Stands for a compiled kernel: `run(*arguments, grid x, y, z, stream=...)` interprets it."""

    def __init__(self, name: str, source: str, launched: dict[str, list[Tensor]]) -> None:
        kernel = load_kernel(name, source)
        self._kernel, self._constants, self._kind = kernel.function, kernel.constants, kind_of(source)
        self._launched = launched

    def run(self, *arguments: Any, stream: int) -> None:
        *arguments, x, y, z = arguments
        self._kernel[(x, y, z)](*arguments, **self._constants)
        self._launched[self._kind] = [x.clone() for x in arguments if isinstance(x, Tensor)]


class WroteBesideError(Exception):
    """A kernel wrote outside of the tensors that it was given."""


class Memory:
    """Allocates tensors with wide margins. Everything not written yet is NaN, margins included, so that
    a value nobody wrote, or read from beside a tensor, shows; a write beside one is an error."""

    _MARGIN = 1 << 16

    def __init__(self) -> None:
        self._blocks: list[tuple[Tensor, Tensor]] = []

    def fresh(self, size: tuple, stride: tuple, dtype: torch.dtype) -> Tensor:
        elements = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        poison = math.nan if dtype.is_floating_point else 0
        block = torch.full((elements + 2 * self._MARGIN,), poison, dtype=dtype)
        self._blocks.append((block, block.clone()))
        return block.as_strided(size, stride, self._MARGIN)

    def copy_of(self, x: Tensor) -> Tensor:
        copy = self.fresh(tuple(x.shape), x.stride(), x.dtype)
        once = tuple(slice(1 if s == 0 else None) for s in x.stride())  # an expanded tensor repeats itself
        copy[once] = x[once]
        return copy

    def check_margins(self) -> None:
        for block, before in self._blocks:
            for margin in (slice(None, self._MARGIN), slice(-self._MARGIN, None)):
                same = (block[margin] == before[margin]) | (block[margin].isnan() & before[margin].isnan())
                if not bool(same.all()):
                    raise WroteBesideError(f"{int((~same).sum())} values written beside a tensor")


def run_program(program: Program, tensors: list[Tensor]) -> list[Tensor]:
    """The outputs of a rendered program on CPU tensors; of a backward also starts, columns and order, which
    the gradients hardly show: any order gives the same ones."""
    from torch._inductor.async_compile import AsyncCompile

    def launcher(_: Any, name: str, text: str, **__: Any) -> _Launcher:
        return _Launcher(name, text, launched)

    memory = Memory()
    launched: dict[str, list[Tensor]] = {}
    namespace: dict[str, Any] = {"__name__": "rendered"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(AsyncCompile, "triton", launcher))
        stack.enter_context(mock.patch.object(AsyncCompile, "wait"))
        stack.enter_context(mock.patch.object(torch._C, "_cuda_getCurrentRawStream", create=True))
        stack.enter_context(mock.patch.object(torch.cuda, "_DeviceGuard", contextlib.nullcontext))
        stack.enter_context(mock.patch.object(torch.cuda, "set_device"))
        exec(compile(program.source, "rendered", "exec"), namespace)
        namespace["empty_strided_cuda"] = memory.fresh
        outputs = namespace["call"](program.arguments([memory.copy_of(x) for x in tensors]))
    memory.check_margins()
    lists = []
    if "rank_columns" in launched:
        starts, order = launched["rank_columns"]
        lists = [starts, launched["transpose_lists"][2], order]
    return [x.clone() for x in outputs] + lists


def run_case(folder: Path, case: Case | Selection, fault: Fault | None, result: str) -> None:
    """Writes FOLDER/<result>.pt."""
    program = Program.load(folder / f"{case.name}.json")
    if fault is not None:
        program = fault.put_into_program(program)
    try:
        _, _, tensors = case.call()
        outcome: Any = run_program(program, tensors)
    except WroteBesideError as error:
        outcome = str(error)
    torch.save(outcome, folder / f"{result}.pt")


def main(folder: Path, *what: str) -> None:
    compute_bf16_as_bf16()
    torch.set_num_threads(1)
    np.seterr(all="ignore")  # log2(0) and the like, where the kernel means it
    if len(what) == 2:
        seed, count = map(int, what)
        for case in (*random_cases(seed, count), *random_selections(seed, count)):
            run_case(folder, case, None, case.name)
        return
    cases = (*ALL, *SELECTIONS, *AUTOTUNED)
    by_name: dict[str, Any] = {case.name: case for case in cases}
    if what == ("faults",):
        for name, fault in FAULTS.items():
            run_case(folder, by_name[fault.noticed_by], fault, name)
        return
    for name, case in by_name.items():
        run_case(folder, case, None, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
