"""BSA (arXiv 2509.01085) on CPU: how much it keeps, how many FLOPs that saves, and how fast it is.

    python benchmarks/bsa.py [--quick] [--json PATH]

Kept: the share of key tiles above the threshold, against the target, on flat and on peaked scores; and the
share of rows whose list was full. FLOPs: counted from the lists of one call, at the paper's two settings.
Speed: sparse and dense runs alternate in one process, so that other load on the machine falls on both. The
ratio is that of the medians; beside it that of the fastest runs, which other load distorts least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from attention_cpu import RESULTS
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import vsa_compile
from vsa_compile.grid import Grid, TileGrid
from vsa_compile.methods import GaussQuantile, Queries, Site
from vsa_compile.tools.bench.setting import setting

HEADS, WIDTH, TILE = 12, 64, (4, 4, 4)
# The paper's sequences: 23K tokens of latent 16x28x52, 153K of 32x60x80.
PAPER = {
    "23K, sparsity 0.93": (Grid(16, 28, 52), 0.93, 14.4),
    "153K, sparsity 0.95": (Grid(32, 60, 80), 0.95, 20.0),
}


def scores_of(kind: str, tiles: int, generator: torch.Generator) -> Tensor:
    """(1, 4, 256, tiles) logits: Gaussian; with a few high tiles; or half of the tiles low."""
    flat = torch.randn(1, 4, 256, tiles, generator=generator)
    share, height = {"flat": (0, 0), "5 % peaks": (0.05, 4), "10 % peaks": (0.1, 4), "half low": (0.5, -3)}[
        kind
    ]
    flat[..., : int(share * tiles)] += height
    return flat


def kept() -> list[dict]:
    """What the threshold keeps of each kind of scores, and how often 1.5 times the target is too few."""
    rows = []
    for tiles, target in ((364, 0.14), (2400, 0.10)):
        boxes = TileGrid(Grid(4, 4, 4 * tiles), TILE)
        known = Queries(torch.empty(0), Site(boxes, 0, 0, None, 1.0, round(1 - target, 2)), boxes)
        for kind in ("flat", "5 % peaks", "10 % peaks", "half low"):
            scores = scores_of(kind, tiles, torch.Generator().manual_seed(0))
            rule = GaussQuantile()
            above = rule.mask(scores, known).float().mean(-1)
            counts = rule.lists(scores, known)[1]
            rows.append({
                "tiles": tiles, "scores": kind, "target": target, "kept_mean": float(above.mean()),
                "kept_least": float(above.min()), "kept_most": float(above.max()),
                "listed_mean": float(counts.float().mean() / tiles),
                "rows_full": float((counts == rule.width(known)).float().mean()),
            })  # fmt: skip
            print("kept", rows[-1], flush=True)
    return rows


def inputs(grid: Grid, heads: int, peaked: bool) -> list[Tensor]:
    """q, k, v as models make them; peaked: neighbours are alike, so that tiles have something to say."""
    torch.manual_seed(0)

    def normal() -> Tensor:
        x = torch.randn(1, grid.tokens, heads, WIDTH)
        if peaked:
            coarse = torch.randn(heads * WIDTH, 1, *(max(1, n // 8) for n in grid))
            smooth = F.interpolate(coarse, size=tuple(grid), mode="trilinear").reshape(heads, WIDTH, -1)
            x = x + 2 * smooth.permute(2, 0, 1)[None]
        return x.transpose(1, 2)

    return [normal() for _ in range(3)]


def flops(quick: bool) -> list[dict]:
    rows = []
    for name, (grid, sparsity, wanted) in PAPER.items():
        if quick and grid.tokens > 50_000:
            continue
        for peaked in (False, True):
            q, k, v = inputs(grid, 1, peaked)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                vsa_compile.attention(q, k, v, grid=grid, sparsity=sparsity, tile=TILE, method="bsa")
            by_op = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
            dense = 4 * WIDTH * grid.tokens**2
            rows.append({
                "setting": name, "scores": "peaked" if peaked else "flat", "paper_ratio": wanted,
                "attend_ratio": dense / by_op["vsa_compile.attend"],
                "all_counted_ratio": dense / sum(by_op.values()),
            })  # fmt: skip
            print("flops", rows[-1], flush=True)
    return rows


def seconds(attention, tensors: list[Tensor], grad: Tensor) -> tuple[float, float]:
    """(forward alone, forward and backward)."""
    start = time.perf_counter()
    with torch.no_grad():
        attention(*tensors)
    middle = time.perf_counter()
    leaves = [x.detach().requires_grad_() for x in tensors]
    torch.autograd.grad(attention(*leaves), leaves, grad)
    return middle - start, time.perf_counter() - middle


def speed(quick: bool, repeats: int) -> list[dict]:
    grid, sparsity, rows = Grid(8, 32, 16) if quick else Grid(16, 32, 32), 0.93, []

    def by(method: str):
        where = {"grid": grid, "sparsity": sparsity, "tile": TILE, "method": method}
        return lambda q, k, v: vsa_compile.attention(q, k, v, **where)

    kinds = {"bsa": by("bsa"), "vsa": by("vsa"), "dense": F.scaled_dot_product_attention}
    kinds["bsa compiled"] = torch.compile(by("bsa"))
    for peaked in (False, True):
        tensors = inputs(grid, HEADS, peaked)
        grad = torch.randn_like(tensors[0])
        for kind in ("bsa", "vsa", "bsa compiled"):
            seconds(kinds[kind], tensors, grad)  # kernels are built on first use
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for _ in range(repeats):
            for kind, attention in kinds.items():
                times[kind] += [seconds(attention, tensors, grad) for _ in range(1 if kind == "dense" else 3)]
        middle, fastest = (
            {kind: [pick(part) for part in zip(*t, strict=True)] for kind, t in times.items()}
            for pick in (statistics.median, min)
        )
        for kind in kinds:
            rows.append({
                "scores": "peaked" if peaked else "flat", "method": kind, "tokens": grid.tokens,
                "sparsity": sparsity, "forward_ms": 1e3 * middle[kind][0], "both_ms": 1e3 * middle[kind][1],
                "forward_speedup": middle["dense"][0] / middle[kind][0],
                "both_speedup": middle["dense"][1] / middle[kind][1],
                "forward_speedup_of_fastest": fastest["dense"][0] / fastest[kind][0],
                "both_speedup_of_fastest": fastest["dense"][1] / fastest[kind][1],
            })  # fmt: skip
            print("speed", rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS / "bsa_cpu.json")
    options = parser.parse_args()
    parts = {
        "kept": kept(),
        "flops": flops(options.quick),
        "speed": speed(options.quick, 1 if options.quick else options.repeats),
    }
    facts = (
        setting()
        | {"load": os.getloadavg()}
        | {"shapes": {"batch": 1, "heads": HEADS, "width": WIDTH, "tile": TILE, "dtype": "float32"}}
    )
    options.json.write_text(json.dumps(facts | {"repeats": options.repeats} | parts, indent=2) + "\n")
    print(f"wrote {options.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
