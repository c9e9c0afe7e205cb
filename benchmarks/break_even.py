"""From how many video tokens on a kernel beats dense attention: writes vsa_compile/ops/break_even_table.py.

    python benchmarks/break_even.py                   every kernel that this machine runs
    python benchmarks/break_even.py aten avx2         these alone; the others' lines stay

The whole operation at the default sparsity 0.875, eager, against F.scaled_dot_product_attention in the same
process, one after the other, the median of several rounds; in processor time of one thread, so that what else
runs on the machine counts little; on grids of whole and of ragged tiles, widths 64
and 128, forward alone and with the backward. A size counts as won where every one of these is at least 1.1
times as fast; the break-even is the first of two sizes in a row that are won, and larger ones are not tried.
A kernel for a lesser instruction set is measured against a torch that is held to that set too. Every ratio
goes to results/break_even.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

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
    8192: ((8, 32, 32), (9, 30, 34)),
}
HEADS, WIDTHS = 4, (64, 128)
MARGIN = 1.1
# What torch may use while a kernel for a lesser instruction set is measured.
HELD = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "plain": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kernels", nargs="*", default=[*loader.variants(), "aten"])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    if chosen.measure:
        torch.set_num_threads(1)
        print(json.dumps(measured(chosen.rounds)))
        return
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"ratios": {}}
    for name in chosen.kernels:
        held = HELD.get(name, HELD["avx2"] if name == "aten" else {})
        command = [sys.executable, __file__, "--measure", "--rounds", str(chosen.rounds)]
        environment = os.environ | held | {loader.VARIABLE: name}
        shown = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        known["ratios"][name] = json.loads(shown.stdout.splitlines()[-1])
        known["setting"] = setting(torch.device("cpu"))
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    TABLE.write_text(table(known["ratios"]))
    print(TABLE.read_text())


def measured(rounds: int) -> dict[str, dict[str, float]]:
    """{dtype: {"tokens grid width what": dense time / ours}}."""
    found: dict[str, dict[str, float]] = {}
    for dtype in ("float32", "bfloat16", "float16", *(("float64",) if loader.asked() is None else ())):
        ratios = found[dtype] = {}
        for tokens, grids in GRIDS.items():
            for grid, width in itertools.product(grids, WIDTHS):
                for what, ratio in compared(grid, width, getattr(torch, dtype), rounds).items():
                    ratios[f"{tokens} {'x'.join(map(str, grid))} {width} {what}"] = round(ratio, 2)
            print(dtype, ratios, file=sys.stderr, flush=True)
            if break_even(ratios) not in (None, tokens):
                break
    return found


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


def table(ratios: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = []
    for name, kinds in ratios.items():
        least = ", ".join(f"torch.{dtype}: {break_even(found)}" for dtype, found in kinds.items())
        lines.append(f'    "{name}": {{{least}}},')
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
