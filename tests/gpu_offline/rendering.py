"""Renders every program that the template tests look at.

    python -m gpu_offline.rendering FOLDER [SEED COUNT]

writes FOLDER/<name>.json, of random cases alone if they are asked for.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import vsa_compile.ops  # noqa: F401 - defines torch.ops.vsa
from gpu_offline.cases import (
    CASES,
    Case,
    make_inputs,
    program,
    program_integers,
    program_tensors,
    random_cases,
)
from gpu_offline.fake_cuda import fake_cuda
from gpu_offline.program import Program, render
from vsa_compile import gpu

TARGETS = {"sm80": (8, 0), "sm90": (9, 0)}
# Calls of a real size, for offline compilation: a grid of full tiles, and Wan 1.3B's 480p.
_FULL, _WAN = (32, 32, 32), (21, 30, 52)
LAUNCHES = (
    Case("bf16_width_64", torch.bfloat16, _FULL, width=64, heads=12, kv_heads=12),
    Case("bf16_width_128", torch.bfloat16, _FULL, width=128, heads=12, kv_heads=12),
    Case("bf16_width_128_ragged", torch.bfloat16, _WAN, width=128, heads=12, kv_heads=12),
    Case("bf16_width_128_text", torch.bfloat16, _WAN, width=128, q_other=(0, 226), kv_other=(0, 226)),
    Case("bf16_width_256", torch.bfloat16, _FULL, width=256),
    Case("fp32_width_128", torch.float32, _FULL, width=128),
)


def on_fake_gpu(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") for x in tensors]


def render_case(case: Case) -> Program:
    from torch._inductor.codegen.triton import TritonScheduling

    tensors = program_tensors(case, make_inputs(case))
    narrow = staticmethod(lambda *_: False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        if case.wide:
            stack.enter_context(mock.patch.object(TritonScheduling, "can_use_32bit_indexing", narrow))
        return render(program(case), *program_integers(case), *on_fake_gpu(tensors), dynamic=case.dynamic)


def render_launch(case: Case) -> Program:
    """A case too large to fill with numbers; q, k and v are (B, N, H, D) in memory."""
    tokens, total = case.tiles.grid.tokens + sum(case.q_other), case.tiles.tiles
    with FakeTensorMode():
        shape = (case.batch, tokens, case.heads, case.width)
        q, k, v = (torch.empty(shape, dtype=case.dtype, device="cuda").transpose(1, 2) for _ in range(3))
        rows = (case.batch, case.heads, total)
        tiles = torch.empty(*rows, total // 8, dtype=torch.int32, device="cuda")
        counts = torch.empty(rows, dtype=torch.int32, device="cuda")
        return render(program(case), *program_integers(case), q, k, v, tiles, counts)


def render_method() -> Program:
    """The whole VSA method with a gate: everything around the kernel is Inductor's."""

    def run(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Any:
        heads = (x.transpose(1, 2) for x in (q, k, v, gate))
        out = torch.ops.vsa.attention(*heads, [8, 9, 12], [4, 4, 4], 0, 0, None, None, 0.875, "vsa")
        return out.transpose(1, 2).flatten(2)

    with FakeTensorMode():
        tensors = (torch.empty(1, 864, 2, 64, dtype=torch.bfloat16, device="cuda") for _ in range(4))
        return render(run, *tensors)


def main(folder: Path) -> None:
    """Everything that test_attend_template.py looks at."""
    with fake_cuda(TARGETS["sm90"]):
        assert gpu.register()
        for case in CASES:
            render_case(case).save(folder / f"{case.name}.json")
        render_method().save(folder / "method.json")
        render_case(Case("fp64", torch.float64)).save(folder / "fp64.json")
    for target, capability in TARGETS.items():
        with fake_cuda(capability):
            for case in LAUNCHES:
                render_launch(case).save(folder / f"{case.name}_{target}.json")


def render_random(folder: Path, seed: int, count: int) -> None:
    with fake_cuda(TARGETS["sm90"]):
        assert gpu.register()
        for case in random_cases(seed, count):
            render_case(case).save(folder / f"{case.name}.json")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        render_random(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(Path(sys.argv[1]))
