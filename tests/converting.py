"""A small sharp attention, what it has to give when sparse, and a backend that converts without Inductor."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import vsa_compile
from vsa_compile.convert.judge import Decision

Grid = tuple[int, int, int]
OPTIONS = {"min_tokens": 0, "tile": (2, 2, 2), "sparsity": 0.5}
RESOLUTIONS = [(3 + i % 4, 4 + i % 5, 9 - i % 3) for i in range(12)]


def latents(grid: Grid, seed: int = 0) -> Tensor:
    """(1, 32, frames, rows, cols), channels last in memory; sharp, so that a wrong tile shows."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(1, *grid, 32, generator=generator).permute(0, 4, 1, 2, 3)


def heads(x: Tensor) -> Tensor:
    """(1, 32, frames, rows, cols) -> (1, 2, tokens, 16)."""
    return x.flatten(2).transpose(1, 2).unflatten(-1, (2, 16)).transpose(1, 2)


def attend(x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    tokens = heads(x)
    return F.scaled_dot_product_attention(tokens, tokens * 0.5, tokens * gain)


def by_hand(x: Tensor, grid: Grid) -> Tensor:
    """What `attend` has to give when it is sparse."""
    tokens = heads(x)
    return vsa_compile.attention(tokens, tokens * 0.5, tokens, grid=grid, tile=(2, 2, 2), sparsity=0.5)


def converting(graphs: list[list[Decision]], then: str = "eager", **options: Any) -> Callable:
    """A backend that converts, notes its decisions, and runs the graph without Inductor."""
    settings = vsa_compile.Options.read(OPTIONS | options)

    def convert(module: torch.fx.GraphModule, example_inputs: list, **_: Any) -> Callable:
        graphs.append(vsa_compile.backend.convert(module, settings))
        # Inductor alone does not know our sources, and would find what it made of the graph before an edit.
        with torch.compiler.config.patch(cache_key_tag=vsa_compile.backend.source_hash().hex()):
            return torch._dynamo.lookup_backend(then)(module, example_inputs)

    return convert
