"""The plot: TFLOP/s over FLOPs per byte that must be moved, below the maximum of the device.

Needs matplotlib, which is imported only here.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .clock import Clock, Task
from .plan import Plan
from .results import Row

_SIZES = {"cuda": (8192, 1 << 30), "cpu": (1024, 64 << 20)}  # rows of a matrix, bytes of a copy
_MARKS = {"forward": "o", "backward": "s"}


def measure_roofs(clock: Clock, plan: Plan) -> dict[str, float]:
    """TFLOP/s of a matrix product of random numbers, and TB/s of a copy (read and written), from the fastest
    sample: a roof is the maximum of the device, and other load only lowers a sample."""
    size, copied = _SIZES[plan.device.type]
    a, b = (torch.randn(size, size, device=plan.device, dtype=plan.dtype) for _ in range(2))
    source = torch.randn(copied // 4, device=plan.device)
    target = torch.empty_like(source)
    tasks = {"matmul": Task(lambda _: a @ b), "copy": Task(lambda _: target.copy_(source))}
    for task in tasks.values():
        clock.warm_up(task)
    taken = clock.measure(tasks, plan.repeats)
    return {
        "matmul_tflops": 2 * size**3 / taken["matmul"].min_ms / 1e9,
        "copy_tb_per_s": 2 * copied / taken["copy"].min_ms / 1e9,
    }


def draw(path: Path, device: str, roofs: dict[str, float], rows: list[Row]) -> bool:
    """Draw forward and backward of all contenders as points; False if no row can be drawn.

    Raises ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    points = [row for row in rows if row["least_bytes"]]
    if not points:
        return False
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["contender"] for row in points))
    for row in points:
        axes.scatter(
            row["flops"] / row["least_bytes"], row["tflops"], marker=_MARKS[row["part"]],
            color=f"C{names.index(row['contender'])}", alpha=0.7,
        )  # fmt: skip
    for number, name in enumerate(names):
        axes.scatter([], [], color=f"C{number}", label=name)
    for part, mark in _MARKS.items():
        axes.scatter([], [], color="grey", marker=mark, label=part)
    top, slope = roofs["matmul_tflops"], roofs["copy_tb_per_s"]
    intensities = [row["flops"] / row["least_bytes"] for row in points]
    ends = [min(*intensities, top / slope) / 2, top / slope, 2 * max(*intensities, top / slope)]
    axes.plot(ends, [min(top, slope * x) for x in ends], color="black", label="matrix product, copy")
    axes.set(
        xscale="log", yscale="log", xlabel="FLOPs for each byte of q, k, v, out and their gradients",
        ylabel="TFLOP/s of attended pairs", title=device,
    )  # fmt: skip
    axes.legend()
    figure.savefig(path, dpi=120)
    return True
