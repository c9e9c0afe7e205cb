"""How much the demo does: what this machine manages in about a minute, told from a few matrix products."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

Grid = tuple[int, int, int]  # (frames, rows, cols) in tokens

# Wan's 480x832 at the lengths people make, largest first; the last is for machines that can do none of them.
GRIDS: dict[str, Grid] = {
    "480p81": (21, 30, 52),
    "480p49": (13, 30, 52),
    "480p33": (9, 30, 52),
    "480p17": (5, 30, 52),
    "240p17": (5, 15, 26),
}
RACE_SECONDS = 65.0  # planned for; compilation takes longer than that, and is the same at all sizes
MOST_ROUNDS = 3
EFFICIENCY = 0.8  # of a whole forward pass, beside that of one product of matrices
SPARSE_WORK = 0.5  # of dense attention's: planned for; a machine without the C++ kernel is this slow


@dataclass(frozen=True)
class Speed:
    """FLOP/s of a product of matrices, on all threads."""

    fp32: float
    bf16: float


@dataclass(frozen=True)
class Layers:
    """What a forward pass costs: weights, at 2 FLOPs a token each, and attention of heads x head width."""

    weights: int
    width: int
    layers: int

    def flops(self, tokens: int, attention: float = 1.0) -> float:
        """Of one pass, with this share of dense attention."""
        return 2.0 * self.weights * tokens + attention * 4.0 * self.layers * self.width * tokens**2


@dataclass(frozen=True)
class Plan:
    """What is run, and how long the passes should take. rounds: of dense and sparse passes in turn."""

    name: str
    grid: Grid
    dtype: torch.dtype
    rounds: int
    seconds: float


def measure(seconds: float = 0.03, n: int = 384) -> Speed:
    """Best of what fits into `seconds` for each type, after one product that sets things up."""

    def rate(dtype: torch.dtype) -> float:
        a, b = torch.ones(n, n, dtype=dtype), torch.ones(n, n, dtype=dtype)
        a @ b
        best, now = math.inf, time.perf_counter()
        end = now + seconds
        while best == math.inf or now < end:
            a @ b
            before, now = now, time.perf_counter()
            best = min(best, now - before)
        return 2 * n**3 / best

    return Speed(rate(torch.float32), rate(torch.bfloat16))


def choose(speed: Speed, model: Layers, wanted: str | None = None) -> Plan:
    """The largest grid of which one round fits into RACE_SECONDS, and as many rounds as fit; `wanted` picks
    the grid, whatever it takes.

    bf16 where the machine has it. Where it is emulated fp32 is faster, up to fifty times.
    """
    dtype = torch.bfloat16 if speed.bf16 > speed.fp32 else torch.float32
    rate = EFFICIENCY * max(speed.bf16, speed.fp32)

    def seconds(grid: Grid, rounds: int) -> float:
        """One more sparse pass finds out what the model would be without self-attention."""
        tokens = math.prod(grid)
        dense, sparse = model.flops(tokens), model.flops(tokens, SPARSE_WORK)
        return (rounds * (dense + sparse) + sparse) / rate

    fitting = [name for name, grid in GRIDS.items() if seconds(grid, 1) <= RACE_SECONDS]
    name = wanted or next(iter(fitting), list(GRIDS)[-1])
    grid = GRIDS[name]
    rounds = max([1, *(r for r in range(1, MOST_ROUNDS + 1) if seconds(grid, r) <= RACE_SECONDS)])
    return Plan(name, grid, dtype, rounds, seconds(grid, rounds))
