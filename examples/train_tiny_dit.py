"""A small video transformer learns to make moving scenes: dense, with VSA, with BSA, and annealed.

    python examples/train_tiny_dit.py            # every setup, 3 seeds: ten minutes on 2 CPU cores
    python examples/train_tiny_dit.py --quick    # a toy of it: a minute or two, nearly all of it compilation

The model (examples/tiny_dit.py) is plain PyTorch. What makes it sparse is `torch.compile(model,
backend="vsa", options=...)`, with `add_gates` for VSA's coarse branch and a SparsitySchedule to anneal.
All setups start from the same weights and see the same clips, noise and times. Two processes of one thread
each share the setups; each setup is compiled once for all its seeds.
FLOPs are counted: of the graph that the backend has rewritten, run as it is under torch's FLOP counter.
Writes train_tiny_dit.json, .png, .gif and training.md; docs/training.md shows the committed run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from flop_count import FlopCount
from tiny_dit import Grid, TinyDiT, scenes
from torch import Tensor

import vsa_compile
from vsa_compile import SparsitySchedule
from vsa_compile.tools.bench.setting import setting

ROOT = Path(__file__).parent.parent
SPARSITY = 0.875
Batch = tuple[Tensor, Tensor, Tensor]  # noisy clips, times, velocities


@dataclass(frozen=True)
class Size:
    """How much of it: token grid, model, steps. `evaluations` are spread evenly over the steps."""

    grid: Grid = (7, 11, 13)
    tile: Grid = (4, 4, 4)
    width: int = 64
    heads: int = 2
    layers: int = 2
    batch: int = 4
    steps: int = 300
    evaluations: int = 12
    validation_batches: int = 6
    learning_rate: float = 3e-3
    averaging: float = 0.95  # share of the old average of the weights; the average is what is evaluated


TOY = {"grid": (3, 5, 6), "tile": (2, 2, 2), "width": 32, "layers": 1, "batch": 2}
QUICK = Size(**TOY, steps=24, evaluations=4, validation_batches=2, averaging=0.8)


@dataclass(frozen=True)
class Setup:
    """What differs between the runs. `anneal`: dense at first, then down by stairs."""

    title: str
    options: dict[str, Any] = field(default_factory=dict)
    gates: bool = False
    anneal: bool = False


SETUPS = {  # the slowest first, so that two processes end together
    "dense": Setup("dense", {"sparsity": 0.0}),
    "annealed": Setup("dense, then annealed to VSA", gates=True, anneal=True),
    "bsa": Setup("BSA", {"method": "bsa"}),
    "vsa": Setup("VSA", gates=True),
    "vsa_no_coarse": Setup("VSA without the coarse branch"),
}


def stairs(steps: int) -> SparsitySchedule:
    """Dense for two fifths of the steps, then an eighth sparser at a time, at 0.875 after seven tenths."""
    return SparsitySchedule.stairs(SPARSITY, by=0.125, hold=2 * steps // 5, every=max(1, steps // 24))


def flow_batch(size: Size, seed: int, step: int) -> Batch:
    """Rectified flow: points between clips and noise, and the velocity there; times are stratified."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    clips = scenes(size.batch, size.grid, generator)
    noise = torch.randn(clips.shape, generator=generator)
    times = (torch.arange(size.batch) + torch.rand(size.batch, generator=generator)) / size.batch
    return clips.lerp(noise, times[:, None, None, None, None]), times, noise - clips


