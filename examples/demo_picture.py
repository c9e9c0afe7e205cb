"""What the demo's first layer looks at, as a number and as one picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import vsa_compile
from vsa_compile.grid import Grid, TileGrid

TILE = (4, 4, 4)
MOST_PANELS = 6
INK, MARK = "#222222", "#d55e00"


class _Found(Exception):
    """Ends a run where what it was run for has come by."""


class _Attention(TorchFunctionMode):
    """Ends the model at its first attention call and keeps what that is given."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            self.found = named["query"], named["key"], named["value"]
            raise _Found
        return function(*args, **(kwargs or {}))


class _Selection(TorchDispatchMode):
    """Ends the operator once it has selected tiles, and keeps which."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.vsa_compile.select.default:
            self.found = result[0]
            raise _Found
        return result


@torch.no_grad()
def first_attention(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of the first layer's self-attention, (heads, tokens, width) fp32."""
    watch = _Attention()
    try:
        with watch:
            model(**inputs)
    except _Found:
        q, k, v = (x[0].float() for x in watch.found)
        return q, k, v
    raise RuntimeError("the model has no attention call")


@torch.no_grad()
def kept_tiles(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """(heads, query tiles, key tiles) bool: what the operator selects at its usual sparsity."""
    watch = _Selection()
    try:
        with watch:
            vsa_compile.attention(q[None], k[None], v[None], grid=grid, tile=TILE)
    except _Found:
        lists = watch.found[0].long()
        tiles = TileGrid(Grid(*grid), TILE).tiles
        return torch.zeros(*lists.shape[:2], tiles, dtype=torch.bool).scatter_(2, lists, True)
    raise RuntimeError("the operator selected nothing")


@torch.no_grad()
def weight_held(q: Tensor, k: Tensor, kept: Tensor, grid: tuple[int, int, int], queries: int = 128) -> float:
    """The share of dense attention's weight that lies on kept tiles, over heads and some queries."""
    tile_of = tile_of_token(grid)
    rows = torch.linspace(0, q.shape[1] - 1, queries).long()
    weights = (q[:, rows] @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(-1)
    return (weights * kept[:, tile_of[rows]][:, :, tile_of]).sum(-1).mean().item()


def tile_of_token(grid: tuple[int, int, int]) -> Tensor:
    """(tokens,) int64: the tile of every token in raster order."""
    shape = TileGrid(Grid(*grid), TILE).shape
    along = [torch.arange(n) // size for n, size in zip(grid, TILE, strict=True)]
    return ((along[0][:, None, None] * shape[1] + along[1][:, None]) * shape[2] + along[2]).flatten()


def query_tile(grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """The one that the picture shows: halfway through the clip, left of the middle of the frame."""
    shape = TileGrid(Grid(*grid), TILE).shape
    return shape[0] // 2, shape[1] // 2, shape[2] // 3


def draw(
    path: Path, stills: Tensor, kept: Tensor, dense: Tensor, sparse: Tensor, texts: dict[str, str]
) -> None:
    """A frame with the query tile, where the output moved, and the tiles that it keeps over time.

    stills: (frames, 3, height, width) from 0 to 1, one for each frame of the latent. kept: `kept_tiles`.
    dense, sparse: the model's outputs, (1, 16, frames, 2 rows, 2 cols). texts: by name, as it uses them.
    """
    from matplotlib.figure import Figure

    grid = (dense.shape[2], dense.shape[3] // 2, dense.shape[4] // 2)
    chosen = query_tile(grid)
    shape = TileGrid(Grid(*grid), TILE).shape
    share = kept[:, (chosen[0] * shape[1] + chosen[1]) * shape[2] + chosen[2]].float().mean(0).reshape(shape)
    frame = min(TILE[0] * chosen[0] + TILE[0] // 2, grid[0] - 1)
    panels = _layers(shape[0], chosen[0])

    columns = min(len(panels), 3 if len(panels) > 4 else 4)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(11, 3.8 + 2.2 * rows), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(3.8, 2.2 * rows))
    left, right = above.subplots(1, 2)
    height, width = stills.shape[2:]
    left.imshow(stills[frame].permute(1, 2, 0).numpy())
    _outline(left, chosen, (height, width), grid)
    _title(left, texts["input"])
    change = ((sparse - dense)[0, :, frame].norm(dim=0) / dense[0, :, frame].norm(dim=0).mean()).numpy()
    shown = right.imshow(100 * change, cmap="magma", vmin=0, extent=(0, width, height, 0))
    above.colorbar(shown, ax=right, shrink=0.7, format="%.2g %%")
    _title(right, texts["moved"])

    below.suptitle(texts["kept"], x=0.01, ha="left", fontsize=10, color=INK)
    axes = below.subplots(rows, columns, squeeze=False).flatten()
    for axis, layer in zip(axes, panels, strict=False):
        still = stills[min(TILE[0] * layer + TILE[0] // 2, grid[0] - 1)]
        axis.imshow(_lit(still, share[layer], grid).permute(1, 2, 0).numpy())
        if layer == chosen[0]:
            _outline(axis, chosen, (height, width), grid)
        _title(axis, "frames {} to {}".format(*_pictures(layer, grid[0])))
    for axis in (left, right, *axes):
        axis.axis("off")
    below.supxlabel(texts["source"], x=0.995, ha="right", fontsize=7, color=INK)
    figure.savefig(path, dpi=80)


def _layers(layers: int, chosen: int) -> list[int]:
    """Which layers of tiles are drawn: all, or as many around the chosen one."""
    first = min(max(0, chosen - MOST_PANELS // 2), max(0, layers - MOST_PANELS))
    return list(range(first, min(layers, first + MOST_PANELS)))


def _pictures(layer: int, latent_frames: int) -> tuple[int, int]:
    """First and last picture of the video in a layer of tiles, counted from 1; the latent packs four."""
    last = min(TILE[0] * (layer + 1), latent_frames) - 1
    return max(1, 4 * TILE[0] * layer - 2), 4 * last + 1


def _lit(still: Tensor, share: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """A still as bright as the share of heads that keep what lies there; dark where none does."""
    at = [torch.arange(pixels) * n // pixels // size
          for pixels, n, size in zip(still.shape[1:], grid[1:], TILE[1:], strict=True)]  # fmt: skip
    return still * (0.12 + 0.88 * share[at[0][:, None], at[1]].sqrt())


def _outline(
    axis: Any, tile: tuple[int, int, int], pixels: tuple[int, int], grid: tuple[int, int, int]
) -> None:
    from matplotlib.patches import Rectangle

    row, col = (size * n / tokens for size, n, tokens in zip(TILE[1:], pixels, grid[1:], strict=True))
    corner = (tile[2] * col, tile[1] * row)
    axis.add_patch(Rectangle(corner, col, row, fill=False, edgecolor=MARK, linewidth=2.5))


def _title(axis: Any, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=10, color=INK)
