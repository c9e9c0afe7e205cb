"""Sparse attention against dense SDPA and FlexAttention on CPU, side by side.

    python benchmarks/attention_cpu.py [--as avx2|plain] [--quick] [--heads H] [--grids NAME,...]

whole: the operator, eager: pooling, scores, selection, attention. fine: attention over given random lists;
FlexAttention, compiled, gets the same lists, and tokens in tile order, which is not timed. All run in turn in
one process, and a ratio is that of the medians, so that other load falls on all. q, k and v are the
(B, H, N, D) views of (B, N, H, D) that models make. memory: the most that a call takes beside inputs and
results.

--as runs it in a process in which torch, oneDNN, MKL and our kernel know of no better instructions.
--processor-time counts the seconds of one thread that others cannot take: for a machine that is shared.
--memory measures memory alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from vsa_compile.grid import Grid
from vsa_compile.ops.cpu import loader
from vsa_compile.tools.bench import flex, ours
from vsa_compile.tools.bench.lists import Lists, make_lists
from vsa_compile.tools.bench.log import reason_of
from vsa_compile.tools.bench.plan import Plan
from vsa_compile.tools.bench.setting import setting
from vsa_compile.tools.bench.work import Work

SPARSITY, TILE = 0.875, (4, 4, 4)
GRIDS = {
    "8192": Grid(16, 16, 32), "ragged 9180": Grid(9, 30, 34),
    "16384": Grid(32, 16, 32), "ragged 16380": Grid(21, 30, 26), "32768": Grid(32, 32, 32),
}  # fmt: skip
RESULTS = Path(__file__).parent / "results"
AS = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "plain": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def whole(grid: Grid) -> Attention:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.ops.vsa_compile.attention(q, k, v, None, grid, TILE, 0, 0, None, None, SPARSITY, "vsa")

    return attend


def seconds(
    clock: Callable, attention: Attention, inputs: list[Tensor], grad: Tensor | None
) -> tuple[float, float]:
    """(forward, both) of one run."""
    start = clock()
    out = attention(*inputs)
    middle = clock()
    if grad is not None:
        torch.autograd.grad(out, inputs, grad)
    return middle - start, clock() - start


def contenders(
    work: Work, lists: Lists, with_flex: bool
) -> dict[str, tuple[Attention, list[Tensor], Tensor | None]]:
    """Of each: what runs, its inputs, and the gradient of its output, where the backward is timed too."""
    inputs = [x.detach().requires_grad_() for x in work.inputs]
    found: dict = {
        "dense": (F.scaled_dot_product_attention, inputs, work.grad),
        "whole": (whole(work.grid), inputs, work.grad),
        "fine": (ours.fine(work, lists), inputs, work.grad),
    }
    if with_flex:
        try:
            attend = flex.attention(work, lists, {})
            tiled = [flex.in_tiles(x, work) for x in work.inputs]
            attend(*tiled)
            found["flex"] = attend, tiled, None  # it has no backward on CPU
        except Exception as error:
            print(f"FlexAttention does not run: {reason_of(error)}", file=sys.stderr)
    return found


def measure(work: Work, repeats: int, clock: Callable, with_flex: bool) -> dict[str, float]:
    """Medians of interleaved runs, in milliseconds."""
    lists = make_lists("random", 1 - SPARSITY, work.boxes, work.plan.heads, work.plan.device)
    tasks = contenders(work, lists, with_flex)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for repeat in range(repeats + 1):
        for name, task in tasks.items():
            if repeat == 0 and name == "dense":
                continue  # our kernel is built on first use; SDPA has nothing to build
            times[name].append(seconds(clock, *task))
    result = {}
    for name, pairs in times.items():
        for i, part in enumerate(("forward", "both") if name != "flex" else ("forward",)):
            result[f"{name}_{part}_ms"] = 1e3 * statistics.median(pair[i] for pair in pairs[-repeats:])
    for part in ("forward", "both"):
        result[f"{part}_speedup"] = result[f"dense_{part}_ms"] / result[f"whole_{part}_ms"]
    if "flex" in tasks:
        result["fine_to_flex"] = result["flex_forward_ms"] / result["fine_forward_ms"]
    return result


def memory(work: Work) -> dict[str, float | None]:
    """MiB that the process grew by in a call, at most, without its results; None where that is unknown."""
    inputs = [x.detach().requires_grad_() for x in work.inputs]
    results = sum(x.numel() * x.element_size() for x in work.inputs)
    out, forward = peak_of(lambda: whole(work.grid)(*inputs))
    _, backward = peak_of(lambda: torch.autograd.grad(out, inputs, work.grad))
    sizes = {"forward": (forward, results // 3), "backward": (backward, results)}
    taken = {
        f"{name}_memory_mib": None if peak is None else (peak - own) / 2**20
        for name, (peak, own) in sizes.items()
    }
    return taken | {"inputs_mib": results / 2**20}


def peak_of(run: Callable) -> tuple:
    """What run() returns, and by how many bytes the process grew at most (Linux)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        result = run()
        return result, resident("VmHWM") - before
    except (OSError, AttributeError):
        return run(), None


