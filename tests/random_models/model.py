"""The model of a plan, its inputs, and the truth about its attention calls."""

import math

import torch
from torch import Tensor, nn

from . import decoys, rope  # noqa: F401  (decoys fill the table of kinds)
from .kinds import KINDS, Grid, Scene, Truth
from .layers import TransformerBlock
from .plan import Plan

CHANNELS = 4


class Patchify(nn.Module):
    """Latents -> tokens (B, N, dim) in raster order, and the grid, in one of PATCHES."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.how = plan.patch
        if self.how == "by-hand":
            self.embed = nn.Linear(4 * CHANNELS, plan.dim)
        elif self.how == "tokens":
            self.embed = nn.Linear(CHANNELS, plan.dim)
        elif self.how == "frame-by-frame":
            self.embed = nn.Conv2d(CHANNELS, plan.dim, 2, stride=2)
        else:
            patch = (2, 2, 2) if self.how == "in-time" else (1, 2, 2)
            self.embed = nn.Conv3d(CHANNELS, plan.dim, patch, stride=patch)

    def forward(self, latents: Tensor, grid: Grid | None) -> tuple[Tensor, Grid]:
        if self.how == "tokens":
            return self.embed(latents), grid
        batch, channels, frames, height, width = latents.shape
        rows, cols = height // 2, width // 2
        if self.how == "by-hand":
            cells = latents.reshape(batch, channels, frames, rows, 2, cols, 2).permute(0, 2, 3, 5, 1, 4, 6)
            x = self.embed(cells.reshape(batch, frames * rows * cols, -1))
        elif self.how == "frame-by-frame":
            images = self.embed(latents.transpose(1, 2).reshape(batch * frames, channels, height, width))
            x = images.flatten(2).transpose(1, 2).reshape(batch, frames * rows * cols, -1)
        else:
            volume = self.embed(latents)
            frames, rows, cols = volume.shape[2:]
            x = self._flat(volume)
        return x, (frames, rows, cols)

    def _flat(self, volume: Tensor) -> Tensor:
        if self.how == "permute-flatten":
            return volume.permute(0, 2, 3, 4, 1).flatten(1, 3)
        if self.how == "rearrange":
            batch, dim, frames, rows, cols = volume.shape
            return volume.permute(0, 2, 3, 4, 1).reshape(batch, frames * rows * cols, dim)
        return volume.flatten(2).transpose(1, 2)


class RandomModel(nn.Module):
    """The video transformer of a plan, with random weights that make attention sharp."""

    def __init__(self, plan: Plan):
        super().__init__()
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.patch = Patchify(plan)
        self.blocks = nn.ModuleList(TransformerBlock(plan, block) for block in plan.blocks)
        self.unpatch = nn.Linear(plan.dim, 4 * CHANNELS)
        self.ropes = sorted({block.rope for block in plan.blocks} - {"none"})
        for name, parameter in self.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            nn.init.normal_(parameter, mean=float(norm), std=0.25 if parameter.dim() > 1 else 0.1)

    def forward(self, latents, other, text, text_mask, long_text, order, seen, time, grid=None):
        x, grid = self.patch(latents, grid)
        tables = {spelling: rope.tables(spelling, grid, self.plan.width) for spelling in self.ropes}
        scene = Scene(grid, text, text_mask, long_text, self.patch(other, grid)[0], order, seen, time, tables)
        for block in self.blocks:
            x, text = block(x, scene)
            scene = scene._replace(text=text)
        out = self.unpatch(x) + text.mean()
        return self._pixels(out, grid) if self.plan.unpatch else out

    def _pixels(self, x: Tensor, grid: Grid) -> Tensor:
        frames, rows, cols = grid
        x = x.reshape(x.shape[0], frames, rows, cols, CHANNELS, 2, 2).permute(0, 4, 1, 2, 5, 3, 6)
        return x.reshape(x.shape[0], CHANNELS, frames, rows * 2, cols * 2)


def inputs(plan: Plan, grid: Grid | None = None) -> dict:
    """The model's arguments for a grid, the plan's own unless given."""
    frames, rows, cols = grid = grid or plan.grid
    generator = torch.Generator().manual_seed(plan.seed)
    tokens, batch = math.prod(grid), plan.batch

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    shape = (CHANNELS, frames * (2 if plan.patch == "in-time" else 1), 2 * rows, 2 * cols)
    shape = (tokens, CHANNELS) if plan.patch == "tokens" else shape
    lengths = torch.arange(batch)[:, None] + (plan.text + 1) // 2
    arguments = {
        "latents": normal(*shape),
        "other": normal(*shape),
        "text": normal(plan.text, plan.dim),
        "text_mask": torch.arange(plan.text)[None] < lengths,
        "long_text": normal(tokens, plan.dim),
        "order": torch.randperm(tokens, generator=generator),
        "seen": normal(tokens) > -1,
        "time": normal(plan.dim),
    }
    return arguments | ({"grid": grid} if plan.patch == "tokens" else {})


def truths(plan: Plan, grid: Grid | None = None) -> dict[str, Truth]:
    """What must be found for every attention call, by its module path."""
    return {f"blocks.{i}.attn": _truth(plan, b.kind, grid or plan.grid) for i, b in enumerate(plan.blocks)}


def _truth(plan: Plan, kind: str, grid: Grid) -> Truth:
    truth = KINDS[kind].truth(grid, plan.text)
    if truth.grid and math.prod(truth.grid) < plan.min_tokens:
        return Truth(slugs=frozenset(["few-tokens"]))
    return truth
