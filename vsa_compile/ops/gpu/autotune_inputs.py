"""Inputs with which Inductor times configurations: valid lists of tiles.

Inductor fills integer inputs with random numbers; as tile ids these would be addresses outside of memory.
Each maker takes an input as Inductor IR and returns a tensor on its device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ... import torch_compat as compat
from ...grid import Size
from .target import IR

Maker = Callable[[IR], Tensor]


def lists_among(kv_tiles: Size) -> Maker:
    """Makes (B, H, Mq, Kcap) int32 lists, ascending: one random set of tiles, shifted with the query tile.

    Every tile is listed about equally often, which also determines the transposed lists: `columns_like`.
    """

    def lists(tiles: IR) -> Tensor:
        batch, heads, rows, listed, total = compat.likely_sizes((*tiles.get_size(), kv_tiles))
        source = torch.Generator().manual_seed(0)
        offsets = torch.randperm(total, generator=source)[:listed]
        along = torch.arange(rows)[:, None] * total // rows
        made = (along + offsets).remainder(total).sort(-1).values
        return made.expand(batch, heads, rows, listed).to(tiles.get_device(), torch.int32).contiguous()

    return lists


def counts_like(tiles: IR) -> Maker:
    """Makes the (B, H, Mq) counts of `lists_among`."""

    def full(counts: IR) -> Tensor:
        *rows, listed = compat.likely_sizes(tiles.get_size())
        return torch.full(tuple(rows), listed, dtype=torch.int32, device=counts.get_device())

    return full


def columns_like(tiles: IR, kv_tiles: Size) -> tuple[Maker, Maker, Maker]:
    """Make STARTS, COLUMNS and ORDER for `lists_among`, except that columns name arbitrary query tiles."""

    def starts(x: IR) -> Tensor:
        batch, heads, rows, listed, total = compat.likely_sizes((*tiles.get_size(), kv_tiles))
        each = torch.arange(total + 1, dtype=torch.int64) * (rows * listed) // total
        return each.expand(batch, heads, total + 1).to(x.get_device(), torch.int32).contiguous()

    def columns(x: IR) -> Tensor:
        batch, heads, rows, listed = compat.likely_sizes(tiles.get_size())
        each = torch.arange(rows * listed, dtype=torch.int32, device=x.get_device()) % rows
        return each.expand(batch, heads, rows * listed).contiguous()

    def order(x: IR) -> Tensor:
        batch, kv_heads, count = compat.likely_sizes(x.get_size())
        each = torch.arange(count, dtype=torch.int32, device=x.get_device())
        return each.expand(batch, kv_heads, count).contiguous()

    return starts, columns, order
