"""Inputs of one shape, the tasks that contenders are timed by, and the least that they cost.

Notation: B batch (1), H heads, N tokens, D head width, C = H * D.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...grid import Grid, TileGrid
from ...ops.flops import attended_pairs
from .clock import Task
from .lists import Lists, kept, pairs
from .plan import Plan

BY_LISTS = ("forward", "backward")  # parts with given lists; the other parts select their own
OURS_ALONE = ("coarse",)
_FORWARD, _BACKWARD = 2, 5  # products of 2 D FLOPs for each query-key pair
_numbers = itertools.count()


@dataclass(frozen=True)
class Work:
    """One grid and head width with its inputs: random normal, because constant data would draw less power."""

    plan: Plan
    grid: Grid
    width: int
    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor
    grad: Tensor

    @classmethod
    def make(cls, plan: Plan, grid: Grid, width: int) -> Work:
        """Make q, k, v, gate, grad: (1, H, N, D) views of (1, N, H, D), as in models."""
        source = torch.Generator(plan.device).manual_seed(0)
        shape = (1, grid.tokens, plan.heads, width)

        def normal() -> Tensor:
            return torch.randn(shape, generator=source, device=plan.device, dtype=plan.dtype).transpose(1, 2)

        return cls(plan, grid, width, *(normal() for _ in range(5)))

    @property
    def boxes(self) -> TileGrid:
        return TileGrid(self.grid, self.plan.tile)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    @property
    def fill(self) -> float:
        """The share of tile slots that hold a token."""
        return self.grid.tokens / (self.boxes.tiles * self.boxes.tile_tokens)

    def attended(self, density: float | None, lists: Lists | None) -> int:
        """Query-key pairs of all heads; without a density dense, without lists by the mean tile."""
        tokens = self.grid.tokens
        if density is None:
            return self.plan.heads * tokens**2
        if lists is not None:
            return pairs(lists, self.boxes)
        listed = kept(self.boxes, density)
        return self.plan.heads * attended_pairs(tokens, tokens, self.grid, self.plan.tile, listed)

    def flops(self, part: str, density: float | None, lists: Lists | None) -> int:
        """FLOPs of a part; the backward's recomputation of scores counts for all contenders alike."""
        if part == "coarse":
            return 4 * self.width * self.plan.heads * self.boxes.tiles**2
        products = {"forward": _FORWARD, "backward": _BACKWARD, "whole": _FORWARD, "block": _FORWARD}
        count = products.get(part, _FORWARD + _BACKWARD)
        attention = 2 * self.width * count * self.attended(density, lists)
        if not part.startswith("block"):
            return attention
        channels = self.plan.heads * self.width
        linear = 2 * 12 * channels**2 * self.grid.tokens
        return attention + linear * (1 if part == "block" else 3)

    def least_bytes(self, part: str) -> int | None:
        """Bytes if operands are read and results written once; None for parts that are not plotted."""
        tensors = {"forward": 4, "backward": 8}.get(part)
        return None if tensors is None else tensors * self.q.numel() * self.q.element_size()


def fresh(function: Callable) -> Callable:
    """The function with a code object of its own: Dynamo stores and limits compiled versions by code object,
    so that contenders would find each other's."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    copy = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def timed(part: str, attention: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor) -> Task:
    """The task of a part: forward without autograd, backward alone, or both for "...-training"."""
    leaves = [x.detach().requires_grad_() for x in inputs]

    def forward(_: object) -> Tensor:
        with torch.no_grad():
            return attention(*inputs)

    def backward(out: Tensor) -> object:
        return torch.autograd.grad(out, leaves, grad)

    if part == "backward":
        return Task(backward, prepare=lambda: attention(*leaves))
    if part.endswith("-training"):
        return Task(lambda _: backward(attention(*leaves)))
    return Task(forward)
