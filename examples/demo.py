"""A Wan transformer as wide as Wan2.1-1.3B, made sparse on this machine's CPU: `make demo`.

The model is diffusers' own, unmodified: 12 heads of width 128, 1 of its 30 layers, random weights. It looks
at a real video under noise (demo_clip.py), as long as this machine manages in about a minute (demo_size.py).
Wan's usual 81 frames of 480x832 are 21x30x52 = 32,760 tokens, which tiles of 4x4x4 tokens do not divide. It
shows, in this order:

1. the plan: every attention call, what becomes of it and why;
2. what the first layer looks at, and how much of that the kept tiles hold;
3. that sparsity 0 equals the uncompiled model, on a small fp32 copy and an odd grid;
4. dense Inductor against backend="vsa", side by side, and how far the output moved;
5. one training step through backend="vsa".

Takes two to four minutes on 2 cores, most of it compilation. `--size 480p81` shows Wan's usual size, however
long it takes; `--quick` a toy model and a 2,772-token video.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import demo_clip
import demo_picture
import torch
from demo_model import QUICK, TINY, WAN, Inputs, Size, cost, moved, noise, silenced, under_noise, wan
from demo_size import GRIDS, Grid, Plan, Speed, choose, measure
from torch import Tensor, nn

import vsa_compile

START = time.monotonic()
CLEAR_LINE = "\r\033[K" if sys.stdout.isatty() else ""
LAST_ROUND = 120.0  # seconds after the start from which no further round is begun
OPTIONS = {"min_tokens": 0}  # videos need none; the short clip is shorter than what sparsity pays for


class Stopwatch:
    """Times one step: on a terminal a line that lives, elsewhere one line when the step is done.

    `scale` is the number of seconds that a full bar stands for, inf if this step is to set it;
    None draws no bar.
    """

    def __init__(self, label: str, scale: float | None = None):
        self.label, self.scale, self.seconds = label, scale, 0.0
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Stopwatch:
        self._started = time.monotonic()
        if CLEAR_LINE:
            self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._started
        if self._ticker.is_alive():
            self._stop.set()
            self._ticker.join()
            print(CLEAR_LINE, end="")
        if self.scale == math.inf:
            self.scale = self.seconds
        print(self.line(self.seconds), flush=True)

    def line(self, seconds: float) -> str:
        cells = min(40, math.ceil(40 * seconds / self.scale)) if self.scale else 0
        return f"   {self.label:36s} {seconds:6.2f} s  {'█' * cells}".rstrip()

    def _tick(self) -> None:
        while not self._stop.wait(0.2):
            print(CLEAR_LINE + self.line(time.monotonic() - self._started), end="", flush=True)


def heading(text: str) -> None:
    print(f"\n[{time.monotonic() - START:4.0f} s] {text}\n", flush=True)


def described(grid: Grid) -> str:
    """A grid as video and as tokens."""
    rows, cols = demo_clip.pixels_of(grid)
    by = "x".join(map(str, grid))
    return f"{demo_clip.frames_of(grid)} frames of {rows}x{cols} = {by} = {math.prod(grid):,} tokens"


def name_of(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


def show_plan(size: Size, latent: Tensor) -> vsa_compile.Report:
    """On the meta device: a plan needs neither weights nor arithmetic."""
    with torch.device("meta"):
        model = wan(size)
    with torch.no_grad():
        report = vsa_compile.explain(model, options=OPTIONS, **under_noise(size, latent, device="meta"))
    print(report)
    return report


def error_against_uncompiled() -> float:
    """Of sparsity 0, which is dense attention itself: the whole backend must agree with the model as it is.

    The largest difference, relative to the largest value.
    """
    model, inputs = wan(TINY), under_noise(TINY, demo_clip.moving_scene(TINY.video))
    with torch.no_grad():
        expected = model(**inputs).sample
        sparse = torch.compile(model, backend="vsa", options={"sparsity": 0, "min_tokens": 0})
        return ((sparse(**inputs).sample - expected).abs().max() / expected.abs().max()).item()


@dataclass
class Contender:
    """A compiled model: its output for the video, and the seconds of every round."""

    name: str
    run: Callable[..., Any]
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    seconds: list[float] = field(default_factory=list)

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> Tensor:
        return self.run(**inputs).sample.float()


def compile_both(model: nn.Module, size: Size, short: Inputs) -> tuple[Contender, Contender]:
    """Compiled on a short clip, with dynamic sizes: the video then needs no compilation."""
    dynamic = size.short != size.video
    dense = Contender("dense Inductor", torch.compile(model, backend="inductor", dynamic=dynamic))
    run = torch.compile(model, backend="vsa", dynamic=dynamic, options=OPTIONS)
    sparse = Contender('backend="vsa"', run)
    for contender in (dense, sparse):
        with Stopwatch(f"compile {contender.name}"):
            contender(short)
    return dense, sparse


def race(dense: Contender, sparse: Contender, size: Size, inputs: Inputs) -> None:
    """In turn, so that a machine that slows down slows both; one that others use too does fewer rounds."""
    while len(dense.seconds) < size.rounds:
        if dense.seconds and time.monotonic() - START > LAST_ROUND:
            break
        for contender in (dense, sparse):
            with Stopwatch(contender.name, scale=max(dense.seconds, default=math.inf)) as watch:
                contender.output = contender(inputs)
            contender.seconds.append(watch.seconds)


def train(model: nn.Module, size: Size, latent: Tensor) -> tuple[float, float]:
    """One AdamW step of flow matching on a short clip: the loss before and after it."""
    run = torch.compile(model, backend="vsa", dynamic=False, options=OPTIONS)
    inputs, target = under_noise(size, latent), noise(size.short) - latent
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def loss() -> Tensor:
        return torch.nn.functional.mse_loss(run(**inputs).sample.float(), target)

    with Stopwatch("compile and one training step"):
        before = loss()
        before.backward()
        optimizer.step()
    with Stopwatch("the loss once more"):
        after = loss()
    return before.item(), after.item()


@dataclass(frozen=True)
class Looks:
    """Of the first layer: kept, (heads, query tiles, key tiles) bool; held, the share of dense
    attention's weight that lies on kept tiles."""

    kept: Tensor
    held: float

    @classmethod
    def at(cls, model: nn.Module, inputs: Inputs, grid: Grid) -> Looks:
        q, k, v = demo_picture.first_attention(model, inputs)
        kept = demo_picture.kept_tiles(q, k, v, grid)
        return cls(kept, demo_picture.weight_held(q, k, kept, grid))

    def __str__(self) -> str:
        share = self.kept.float().mean().item()
        return (
            f"   {share:.1%} of the tiles are kept; {self.held:.0%} of dense attention's weight lies there.\n"
            "   Tokens look for their like here: keys are projected as queries are, at random."
        )


