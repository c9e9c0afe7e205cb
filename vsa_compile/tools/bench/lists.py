"""Lists of tiles, and the work that they mean.

random: query tiles close to each other list different tiles: the worst case for caches.
local: the nearest tiles, as trained models mostly select.
same: all query tiles list the same random tiles: the best case for caches.
ragged: random, with 1 to 2 k - 1 tiles per row, k on average, as a threshold selects.

Notation: H heads, M tiles, Kcap width of the lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ...grid import TileGrid, kept_tiles

SELECTED = "selected"  # the operator's own selection; no lists are given


@dataclass(frozen=True)
class Lists:
    """What every query tile attends to: tiles (1, H, M, Kcap) int32 ascending, counts (1, H, M) int32."""

    kind: str
    density: float
    tiles: Tensor
    counts: Tensor


def sparsity_of(density: float) -> float:
    """1 - density, exact in decimal."""
    return float(1 - Fraction(str(density)))


def kept(boxes: TileGrid, density: float) -> int:
    """How many tiles a row lists, on average."""
    return kept_tiles(boxes.tiles, sparsity_of(density))


def make_lists(kind: str, density: float, boxes: TileGrid, heads: int, device: torch.device) -> Lists:
    """The lists of every head, from a fixed seed."""
    source = torch.Generator(device).manual_seed(0)
    tiles, listed = boxes.tiles, kept(boxes, density)
    shape = (1, heads, tiles)
    if kind == "local":
        ranks = _distances(boxes, device).expand(*shape, tiles)
    elif kind == "same":
        ranks = torch.rand(tiles, device=device, generator=source).expand(*shape, tiles)
    else:
        ranks = torch.rand(*shape, tiles, device=device, generator=source)
    counts = torch.full(shape, listed, dtype=torch.int32, device=device)
    if kind == "ragged":
        listed = min(tiles, 2 * listed - 1)
        counts.random_(1, listed + 1, generator=source)
    chosen = ranks.topk(listed, largest=False, sorted=True).indices
    within = torch.arange(listed, device=device) < counts[..., None]
    chosen = chosen.where(within, tiles).sort(-1).values.clamp(max=tiles - 1)
    return Lists(kind, density, chosen.to(torch.int32), counts)


def _distances(boxes: TileGrid, device: torch.device) -> Tensor:
    """(M, M): squared distances between tiles, in tiles; ties go to the lowest id."""
    axes = [torch.arange(n, device=device) for n in boxes.shape]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
    squared = (places[:, None] - places).square().sum(-1)
    return squared * boxes.tiles + torch.arange(boxes.tiles, device=device)


def pairs(lists: Lists, boxes: TileGrid) -> int:
    """Query-key pairs of all heads, counting only real tokens."""
    real = torch.tensor([boxes.real_tokens(i) for i in range(boxes.tiles)], device=lists.tiles.device)
    within = torch.arange(lists.tiles.shape[-1], device=real.device) < lists.counts[..., None]
    keys = (real[lists.tiles.long()] * within).sum(-1)
    return int((keys * real).sum())
