"""Renders every program that the template tests look at.

    python -m gpu_offline.rendering FOLDER cases
    python -m gpu_offline.rendering FOLDER golden GROUP
    python -m gpu_offline.rendering FOLDER random SEED COUNT

write FOLDER/<name>.json of every case, FOLDER/<name>-TARGET.json of what a group of GOLDEN compiles, and
FOLDER/<name>.json of random cases.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import vsa_compile.ops.schema  # noqa: F401 - defines torch.ops.vsa_compile
from gpu_offline.cases import Case, program, program_integers, random_cases
from gpu_offline.fake_cuda import fake_cuda
from gpu_offline.golden import kernels_of
from gpu_offline.program import Program, render
from gpu_offline.selections import SELECTIONS, Selection, random_selections
from gpu_offline.tables import ALL, AUTOTUNED, BACKWARD, CASES
from vsa_compile.ops import gpu
from vsa_compile.ops.gpu import configs

# AMD's code is that of Hopper, under AMD's configurations.
TARGETS = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0), "sm_120": (12, 0), "gfx942": (9, 0)}
# Calls of a real size, for offline compilation: a grid of full tiles, and Wan 1.3B's 480p.
_FULL, _WAN = (32, 32, 32), (21, 30, 52)
_FORWARD_LAUNCHES = (
    Case("bf16_width_64", torch.bfloat16, _FULL, width=64, heads=12, kv_heads=12),
    Case("bf16_width_128", torch.bfloat16, _FULL, width=128, heads=12, kv_heads=12),
    Case("bf16_width_128_ragged", torch.bfloat16, _WAN, width=128, heads=12, kv_heads=12),
    Case("bf16_width_128_text", torch.bfloat16, _WAN, width=128, q_other=(0, 226), kv_other=(0, 226)),
    Case("bf16_width_256", torch.bfloat16, _FULL, width=256),
    Case("fp32_width_128", torch.float32, _FULL, width=128),
)
LAUNCHES = _FORWARD_LAUNCHES + tuple(
    replace(case, name=f"backward_{case.name}", backward=True) for case in _FORWARD_LAUNCHES
)


def on_fake_gpu(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") for x in tensors]


def render_case(case: Case | Selection) -> Program:
    from torch._inductor.codegen.triton import TritonScheduling

    function, integers, tensors = case.call()
    narrow = staticmethod(lambda *_: False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        if case.wide:
            stack.enter_context(mock.patch.object(TritonScheduling, "can_use_32bit_indexing", narrow))
        return render(function, *integers, *on_fake_gpu(tensors), dynamic=case.dynamic)


def launch_of(name: str) -> tuple[Callable, tuple]:
    """A call too large to fill with numbers, under FakeTensorMode: one of LAUNCHES, where q, k and v are
    (B, N, H, D) in memory, or select_of_<tiles>, which keeps an eighth of the scores of 12 heads."""
    if name.startswith("select_of_"):
        rows = int(name.removeprefix("select_of_"))
        scores = torch.empty(1, 12, rows, rows, device="cuda")
        return lambda scores: torch.ops.vsa_compile.select(scores, rows // 8), (scores,)
    (case,) = (case for case in LAUNCHES if case.name == name)
    tokens, total = case.tiles.grid.tokens + sum(case.q_other), case.tiles.tiles
    shape = (case.batch, tokens, case.heads, case.width)
    q, k, v = (torch.empty(shape, dtype=case.dtype, device="cuda").transpose(1, 2) for _ in range(3))
    rows = (case.batch, case.heads, total)
    tiles = torch.empty(*rows, total // 8, dtype=torch.int32, device="cuda")
    counts = torch.empty(rows, dtype=torch.int32, device="cuda")
    grad_out, out = (torch.empty(shape, dtype=case.dtype, device="cuda") for _ in range(2))
    lse = torch.empty(case.batch, case.heads, tokens, device="cuda")
    saved = [grad_out, out, lse] if case.backward else []
    return program(case), (*program_integers(case), q, k, v, *saved, tiles, counts)


def render_method() -> Program:
    """The whole VSA method with a gate: everything around the kernel is Inductor's."""

    def run(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Any:
        heads = (x.transpose(1, 2) for x in (q, k, v, gate))
        out = torch.ops.vsa_compile.attention(*heads, [8, 9, 12], [4, 4, 4], 0, 0, None, None, 0.875, "vsa")
        return out.transpose(1, 2).flatten(2)

    with FakeTensorMode():
        tensors = (torch.empty(1, 864, 2, 64, dtype=torch.bfloat16, device="cuda") for _ in range(4))
        return render(run, *tensors)


def render_autotuned(folder: Path, case: Case) -> None:
    """Also writes FOLDER/<name>_examples.pt: of every template that has a choice, the number of its
    configurations, and the inputs that Inductor would time them with, by position."""
    from torch._inductor import config, select_algorithm

    examples: dict[str, tuple[int, dict[int, Tensor]]] = {}

    def take_the_last(name: str, choices: list, inputs: list, _: Any, input_gen_fns: Any = None) -> Any:
        on_cpu = [
            SimpleNamespace(get_size=x.get_size, get_device=lambda: torch.device("cpu")) for x in inputs
        ]
        with unset_fake_temporarily():
            made = {i: make(on_cpu[i]) for i, make in (input_gen_fns or {}).items()}
        if len(choices) > 1:
            examples[name] = len(choices), made
        return choices[-1].output_node()

    with (
        mock.patch.object(select_algorithm, "autotune_select_algorithm", take_the_last),
        config.patch(max_autotune=True),
    ):
        render_case(case).save(folder / f"{case.name}.json")
    torch.save(examples, folder / f"{case.name}_examples.pt")


def _render_all(folder: Path, cases: Sequence[Case | Selection]) -> None:
    """On Ampere, or on Hopper what wants tensor maps."""
    for target in ("sm_80", "sm_90"):
        with fake_cuda(TARGETS[target]):
            assert gpu.register()
            for case in cases:
                if (isinstance(case, Case) and case.maps) == (target == "sm_90"):
                    render_case(case).save(folder / f"{case.name}.json")


def render_cases(folder: Path) -> None:
    fp64 = Case("fp64", torch.float64)
    _render_all(folder, [*ALL, *SELECTIONS, fp64,
                         replace(fp64, name="backward_fp64", backward=True)])  # fmt: skip
    with fake_cuda(TARGETS["sm_90"]):
        assert gpu.register()
        for case in AUTOTUNED:
            render_autotuned(folder, case)
        render_method().save(folder / "method.json")


def _render_golden(name: str) -> Program:
    """The program that GOLDEN calls so."""
    if name == "method":
        return render_method()
    cases = {case.name: case for case in CASES + BACKWARD}
    if name in cases:
        return render_case(cases[name])
    with FakeTensorMode():
        function, arguments = launch_of(name)
        return render(function, *arguments)


def render_golden(folder: Path, group: str) -> None:
    names, (target, *_), _ = zip(*kernels_of(group), strict=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(fake_cuda(TARGETS[target]))
        if target == "gfx942":
            stack.enter_context(mock.patch.object(configs, "family", return_value="amd"))
        assert gpu.register()
        for name in dict.fromkeys(names):
            _render_golden(name).save(folder / f"{name}-{target}.json")


def render_random(folder: Path, seed: str, count: str) -> None:
    _render_all(folder, [*random_cases(int(seed), int(count)), *random_selections(int(seed), int(count))])


if __name__ == "__main__":
    folder, what, *more = Path(sys.argv[1]), *sys.argv[2:]
    {"cases": render_cases, "golden": render_golden, "random": render_random}[what](folder, *more)