def summary(report: vsa_compile.Report, dense: Contender, sparse: Contender, silent: Tensor) -> str:
    """Before and after."""
    site = next(site for site in report.sites if site.converted)
    before, now = min(dense.seconds), min(sparse.seconds)
    cosine = torch.nn.functional.cosine_similarity(dense.output.flatten(), sparse.output.flatten(), dim=0)
    return f"""\
             {"before":>12} {"after":>12}
   attention {report.flops_dense / 1e9:6,.0f} GFLOP {report.flops_sparse / 1e9:6,.0f} GFLOP   \
{site.kept_tiles} of {site.total_tiles} tiles for each query tile; cross-attention stays dense
   a pass    {before:10.2f} s {now:10.2f} s   {before / now:.1f}x faster, with all that is not attention
   output    moved by {moved(sparse.output, dense.output):.2%} (relative L2), cosine {cosine:.5f}; \
without any self-attention
             it would move by {moved(silent, dense.output):.2%}. The weights are random: of a trained model \
this says little."""


def said(plan: Plan, speed: Speed, forced: bool) -> str:
    """Why this size, in one line."""
    rates = f"{speed.bf16 / 1e9:.0f} GFLOP/s in bf16, {speed.fp32 / 1e9:.0f} in fp32"
    rounds = f"{plan.rounds} round{'s' if plan.rounds > 1 else ''}"
    why = "as --size asks" if forced else "--size takes another"
    return (
        f"Size {plan.name}, {name_of(plan.dtype)}, {rounds}: about {plan.seconds:.0f} s of passes, for "
        f"products of matrices run at {rates} here; {why}."
    )


