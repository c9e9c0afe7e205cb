"""A Wan transformer as wide as Wan2.1-1.3B, made sparse on this machine's CPU: `make demo`.

The model is diffusers' own, unmodified: 12 heads of width 128, 2 of its 30 layers, bf16, random weights. The
video is 81 frames of 480x832, which the model sees as 21x30x52 = 32,760 tokens; tiles of 4x4x4 tokens do not
divide them. The latent is a moving scene with noise on it. It shows, in this order:

1. the plan: every attention call, what becomes of it and why;
2. that sparsity 0 equals the uncompiled model, on a small fp32 copy and an odd grid;
3. dense Inductor against backend="vsa", side by side, and how far the output moved;
4. one training step through backend="vsa".

Takes just under 5 minutes on 2 cores, most of it the dense model. `--quick` shows the same on a toy model
and a 2,772-token video in about a minute, most of it compilation.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

import vsa_compile

Grid = tuple[int, int, int]  # (frames, rows, cols) in tokens
Clip = dict[str, Any]

START = time.monotonic()
CLEAR_LINE = "\r\033[K" if sys.stdout.isatty() else ""
NOISE = 0.3  # share of noise in the latent: flow matching's sigma
RACE_SECONDS = 100.0  # no further round is started after this
MOST_ROUNDS = 3


@dataclass(frozen=True)
class Size:
    """What is run: the model's sizes, the grids, the backend's options."""

    model: dict[str, int]
    prompt_tokens: int
    video: Grid  # what is timed
    short: Grid  # what is compiled and trained on
    options: dict[str, Any] = field(default_factory=dict)


WAN_480P = Size(
    model={
        "num_attention_heads": 12,
        "attention_head_dim": 128,
        "ffn_dim": 8960,
        "text_dim": 4096,
        "num_layers": 2,
    },
    prompt_tokens=512,
    video=(21, 30, 52),
    short=(6, 26, 30),
)
TOY = Size(
    model={
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "ffn_dim": 256,
        "text_dim": 64,
        "num_layers": 1,
    },
    prompt_tokens=20,
    video=(9, 14, 22),
    short=(9, 14, 22),
    options={"min_tokens": 0},
)


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


def by(grid: Grid) -> str:
    return "x".join(map(str, grid))


def frames(grid: Grid) -> int:
    """Frames of video behind a latent: Wan's VAE keeps the first and packs the others by four."""
    return 4 * (grid[0] - 1) + 1


def wan(size: Size) -> WanTransformer3DModel:
    """diffusers' own random weights, in bf16 but for the parts that diffusers keeps in fp32."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(**size.model, qk_norm="rms_norm_across_heads", cross_attn_norm=True)
    for name, parameter in model.named_parameters():
        if not any(kept in name for kept in model._keep_in_fp32_modules):
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def moving_scene(grid: Grid) -> Tensor:
    """Three blobs over a drifting background: (1, 16, frames, 2 rows, 2 cols) fp32, mean 0, deviation 1."""
    t, y, x = torch.meshgrid(
        *(torch.linspace(0, 1, n) for n in (grid[0], 2 * grid[1], 2 * grid[2])), indexing="ij"
    )
    layers = [y, torch.sin(2 * math.pi * (x + 0.5 * t)), torch.cos(2 * math.pi * (y + x - t))]
    for phase, radius in ((0.0, 0.10), (2.1, 0.15), (4.2, 0.20)):
        centre_x = 0.5 + 0.35 * torch.cos(2 * math.pi * t + phase)
        centre_y = 0.5 + 0.35 * torch.sin(2 * math.pi * t + phase)
        layers.append(4 * torch.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / radius**2))
    colours = torch.randn(16, len(layers), generator=torch.Generator().manual_seed(1))
    latent = torch.einsum("cl,ltyx->ctyx", colours, torch.stack(layers))
    return ((latent - latent.mean()) / latent.std())[None]


def noise(grid: Grid) -> Tensor:
    return torch.randn(moving_scene(grid).shape, generator=torch.Generator().manual_seed(2))


def clip(size: Size, grid: Grid, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> Clip:
    """The model's arguments for the scene under noise, with a random prompt."""
    latent = (1 - NOISE) * moving_scene(grid) + NOISE * noise(grid)
    prompt = torch.randn(
        1, size.prompt_tokens, size.model["text_dim"], generator=torch.Generator().manual_seed(3)
    )
    return {
        "hidden_states": latent.to(device, dtype),
        "timestep": torch.tensor([1000 * NOISE], device=device),
        "encoder_hidden_states": prompt.to(device, dtype),
    }


def show_plan(size: Size) -> vsa_compile.Report:
    """On the meta device: a plan needs neither weights nor arithmetic."""
    with torch.device("meta"):
        model = wan(size)
    with torch.no_grad():
        report = vsa_compile.explain(model, options=size.options, **clip(size, size.video, device="meta"))
    print(report)
    return report


def check_against_uncompiled() -> None:
    """Sparsity 0 is dense attention itself: the whole backend must agree with the model as it is."""
    grid = (5, 7, 9)
    model = wan(TOY).float()
    inputs = clip(TOY, grid, torch.float32)
    with torch.no_grad():
        expected = model(**inputs).sample
        sparse = torch.compile(model, backend="vsa", options={"sparsity": 0, "min_tokens": 0})
        error = (sparse(**inputs).sample - expected).abs().max() / expected.abs().max()
    print(f"   largest difference {error:.1e} of the largest value", flush=True)
    if not error <= 1e-5:  # NaN included
        sys.exit("Not equal: this is a defect, please report it.")
    torch.compiler.reset()


