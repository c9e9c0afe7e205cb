"""From how many video tokens on a kernel beats dense attention: writes vsa_compile/ops/break_even_table.py.

    python benchmarks/break_even.py                         every kernel that this machine runs
    python benchmarks/break_even.py "aten avx2" avx2        these alone; the others' lines stay

The whole operation at the default sparsity 0.875, eager, against F.scaled_dot_product_attention in the same
process, one after the other, the median of several rounds; in processor time of one thread, so that what else
runs on the machine counts little; on grids of whole and of ragged tiles, widths 64 and 128, forward alone and
with the backward. A size counts as won where every one of these is at least 1.1 times as fast; the break-even
is the first of two sizes in a row that are won, and larger ones are not tried. A kernel for a lesser
instruction set is measured against a torch that is held to that set too; chunked ATen, which is torch's own,
under each set: its line is the worst. Every ratio goes to results/break_even.json, after every type.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vsa_compile import attention
from vsa_compile.ops.cpu import loader
from vsa_compile.tools.bench.setting import setting

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "results" / "break_even.json", HERE.parent / "vsa_compile/ops/break_even_table.py"
# Video tokens: a grid of whole tiles, and a ragged one of at least as many.
GRIDS = {
    512: ((2, 16, 16), (3, 13, 14)),
    1024: ((4, 16, 16), (5, 15, 14)),
    2048: ((8, 16, 16), (6, 18, 19)),
    4096: ((4, 32, 32), (5, 30, 28)),
}
HEADS, WIDTHS = 2, (64, 128)
MARGIN = 1.1
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
LEAST = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
}
# What torch is held to in each run. The first word is what VSA_COMPILE_CPU is, the last the instruction set.
RUNS = {"avx512": {}, "avx2": AVX2, "plain": LEAST, "aten avx512": {}, "aten avx2": AVX2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    here = [run for run in RUNS if run.split()[-1] in loader.variants()]
    parser.add_argument("runs", nargs="*", default=here)
    parser.add_argument("--types", nargs="*", default=["float32", "bfloat16", "float16", "float64"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", default="nothing", help="what else runs on the machine, for the results")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        torch.set_num_threads(1)
        where = setting(torch.device("cpu"))
        print(json.dumps([where, measured(getattr(torch, chosen.types[0]), chosen.rounds)]))
        return
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for run, dtype in itertools.product(chosen.runs, chosen.types):
        kernel = run.split()[0]
        if dtype == "float64" and kernel != "aten":
            continue
        command = [sys.executable, sys.argv[0], "--measure", "--rounds", str(chosen.rounds), "--types", dtype]
        environment = os.environ | RUNS[run] | {loader.VARIABLE: kernel}
        shown = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        where, ratios = json.loads(shown.stdout.splitlines()[-1])
        where["beside"] = chosen.beside
        known.setdefault(run, {})[dtype] = {"setting": where, "ratios": ratios}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    TABLE.write_text(table(known))
    print(TABLE.read_text())


def measured(dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """{"tokens grid width what": dense time / ours}."""
    ratios: dict[str, float] = {}
    for tokens, grids in GRIDS.items():
        for grid, width in itertools.product(grids, WIDTHS):
            for what, ratio in compared(grid, width, dtype, rounds).items():
                ratios[f"{tokens} {'x'.join(map(str, grid))} {width} {what}"] = round(ratio, 2)
        print(dtype, ratios, file=sys.stderr, flush=True)
        if break_even(ratios) not in (None, tokens):
            break
    return ratios


def compared(grid: tuple[int, int, int], width: int, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    source, video = torch.Generator().manual_seed(0), grid[0] * grid[1] * grid[2]
    q, k, v, grad = (
        torch.randn(1, video, HEADS, width, generator=source).to(dtype).transpose(1, 2) for _ in range(4)
    )

    def ours(*inputs: Tensor) -> Tensor:
        return attention(*inputs, grid=grid)

    def trained(run: Callable[..., Tensor]) -> None:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        torch.autograd.grad(run(*leaves), leaves, grad)

    def ratio(run: Callable[[Callable[..., Tensor]], object]) -> float:
        both: list[float] = []
        for _ in range(rounds + 1):
            times = []
            for function in (F.scaled_dot_product_attention, ours):
                start = time.process_time()
                run(function)
                times.append(time.process_time() - start)
            both.append(times[0] / times[1])
        return statistics.median(both[1:])  # the first round warms up

    with torch.no_grad():
        forward = ratio(lambda run: run(q, k, v))
    return {"forward": forward, "training": ratio(trained)}


def break_even(ratios: dict[str, float]) -> int | None:
    """The least number of tokens from which on every ratio is won; None if there is none."""
    least = None
    for tokens in sorted({int(name.split()[0]) for name in ratios}, reverse=True):
        if any(ratio < MARGIN for name, ratio in ratios.items() if int(name.split()[0]) == tokens):
            break
        least = tokens
    return least


def table(known: dict[str, dict[str, Any]]) -> str:
    """The source of the table. A kernel that was run under several instruction sets has its worst."""
    worst: dict[str, dict[str, float]] = {}
    for run, kinds in known.items():
        line = worst.setdefault(run.split()[0], {})
        for dtype, found in kinds.items():
            least = break_even(found["ratios"])
            line[dtype] = max(line.get(dtype, 0), math.inf if least is None else least)
    lines = []
    for kernel, line in worst.items():
        of_types = ", ".join(
            f"torch.{dtype}: {None if least == math.inf else least}" for dtype, least in line.items()
        )
        lines.append(f'    "{kernel}": {{{of_types}}},')
    body = "\n".join(lines)
    return f'''"""Written by benchmarks/break_even.py, which says how it was measured.

Video tokens from which on a kernel of the CPU beats dense attention; None: at no size that was tried.
"""

import torch

CPU: dict[str, dict[torch.dtype, int | None]] = {{
{body}
}}
'''


if __name__ == "__main__":
    main()