def write_picture(path: Path, clip: demo_clip.Clip, looks: Looks, dense: Tensor, sparse: Tensor) -> str:
    """The picture, where matplotlib is there; says what it did."""
    if importlib.util.find_spec("matplotlib") is None:
        return "none: matplotlib is missing, pip install 'vsa-compile[demo]' brings it"
    texts = {
        "input": "Input, with one tile of 4x4x4 tokens marked",
        "moved": "How far the output moved, in % of its size",
        "kept": f"What the marked tile attends to: bright where all {len(looks.kept)} heads keep the tile, "
        "dark where none does",
        "source": f"Video: {clip.source}",
    }
    demo_picture.draw(path, clip.stills, looks.kept, dense, sparse, texts)
    return str(path)


def writable(text: str) -> Path:
    """A path to a picture that can be written, checked before the minutes of work."""
    path = Path(text)
    if path.suffix not in (".jpg", ".png"):
        raise argparse.ArgumentTypeError(f"{text!r} is no picture: its name must end in .jpg or .png")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be written: {str(path.parent)!r} is no folder of yours"
        )
    return path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A Wan transformer made sparse on the CPU, in two to four minutes."
    )
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--size", choices=GRIDS, help="the video, however long it takes; else as this machine manages"
    )
    asked.add_argument("--quick", action="store_true", help="a toy model, a small video")
    parser.add_argument("--picture", type=writable, default="demo.jpg", help="where to write it (demo.jpg)")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    logging.basicConfig(stream=sys.stdout, format=f"{CLEAR_LINE}   %(message)s")
    size, line = QUICK, "Size: a toy, as --quick asks."
    if not given.quick:
        speed = measure()
        plan = choose(speed, cost(WAN), given.size)
        size, line = Size.of(plan), said(plan, speed, bool(given.size))
    # Compilation leaves a core idle most of the time: the check has a process of its own meanwhile.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as beside:
        show(size, line, beside.submit(error_against_uncompiled), given.picture)


def show(size: Size, line: str, check: Future[float], picture: Path) -> None:
    heads, width, layers = (
        size.model[k] for k in ("num_attention_heads", "attention_head_dim", "num_layers")
    )
    print(
        f"WanTransformer3DModel, {heads} heads x {width}, layers: {layers}, {name_of(size.dtype)}, ", end=""
    )
    print(f"random weights; torch {torch.__version__}, {torch.get_num_threads()} CPU threads")
    print(f"{described(size.video)}\n{line}")
    clip, short = demo_clip.load(size.video), demo_clip.load(size.short)
    print(f"Video: {clip.source}, made a latent by a fixed linear map: the VAE's weights are a download.")

    heading('The plan of torch.compile(model, backend="vsa")')
    report = show_plan(size, clip.latent)
    if not report.converted:
        sys.exit("Nothing becomes sparse on this machine; the last column says why.")

    heading("What the first layer looks at")
    model, inputs = wan(size), under_noise(size, clip.latent)
    looks = Looks.at(model, inputs, size.video)
    print(looks)

    heading(f"Compile, on {described(size.short)}")
    dense, sparse = compile_both(model, size, under_noise(size, short.latent))

    heading("Sparsity 0 against the uncompiled model: toy-sized, fp32, 5x7x9 tokens")
    error = check.result()
    print(f"   largest difference {error:.1e} of the largest value", flush=True)
    if not error <= 1e-5:  # NaN included
        sys.exit("Not equal: this is a defect, please report it.")

    heading(f"Forward pass on {described(size.video)}")
    race(dense, sparse, size, inputs)
    with silenced(model):
        silent = sparse(inputs)

    heading(f"Training step on {described(size.short)}")
    before, after = train(model, size, short.latent)

    heading("Summary")
    print(summary(report, dense, sparse, silent))
    print(f"   trained   one step, loss {before:.3f} -> {after:.3f}")
    print(f"   picture   {write_picture(picture, clip, looks, dense.output, sparse.output)}")
    print(f"   took      {time.monotonic() - START:.0f} s in all")


if __name__ == "__main__":
    main()