@dataclass
class Trainer:
    """One setup: its model, compiled once; every seed starts it anew."""

    name: str
    size: Size

    def __post_init__(self) -> None:
        torch.compiler.reset()
        self.setup, size = SETUPS[self.name], self.size
        self.model = self.fresh(seed=0)
        self.options = {"min_tokens": 0, "tile": size.tile, "sparsity": SPARSITY} | self.setup.options
        self.schedule = stairs(size.steps) if self.setup.anneal else None
        if self.schedule is not None:
            self.options["sparsity"] = self.schedule
        if self.setup.gates:
            noisy, times, _ = flow_batch(size, 0, 0)
            vsa_compile.add_gates(self.model, noisy, times, options=self.options)
        self.compiled = torch.compile(self.model, backend="vsa", options=self.options, dynamic=False)
        self.flops = FlopCount(self.model, self.options)
        # The same held-out clips, noise and times for all seeds of all setups.
        self.held_out = [flow_batch(size, 999, i) for i in range(size.validation_batches)]

    def fresh(self, seed: int) -> TinyDiT:
        size = self.size
        return TinyDiT(size.grid, size.width, size.heads, size.layers, seed)

    def loss(self, batch: Batch) -> Tensor:
        noisy, times, velocity = batch
        return F.mse_loss(self.compiled(noisy, times), velocity)

    def validate(self) -> float:
        """With gradients, though none is wanted: without them it would be a second graph to compile."""
        return sum(float(self.loss(batch).detach()) for batch in self.held_out) / len(self.held_out)

    def run(self, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
        """Train from the seed's weights: the curve with FLOPs so far, seconds, and a sampled clip."""
        started, cpu_started = time.perf_counter(), time.process_time()
        self.model.load_state_dict(self.fresh(seed).state_dict())  # gates, which it knows not, become zero
        if self.schedule is not None:
            self.schedule.load_state_dict({"step": 0})
        curve = list(self.course(seed, say))
        return {
            "setup": self.name,
            "seed": seed,
            "curve": curve,
            "gate_norm": sum(
                float(p.detach().norm()) for n, p in self.model.named_parameters() if "to_gate" in n
            ),
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu_started,
            "sample": self.sample() if seed == 0 else None,
        }

    def course(self, seed: int, say: Callable[[str], None]) -> Iterator[dict[str, float]]:
        """One entry for every evaluation, that before the first step included."""
        size, started = self.size, time.perf_counter()
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=size.learning_rate, weight_decay=0.01)
        every = math.gcd(size.steps, max(1, size.steps // size.evaluations))  # the last step is one
        spent, a_step, counted_at, losses = [0, 0], [0, 0], None, []
        weights = [parameter.data for parameter in self.model.parameters()]
        average = [weight.clone() for weight in weights]
        for step in range(size.steps + 1):
            sparsity = self.schedule.sparsity if self.schedule else self.options["sparsity"]
            batch = flow_batch(size, seed + 1, step)
            if step % every == 0 or sparsity != counted_at:  # BSA's lists change with the weights
                a_step, counted_at = self.flops(*batch), sparsity
            if step % every == 0:
                entry = {"step": step, "sparsity": sparsity, "flops": spent[1], "attention_flops": spent[0]}
                swap(weights, average)
                entry["validation_loss"] = self.validate()
                entry["training_loss"] = sum(losses) / len(losses) if losses else None
                losses = []
                say(progress(self.setup.title, seed, entry, size.steps, time.perf_counter() - started))
                yield entry
                if step == size.steps:
                    return  # with the average in the model
                swap(weights, average)
            for group in optimizer.param_groups:  # warmed up over 20 steps, then constant
                group["lr"] = size.learning_rate * min(1, (step + 1) / 20)
            optimizer.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            if self.schedule is not None:
                self.schedule.step()
            for mean, weight in zip(average, weights, strict=True):
                mean.lerp_(weight, 1 - size.averaging)
            losses.append(float(loss.detach()))
            spent = [now + more for now, more in zip(spent, a_step, strict=True)]

    def sample(self, steps: int = 40) -> Tensor:
        """Noise to a clip along the learnt velocities, by Euler's rule: (3, frames, rows, cols)."""
        clips = torch.randn(flow_batch(self.size, 0, 0)[0].shape, generator=torch.Generator().manual_seed(7))
        for i in range(steps, 0, -1):
            times = torch.full((len(clips),), i / steps)
            clips = clips - self.compiled(clips, times).detach() / steps
        return clips[0]


def swap(these: list[Tensor], those: list[Tensor]) -> None:
    for one, other in zip(these, those, strict=True):
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


def progress(title: str, seed: int, entry: dict[str, float], steps: int, seconds: float) -> str:
    step = int(entry["step"])
    training = f"{entry['training_loss']:6.4f}" if step else "      "
    left = f"{seconds / step * (steps - step):4.0f} s left" if step else ""
    return (
        f"{title:30s} seed {seed}  step {step:4d}/{steps}  sparsity {entry['sparsity']:5.3f}  "
        f"loss {training}  held out {entry['validation_loss']:6.4f}  {left}".rstrip()
    )


def train_setup(name: str, size: Size, seeds: int, threads: int, started: float) -> list[dict[str, Any]]:
    """All seeds of one setup, in this process. `started` is a time.time()."""
    torch.set_num_threads(threads)
    trainer = Trainer(name, size)
    return [
        trainer.run(seed, lambda line: print(f"[{time.time() - started:4.0f} s] {line}", flush=True))
        for seed in range(seeds)
    ]


def train_all(
    names: list[str], size: Size, seeds: int, jobs: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Every run and the facts about them, as they go into the JSON; and a clip of every setup, by title."""
    started, load = time.time(), os.getloadavg()
    threads = max(1, torch.get_num_threads() // jobs)
    model = TinyDiT(size.grid, size.width, size.heads, size.layers)
    each = [(name, size, seeds, threads, started) for name in names]
    if jobs == 1:
        runs = [train_setup(*one) for one in each]
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            runs = [future.result() for future in [pool.submit(train_setup, *one) for one in each]]
    runs = [run for several in runs for run in several]
    samples = [(run["setup"], run.pop("sample")) for run in runs]
    facts = {
        "processes": jobs,
        "threads_each": threads,
        "load_before": load,
        "load_after": os.getloadavg(),
        "seconds": time.time() - started,
        "cpu_seconds": sum(os.times()[:4]),  # of this process and of those that it has waited for
        "size": asdict(size),
        "sparsity": SPARSITY,
        "seeds": seeds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "titles": {name: SETUPS[name].title for name in names},
        "runs": runs,
    }
    clips = {"rendered": scenes(1, size.grid, torch.Generator().manual_seed(5))[0]}
    clips |= {SETUPS[name].title: sample for name, sample in samples if sample is not None}
    return setting() | facts, clips


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a tiny video DiT dense and sparse, and compare.")
    parser.add_argument("--steps", type=int, help=f"of every run; {Size.steps} unless told")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--runs", nargs="+", choices=SETUPS, default=list(SETUPS), metavar="RUN",
                        help=f"some of: {', '.join(SETUPS)}")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a toy model, one seed, 24 steps")
    parser.add_argument("--jobs", type=int, default=2, help="processes; they share the threads")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder to write to")
    parser.add_argument("--publish", action="store_true", help="write to benchmarks/results and docs instead")
    parser.add_argument("--page", action="store_true", help="train nothing; docs/ from the published JSON")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    places = (ROOT / "benchmarks" / "results", ROOT / "docs")
    if not (given.publish or given.page):
        places = (given.out, given.out)
    for folder in places:
        folder.mkdir(parents=True, exist_ok=True)
    path = places[0] / "train_tiny_dit.json"
    if not given.page:
        size = QUICK if given.quick else Size()
        size = Size(**asdict(size) | ({"steps": given.steps} if given.steps else {}))
        results, clips = train_all(given.runs, size, 1 if given.quick else given.seeds, given.jobs)
        path.write_text(json.dumps(results) + "\n")
    from training_page import write_gif, write_page  # matplotlib and pillow: the workers need neither

    if not given.page:
        write_gif(clips, places[1] / "train_tiny_dit.gif")
    print(write_page(json.loads(path.read_text()), places[1]))


if __name__ == "__main__":
    main()
