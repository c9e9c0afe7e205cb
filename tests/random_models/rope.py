"""Rotary position embeddings over a video's tokens, in the spellings of real models.

A spelling is a pair: `tables` makes its tables for a grid, `rotate` turns queries or keys with them.
"""

import torch
from torch import Tensor

Tables = tuple[Tensor, ...]

SPELLINGS = ("complex", "half", "axes", "interleaved", "folded")


def tables(spelling: str, grid: tuple[int, int, int], width: int) -> Tables:
    """The tables of one spelling for heads of `width`."""
    if spelling == "complex":
        return (torch.polar(torch.ones(()), _expanded(grid, width)),)
    if spelling == "axes":
        return tuple(_expanded_axis(grid, width, axis) for axis in range(3))
    angles = _meshed(grid, width)
    if spelling == "half":
        angles = torch.cat([angles, angles], dim=-1)
    elif spelling == "interleaved":
        angles = angles.repeat_interleave(2, dim=-1)
    elif spelling == "folded":
        angles = torch.stack([angles, angles], dim=-1).flatten(-2).unflatten(0, grid)
    return angles.cos(), angles.sin()


def rotate(spelling: str, x: Tensor, found: Tables, tokens: int) -> Tensor:
    """Rotate x (B, H, N, D) with `tokens` = 2, or (B, N, H, D) with `tokens` = 1."""
    if spelling == "folded":  # the grid itself as three dimensions, heads in front of it
        x = x.transpose(1, 2) if tokens == 1 else x
        cos, sin = found
        grid = x.unflatten(2, cos.shape[:3])
        turned = (grid * cos + _pairs_turned(grid) * sin).flatten(2, 4)
        return turned.transpose(1, 2) if tokens == 1 else turned
    found = tuple(table[None, None] if tokens == 2 else table[None, :, None] for table in found)
    if spelling == "complex":
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * found[0]).flatten(3).type_as(x)
    if spelling == "axes":
        parts = x.split([2 * table.shape[-1] for table in found], dim=-1)
        return torch.cat([_half(p, t.repeat(1, 1, 1, 2)) for p, t in zip(parts, found, strict=True)], dim=-1)
    cos, sin = found
    turned = _half_turned(x) if spelling == "half" else _pairs_turned(x)
    return (x * cos + turned * sin).to(x.dtype)


def _half(x: Tensor, angles: Tensor) -> Tensor:
    return x * angles.cos() + _half_turned(x) * angles.sin()


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _pairs_turned(x: Tensor) -> Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-odd, even], dim=-1).flatten(-2)


def _frequencies(width: int) -> list[Tensor]:
    """One frequency for each pair of channels: those of frames, of rows, of cols."""
    space = width // 6
    return [0.5 ** torch.arange(n) for n in (width // 2 - 2 * space, space, space)]


def _expanded_axis(grid: tuple[int, int, int], width: int, axis: int) -> Tensor:
    """(N, pairs of this axis) angles, stretched over the other two axes."""
    frequencies = _frequencies(width)[axis]
    angles = torch.outer(torch.arange(grid[axis], dtype=torch.float32), frequencies)
    shape = [1, 1, 1, len(frequencies)]
    shape[axis] = grid[axis]
    return angles.view(shape).expand(*grid, -1).reshape(grid[0] * grid[1] * grid[2], -1)


def _expanded(grid: tuple[int, int, int], width: int) -> Tensor:
    return torch.cat([_expanded_axis(grid, width, axis) for axis in range(3)], dim=-1)


def _meshed(grid: tuple[int, int, int], width: int) -> Tensor:
    """(N, width / 2) angles from the mesh of all positions."""
    mesh = torch.meshgrid(*[torch.arange(size, dtype=torch.float32) for size in grid], indexing="ij")
    pairs = zip(mesh, _frequencies(width), strict=True)
    return torch.cat([p.reshape(-1, 1) * frequencies for p, frequencies in pairs], dim=-1)
