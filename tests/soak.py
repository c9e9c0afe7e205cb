"""Threads that use prepared models at once: every result is what it gives alone, or the documented error.

    python tests/soak.py --seconds 300

Each of four threads picks one of two prepared models and one of six grids (in two groups of equal numbers of
tokens), and enters and leaves contexts at random, in any order. What a call may give is known beforehand:
the sparse result of its own grid; where somebody is within dense(), or enters it meanwhile, that with dense
blocks.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import torch
from compare import relative_error
from torch import Tensor, nn
from toy import Habits, ToyDiT, inputs

import vsa_compile
from vsa_compile.runtime.calls import running
from vsa_compile.runtime.state import now

Grid = tuple[int, int, int]
GRIDS: list[Grid] = [(3, 6, 10), (3, 10, 6), (6, 3, 10), (5, 4, 8), (5, 8, 4), (4, 5, 8)]
HABITS = Habits(blocks=2)
BOUND = 1e-5
OPTIONS = {"min_tokens": 0, "sparsity": 0.5}


def as_it_is(module: torch.fx.GraphModule, example_inputs: list) -> object:
    """Converts, and runs the converted graph without Inductor."""
    vsa_compile.backend.convert(module, vsa_compile.Options.read(OPTIONS))
    return module.forward


def prepared(seed: int, sparse: tuple[int, ...] = (0, 1)) -> nn.Module:
    """A model of which these blocks are compiled, and so sparse."""
    model = vsa_compile.prepare(ToyDiT(HABITS, seed=seed))
    for index in sparse:
        model.blocks[index].compile(backend=as_it_is)
    return model


class Soak:
    """The models, what their calls give alone, and what happened."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.counting = threading.Lock()
        self.inside = 0  # contexts that somebody is in, or about to enter or to leave
        self.changes = 0  # of that number
        self.models = [prepared(seed) for seed in range(2)]
        self.alone: dict[tuple[int, Grid], list[Tensor]] = {}  # the first one is sparse throughout
        for seed in range(2):
            twins = [prepared(seed, sparse) for sparse in ((0, 1), (0,), (1,), ())]
            for grid in GRIDS:
                self.alone[seed, grid] = [self.run(twin, grid) for twin in twins]

    def run(self, model: nn.Module, grid: Grid) -> Tensor:
        with torch.no_grad():
            return model(*inputs(HABITS, grid))

    def work(self, seed: int, until: float, least: int) -> None:
        """What one thread does: at least so many calls, and more until the time is up."""
        draw, entered, calls = random.Random(seed), [], itertools.count(1)
        with torch._dynamo.config.patch(recompile_limit=64):  # settings are a thread's own
            while next(calls) <= least or time.monotonic() < until:
                self.move(draw, entered)
                self.check(draw.randrange(2), draw.choice(GRIDS))
        while entered:
            self.leave(entered.pop(draw.randrange(len(entered))))

    def move(self, draw: random.Random, entered: list[tuple[str, AbstractContextManager]]) -> None:
        """Enter a context, or leave any that was entered."""
        if len(entered) > 2 or (entered and draw.random() < 0.7):
            self.leave(entered.pop(draw.randrange(len(entered))))
            return
        kind = draw.choices(["dense", "video_grid", "denoising"], (1, 3, 1))[0]  # dense() is everybody's
        context = {
            "dense": vsa_compile.dense,
            "video_grid": lambda: vsa_compile.video_grid(7, 7, 7 + draw.randrange(2)),  # of no call here
            "denoising": lambda: vsa_compile.denoising(1, dense_steps=draw.randrange(2)),
        }[kind]()
        self.count(+1)  # a call that runs meanwhile may see it or not
        try:
            context.__enter__()
        except vsa_compile.StateError:  # the documented error
            self.seen[f"{kind} refused"] += 1
            self.count(-1)
            return
        self.seen[kind] += 1
        entered.append((kind, context))

    def leave(self, one: tuple[str, AbstractContextManager]) -> None:
        one[1].__exit__(*sys.exc_info())
        self.count(-1)

    def count(self, by: int) -> None:
        with self.counting:
            self.inside, self.changes = self.inside + by, self.changes + 1

    def check(self, model: int, grid: Grid) -> None:
        before = self.inside, self.changes
        out = self.run(self.models[model], grid)
        quiet = before == (0, self.changes)  # nobody was in any context meanwhile
        errors = [relative_error(out, one) for one in self.alone[model, grid]]
        if errors[0] <= BOUND:
            self.seen["sparse"] += 1
        elif min(errors) <= BOUND and not quiet:
            self.seen["dense"] += 1
        else:
            self.wrong.append(
                f"model {model} at {grid}: {[f'{error:.1e}' for error in errors]} from what it may"
            )


def soak(seconds: float, threads: int = 4, least: int = 0) -> Soak:
    """Raises AssertionError for a wrong result, or for state that is left behind."""
    found = Soak()
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(found.work, seed, until, least) for seed in range(threads)]:
            done.result()
        left = [pool.submit(lambda: (now.dense, now.hint, running.now)).result() for _ in range(threads)]
    assert not found.wrong, found.wrong
    assert left == [(False, None, None)] * threads, left
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    print(dict(soak(parser.parse_args().seconds).seen))


if __name__ == "__main__":
    main()
