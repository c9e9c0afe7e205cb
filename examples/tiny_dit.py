"""A small video diffusion transformer in plain PyTorch, and the moving scenes that it learns.

Nothing here knows of sparse attention: examples/train_tiny_dit.py makes it sparse with torch.compile alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = (1, 2, 2)  # frames, rows, cols of pixels in a token
Grid = tuple[int, int, int]  # (frames, rows, cols) in tokens


class Attention(nn.Module):
    """Full 3D self-attention with rotary positions, as Wan has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (
            f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v)
        )
        q, k = rotate(self.norm_q(q), *rope), rotate(self.norm_k(k), *rope)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, each scaled and shifted by the time of the flow (adaLN)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU("tanh"), nn.Linear(2 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time)[:, None].chunk(6, dim=-1)
        normed = F.layer_norm(x, x.shape[-1:])
        x = x + (1 + gate1) * self.attn(normed * (1 + scale1) + shift1, rope)
        normed = F.layer_norm(x, x.shape[-1:])
        return x + (1 + gate2) * self.mlp(normed * (1 + scale2) + shift2)


class TinyDiT(nn.Module):
    """(B, 3, frames, 2 rows, 2 cols) noisy clips and (B,) times in [0, 1] -> velocities, as the clips."""

    def __init__(self, grid: Grid, width: int = 64, heads: int = 2, layers: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patchify = nn.Conv3d(3, width, PATCH, stride=PATCH)
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, 3 * math.prod(PATCH))
        cos, sin = rope_tables(grid, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, clips: Tensor, times: Tensor) -> Tensor:
        x = self.patchify(clips)
        frames, rows, cols = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        angles = times[:, None] * (1000 ** torch.linspace(0, 1, 16, device=times.device))
        time = self.time(torch.cat([angles.cos(), angles.sin()], dim=-1).to(x.dtype))
        for block in self.blocks:
            x = block(x, time, (self.cos, self.sin))
        x = self.head(F.layer_norm(x, x.shape[-1:]))
        x = x.unflatten(2, (3, *PATCH)).unflatten(1, (frames, rows, cols))
        return x.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(clips.shape)


def rope_tables(grid: Grid, head_width: int) -> tuple[Tensor, Tensor]:
    """cos and sin of every token's angles, (tokens, head_width / 2): a quarter for frames, the rest for
    rows and cols."""
    half = head_width // 2
    shares = (half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8)
    angles = []
    for axis, share in enumerate(shares):
        shape = [1, 1, 1, share]
        shape[axis] = grid[axis]
        frequency = math.pi / 2 * 0.05 ** (torch.arange(share) / share)
        angles.append((torch.arange(grid[axis])[:, None] * frequency).reshape(shape).expand(*grid, share))
    table = torch.cat(angles, dim=-1).flatten(0, 2)
    return table.cos(), table.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, H, N, D), its two halves as real and imaginary parts."""
    real, imaginary = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)


def scenes(count: int, grid: Grid, generator: torch.Generator) -> Tensor:
    """(count, 3, frames, 2 rows, 2 cols) fp32, about mean 0 and deviation 1: three shapes fly over stripes.

    Stripes of two colours span the clip and stand still, shapes keep their colour, size and velocity and
    bounce off the border. So what noise hides in one place is seen in others: in other frames where the
    shape has been, and all over the background.
    """
    frames, height, width = (n * p for n, p in zip(grid, PATCH, strict=True))

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    t, y, x = torch.arange(frames), torch.linspace(0, 1, height), torch.linspace(0, 1, width)
    slant, period, phase = uniform(1, 1, high=math.pi), uniform(1, 1, low=2, high=6), uniform(1, 1, high=6.3)
    wave = torch.sin(2 * math.pi * period * (slant.cos() * x + slant.sin() * y[:, None]) + phase)
    colours = uniform(5, 3, low=-1.8, high=1.8)
    clips = torch.lerp(colours[:, 0, :, None, None], colours[:, 1, :, None, None], (wave[:, None] + 1) / 2)
    clips = clips[:, :, None].expand(count, 3, frames, height, width)
    for shape in range(3):
        start, speed = uniform(2), uniform(2, low=-0.12, high=0.12)
        path = (start[..., None] + speed[..., None] * t) % 2
        path = 0.1 + 0.8 * torch.minimum(path, 2 - path)  # bounced
        dy = (y - path[:, 0, :, None])[..., :, None].abs()
        dx = (x - path[:, 1, :, None])[..., None, :].abs()
        square = uniform(1, 1, 1) < 0.5
        distance = torch.where(square, torch.maximum(dx, dy), torch.hypot(dx, dy))
        inside = torch.sigmoid(60 * (uniform(1, 1, 1, low=0.08, high=0.18) - distance))[:, None]
        clips = torch.lerp(clips, colours[:, 2 + shape, :, None, None, None].expand_as(clips), inside)
    return clips
