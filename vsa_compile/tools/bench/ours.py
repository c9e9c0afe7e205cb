"""Our attention as users call it: through torch.compile(..., backend="vsa")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...backend import vsa
from ...grid import Grid
from ...methods import MeanDot, Queries, Site
from ...ops.functional import attention
from .block import make_block, tokens
from .clock import Task
from .lists import Lists, sparsity_of
from .work import Work, fresh, timed


def task(part: str, work: Work, density: float, lists: Lists | None) -> Task:
    """One part of the operator, compiled."""
    if part.startswith("block"):
        return _block(part, work, density)
    if lists is not None:
        return timed(part, _compiled(fine(work, lists), work), work.inputs, work.grad)
    if part == "coarse":
        compiled = _compiled(_coarse(work, density), work)
        return timed(part, compiled, work.inputs, work.grad)
    return timed(part, _compiled(_whole(work, density), work), (*work.inputs, work.gate), work.grad)


def _compiled(function: Callable, work: Work, **options: Any) -> Callable:
    if work.plan.autotune:
        options["mode"] = "max-autotune-no-cudagraphs"
    return torch.compile(fresh(function), backend=vsa, fullgraph=True, dynamic=False, options=options)


def tiled_task(part: str, work: Work, lists: Lists) -> Task | str:
    """The same kernel on tokens in tile order; or why that cannot be compared."""
    if work.fill < 1:
        return "its border tiles are smaller, which tile order has no place for"
    frames, rows, cols = work.plan.tile
    column = Grid(work.boxes.tiles * frames, rows, cols)
    return timed(part, _compiled(fine(work, lists, column), work), work.inputs, work.grad)


def fine(work: Work, lists: Lists, grid: Grid | None = None) -> Callable[..., Tensor]:
    """Exact attention over the lists; `grid`, if it is not the work's, must have as many tiles."""
    shape, tile, scale = list(grid or work.grid), list(work.plan.tile), work.width**-0.5

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, *_ = torch.ops.vsa_compile.attend(
            q, k, v, lists.tiles, lists.counts, shape, tile, 0, 0, None, scale
        )
        return out.transpose(1, 2)

    return attend


def _coarse(work: Work, density: float) -> Callable[..., tuple[Tensor, ...]]:
    """Everything in the operator except the fine attention, up to the coarse output of each tile."""
    site = Site(work.boxes, 0, 0, None, work.width**-0.5, sparsity_of(density))

    def coarse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        means = site.tile_means(q)
        scores = MeanDot()(means, k, site)
        tiles, counts = torch.ops.vsa_compile.select(scores, Queries(means, site, site.boxes).site.kept)
        return tiles, counts, scores.softmax(-1) @ site.tile_means(v)

    return coarse


def _whole(work: Work, density: float) -> Callable[..., Tensor]:
    where = {"grid": tuple(work.grid), "tile": work.plan.tile, "sparsity": sparsity_of(density)}

    def whole(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        return attention(q, k, v, gate=gate, **where)

    return whole


def _block(part: str, work: Work, density: float) -> Task:
    """The unmodified block, converted by the backend; raises an error if it is not converted."""
    block = make_block(work)
    x, grad = tokens(work)
    asked = {"sparsity": sparsity_of(density), "tile": work.plan.tile, "grid": tuple(work.grid)}
    compiled = _compiled(lambda x: block(x), work, min_tokens=0, fallback="error", **asked)
    return timed(part, compiled, (x,), grad)