@dataclass
class Contender:
    """A compiled model: its output on the short clip and on the video, and the seconds of every round."""

    name: str
    run: Callable[..., Any]
    short: Tensor = field(default_factory=lambda: torch.empty(0))
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    seconds: list[float] = field(default_factory=list)

    @torch.no_grad()
    def __call__(self, inputs: Clip) -> Tensor:
        return self.run(**inputs).sample.float()


def compile_both(model: WanTransformer3DModel, size: Size) -> tuple[Contender, Contender]:
    """Compiled on a short clip, with dynamic sizes: the video then needs no compilation."""
    dynamic = size.short != size.video
    dense = Contender("dense Inductor", torch.compile(model, backend="inductor", dynamic=dynamic))
    run = torch.compile(model, backend="vsa", dynamic=dynamic, options=size.options)
    sparse = Contender('backend="vsa"', run)
    for contender in (dense, sparse):
        with Stopwatch(f"compile {contender.name}"):
            contender.short = contender(clip(size, size.short))
    return dense, sparse


def race(dense: Contender, sparse: Contender, size: Size) -> None:
    """In turn, so that a machine that slows down slows both; a slow machine does one round."""
    inputs, started = clip(size, size.video), time.monotonic()
    while len(dense.seconds) < MOST_ROUNDS and time.monotonic() - started < RACE_SECONDS:
        for contender in (dense, sparse):
            with Stopwatch(contender.name, scale=max(dense.seconds, default=math.inf)) as watch:
                contender.output = contender(inputs)
            contender.seconds.append(watch.seconds)


@contextmanager
def silenced(model: WanTransformer3DModel) -> Iterator[None]:
    """The model without its self-attention: the projections behind it give 0."""
    parameters = [p for block in model.blocks for p in block.attn1.to_out.parameters()]
    values = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
        yield
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def moved(output: Tensor, reference: Tensor) -> float:
    """Relative L2 difference."""
    return ((output - reference).norm() / reference.norm()).item()


def train(model: WanTransformer3DModel, size: Size) -> tuple[float, float]:
    """One AdamW step of flow matching on a short clip: the loss before and after it."""
    run = torch.compile(model, backend="vsa", dynamic=False, options=size.options)
    inputs, target = clip(size, size.short), noise(size.short) - moving_scene(size.short)
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


def summary(
    report: vsa_compile.Report, size: Size, dense: Contender, sparse: Contender, silent: Tensor
) -> str:
    site = next(site for site in report.sites if site.converted)
    tiles = f"{site.kept_tiles} of {site.total_tiles} tiles"
    flops = 1 - report.flops_sparse / report.flops_dense
    before, now = min(dense.seconds), min(sparse.seconds)
    cosine = torch.nn.functional.cosine_similarity(dense.output.flatten(), sparse.output.flatten(), dim=0)
    return f"""\
   sparse   {report.converted} of {len(report.sites)} attention calls, {tiles} for each query tile; \
cross-attention stays dense.
   saved    {flops:.0%} of the attention FLOPs; a forward pass takes {now:.2f} s, not {before:.2f} s: \
{before / now:.1f}x faster.
   moved    the output, by {moved(sparse.output, dense.output):.2%} (relative L2), cosine {cosine:.5f}.
            On {by(size.short)} tokens it moved by {moved(sparse.short, dense.short):.2%}; \
without any self-attention it would by {moved(silent, dense.short):.2%}.
            Random weights attend almost everywhere, so this says little about a trained model."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A Wan transformer made sparse on the CPU; just under 5 minutes."
    )
    parser.add_argument("--quick", action="store_true", help="a toy model, a small video: about a minute")
    logging.basicConfig(stream=sys.stdout, format=f"{CLEAR_LINE}   %(message)s")
    size = TOY if parser.parse_args().quick else WAN_480P
    video = f"{frames(size.video)} frames = {by(size.video)} = {math.prod(size.video):,} tokens"
    short = f"{frames(size.short)} frames = {by(size.short)} = {math.prod(size.short):,} tokens"
    heads, width, layers = (
        size.model[k] for k in ("num_attention_heads", "attention_head_dim", "num_layers")
    )
    print(f"WanTransformer3DModel, {heads} heads x {width}, layers: {layers}, bf16, random weights")
    print(f"{video}; torch {torch.__version__}, {torch.get_num_threads()} CPU threads")

    heading('The plan of torch.compile(model, backend="vsa")')
    report = show_plan(size)

    heading("Sparsity 0 against the uncompiled model: toy-sized, fp32, 5x7x9 tokens")
    check_against_uncompiled()

    heading(f"Compile, on {short}")
    model = wan(size)
    dense, sparse = compile_both(model, size)
    with silenced(model):
        silent = sparse(clip(size, size.short))

    heading(f"Forward pass on {video}")
    race(dense, sparse, size)

    heading(f"Training step on {short}")
    before, after = train(model, size)

    heading("Summary")
    print(summary(report, size, dense, sparse, silent))
    print(f"   trained  one step, loss {before:.3f} -> {after:.3f}.")
    print(f"   took     {time.monotonic() - START:.0f} s in all.")


if __name__ == "__main__":
    main()