def resident(name: str) -> int:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


HEADER = (
    "| dtype | D | N | forward | forward + backward | whole ms | dense ms | fine, flex ms | fine to flex |"
)


MEMORY = "| dtype | D | N | forward MiB | backward MiB | q, k and v MiB |"
MEMORY_ROWS = ("forward_memory_mib", "backward_memory_mib", "inputs_mib")


def memory_line(row: dict) -> str:
    taken = (f"{row[name]:.0f}" if row[name] is not None else "?" for name in MEMORY_ROWS)
    return f"| {row['dtype']} | {row['width']} | {row['tokens']} | {' | '.join(taken)} |"


def table_line(row: dict) -> str:
    both = {
        kind: f"{row[f'{kind}_forward_ms']:.0f} / {row[f'{kind}_both_ms']:.0f}" for kind in ("whole", "dense")
    }
    beside = f"{row['fine_forward_ms']:.0f}, {row.get('flex_forward_ms', float('nan')):.0f}"
    return (
        f"| {row['dtype']} | {row['width']} | {row['tokens']} | {row['forward_speedup']:.1f}x "
        f"| {row['both_speedup']:.1f}x | {both['whole']} | {both['dense']} "
        f"| {beside} | {row.get('fine_to_flex', float('nan')):.1f}x |"
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--as", dest="instructions", choices=AS, help="as a processor without better ones")
    parser.add_argument(
        "--quick", action="store_true", help="the smallest grid, one repeat, no FlexAttention"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument(
        "--grids", default="8192,ragged 9180,16384,ragged 16380", help=f"of {', '.join(GRIDS)}"
    )
    parser.add_argument("--memory", action="store_true", help="measure memory alone")
    parser.add_argument("--processor-time", action="store_true", help="of one thread")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def plan_of(options: argparse.Namespace, dtype: str) -> Plan:
    given: dict = dict.fromkeys(("shapes", "widths", "densities", "lists", "parts", "contenders", "repeats"))
    given |= {"device": "cpu", "quick": False, "autotune": False, "out": "."}
    return Plan.read(SimpleNamespace(**given, dtype=dtype, heads=options.heads))


def main() -> None:
    options = parsed()
    asked = options.instructions
    if asked and os.environ.get(loader.VARIABLE) != asked:
        environment = os.environ | AS[asked] | {loader.VARIABLE: asked}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment).returncode)
    clock = time.process_time if options.processor_time else time.perf_counter
    if options.processor_time:
        torch.set_num_threads(1)
    names = ["8192"] if options.quick else options.grids.split(",")
    repeats = 1 if options.quick else options.repeats
    variant = loader.asked() or "aten"
    before = setting()

    print(f"{before['device']}, kernel {variant}, {options.heads} heads, sparsity {SPARSITY}")
    print(MEMORY if options.memory else HEADER)
    print("|---" * (MEMORY if options.memory else HEADER).count(" | ") + "|---|")
    memory(Work.make(plan_of(options, "fp32"), Grid(4, 4, 8), 16))  # builds the kernel
    what = {
        "kernel": variant, "instructions": asked or "all", "heads": options.heads, "sparsity": SPARSITY,
        "tile": TILE, "clock": "processor time" if options.processor_time else "wall", "repeats": repeats,
    }  # fmt: skip
    path = options.json or RESULTS / f"attention_cpu_{variant}{'_memory' * options.memory}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        for dtype in ("fp32", "bf16"):
            for width in (64, 128):
                print(f"... {name} {dtype} {width}", end="\r", file=sys.stderr, flush=True)
                work = Work.make(plan_of(options, dtype), GRIDS[name], width)
                row = {"dtype": dtype, "width": width, "tokens": name, **memory(work)}
                if not options.memory:
                    row |= measure(work, repeats, clock, not options.quick)
                rows.append(row)
                print(memory_line(row) if options.memory else table_line(row), flush=True)
                # After each row: who stops it keeps what was measured.
                path.write_text(json.dumps({**before, **what, "grids": GRIDS, "rows": rows}, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
