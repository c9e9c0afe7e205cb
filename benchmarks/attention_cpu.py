"""The whole sparse attention operator against dense SDPA on CPU: pooling, scores, selection, attention.

    python benchmarks/attention_cpu.py [--quick] [--json PATH]

Sparse and dense runs alternate in one process, and the ratio is that of the medians, so that other load
on the machine falls on both. q, k and v are the (B, H, N, D) views of (B, N, H, D) that models make.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from vsa_compile.grid import Grid
from vsa_compile.tools.bench.setting import setting

HEADS, SPARSITY, TILE = 12, 0.875, (4, 4, 4)
GRIDS = {"8192": Grid(16, 16, 32), "16384": Grid(32, 16, 32), "ragged 16380": Grid(21, 30, 26)}
SHAPES = {"batch": 1, "heads": HEADS, "tile": TILE, "sparsity": SPARSITY, "grids": GRIDS}
RESULTS = Path(__file__).parent / "results"


def sparse(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: Grid) -> torch.Tensor:
    return torch.ops.vsa_compile.attention(q, k, v, None, grid, TILE, 0, 0, None, None, SPARSITY, "vsa")


def seconds(attention: Callable, inputs: list[torch.Tensor], grad: torch.Tensor) -> tuple[float, float]:
    """(forward, backward) of one run."""
    start = time.perf_counter()
    out = attention(*inputs)
    middle = time.perf_counter()
    torch.autograd.grad(out, inputs, grad)
    return middle - start, time.perf_counter() - middle


def measure(grid: Grid, width: int, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Medians of interleaved runs, in milliseconds."""
    torch.manual_seed(0)

    def normal() -> torch.Tensor:
        return torch.randn(1, grid.tokens, HEADS, width).to(dtype).transpose(1, 2)

    inputs, grad = [normal().requires_grad_() for _ in range(3)], normal()
    kinds = {"sparse": lambda q, k, v: sparse(q, k, v, grid), "dense": F.scaled_dot_product_attention}
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for repeat in range(repeats + 1):
        for kind, attention in kinds.items():
            if repeat == 0 and kind == "dense":
                continue  # the kernel is built on first use; SDPA has nothing to build
            times[kind].append(seconds(attention, inputs, grad))
    result = {}
    for kind, pairs in times.items():
        pairs = pairs[-repeats:]
        result[f"{kind}_forward_ms"] = 1e3 * statistics.median(forward for forward, _ in pairs)
        result[f"{kind}_both_ms"] = 1e3 * statistics.median(sum(pair) for pair in pairs)
    for part in ("forward", "both"):
        result[f"{part}_speedup"] = result[f"dense_{part}_ms"] / result[f"sparse_{part}_ms"]
    return result


def table_line(row: dict) -> str:
    both = {
        kind: f"{row[f'{kind}_forward_ms']:.0f} / {row[f'{kind}_both_ms']:.0f}"
        for kind in ("sparse", "dense")
    }
    return (
        f"| {row['dtype']} | {row['width']} | {row['tokens']} | {row['forward_speedup']:.1f}x "
        f"| {row['both_speedup']:.1f}x | {both['sparse']} | {both['dense']} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the smallest grid, one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS / "attention_cpu.json")
    options = parser.parse_args()
    grids = {"8192": GRIDS["8192"]} if options.quick else GRIDS
    repeats = 1 if options.quick else options.repeats

    todo = [
        (dtype, width, name)
        for name in grids
        for dtype in (torch.float32, torch.bfloat16)
        for width in (64, 128)
    ]
    rows = []
    print("| dtype | D | N | forward | forward + backward | sparse ms | dense ms |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for done, (dtype, width, name) in enumerate(todo):
        print(f"... {done + 1} of {len(todo)}", end="\r", file=sys.stderr, flush=True)
        row = measure(grids[name], width, dtype, repeats)
        rows.append({"dtype": str(dtype).removeprefix("torch."), "width": width, "tokens": name, **row})
        print(table_line(rows[-1]), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps({**setting(), "shapes": SHAPES, "repeats": repeats, "rows": rows}, indent=2) + "\n"
    )
    print(f"wrote {options.json}")


if __name__ == "__main__":
    main()
