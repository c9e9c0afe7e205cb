"""Inputs for Inductor to time configurations with: lists of tiles must be valid.

Inductor fills integer inputs with random numbers, which as tile numbers are addresses outside of memory.
Each maker takes an input as Inductor IR and returns a tensor on its device.
May be imported by the lowerings; imports torch_compat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import torch_compat as compat

Maker = Callable[[Any], Tensor]


def tile_lists(tiles: Any) -> Tensor:
    """(B, H, M, Kcap) int32 ascending: the same random set of tiles, moved along with the query tile.

    Every tile is listed equally often, so that the transposed lists are known too: `columns_like`.
    """
    batch, heads, count, listed = compat.likely_sizes(tiles.get_size())
    source = torch.Generator().manual_seed(0)
    offsets = torch.randperm(count, generator=source)[:listed]
    lists = (torch.arange(count)[:, None] + offsets).remainder(count).sort(-1).values
    return lists.expand(batch, heads, count, listed).to(tiles.get_device(), torch.int32).contiguous()


def counts_like(tiles: Any) -> Maker:
    """Makes the (B, H, M) counts of `tile_lists`."""

    def full(counts: Any) -> Tensor:
        *rows, listed = compat.likely_sizes(tiles.get_size())
        return torch.full(tuple(rows), listed, dtype=torch.int32, device=counts.get_device())

    return full


def columns_like(tiles: Any) -> tuple[Maker, Maker, Maker]:
    """Make the STARTS, COLUMNS and ORDER of `tile_lists`, up to which query tiles a column names."""

    def starts(x: Any) -> Tensor:
        batch, heads, count, listed = compat.likely_sizes(tiles.get_size())
        each = torch.arange(count + 1, dtype=torch.int32, device=x.get_device()) * listed
        return each.expand(batch, heads, count + 1).contiguous()

    def columns(x: Any) -> Tensor:
        batch, heads, count, listed = compat.likely_sizes(tiles.get_size())
        each = torch.arange(count * listed, dtype=torch.int32, device=x.get_device()) % count
        return each.expand(batch, heads, count * listed).contiguous()

    def order(x: Any) -> Tensor:
        batch, kv_heads, count = compat.likely_sizes(x.get_size())
        each = torch.arange(count, dtype=torch.int32, device=x.get_device())
        return each.expand(batch, kv_heads, count).contiguous()

    return starts, columns, order
