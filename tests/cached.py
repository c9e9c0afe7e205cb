"""Compilations that say what the caches answered.

All run under a cache tag of this process, so that everything begins unknown while the compiled C++ of earlier
runs is still at hand.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

import vsa_compile
from vsa_compile import methods

GRID = (2, 4, 4)
OPTIONS = {"min_tokens": 0, "tile": (2, 2, 2), "sparsity": 0.5}
TAG = str(uuid.uuid4())


class Attend(nn.Module):
    """(B, 16, frames, rows, cols) -> one head of attention over its tokens."""

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, latents: Tensor) -> Tensor:
        tokens = latents.flatten(2).transpose(1, 2)[:, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens, scale=self.scale)


def model(scale: float | None = None) -> nn.Module:
    """Attention in block 0."""
    return nn.Sequential(Attend(scale))


def by_hand(latents: Tensor) -> Tensor:
    tokens = latents.flatten(2).transpose(1, 2)[:, None]
    return vsa_compile.attention(tokens, tokens, tokens, grid=GRID, tile=(2, 2, 2), sparsity=0.5)


def hidden(tokens: Tensor) -> Tensor:
    """Attention over tokens whose grid the graph does not show."""
    return F.scaled_dot_product_attention(tokens, tokens, tokens)


def latents(grid: tuple[int, int, int] = GRID, batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Channels last, so that tokens are rows of memory and dense attention needs no kernel of Inductor's."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *grid, 16, generator=generator).to(dtype).permute(0, 4, 1, 2, 3)


@dataclass(frozen=True)
class Seen:
    """One compilation: what the two caches said, what the backend did, the output."""

    aot: dict[str, int]
    inductor: dict[str, int]
    ours: dict[str, int]
    out: Tensor

    @property
    def found(self) -> bool:
        assert not self.aot.get("autograd_cache_bypass")
        hits, misses = (self.aot.get(f"autograd_cache_{kind}", 0) for kind in ("hit", "miss"))
        assert hits + misses == 1
        return hits == 1

    @property
    def found_code(self) -> bool:
        return self.inductor.get("fxgraph_cache_hit", 0) > 0


@dataclass(frozen=True)
class Run:
    """A function, its argument and how it is compiled."""

    function: Callable[[], Callable] = model
    argument: Callable[[], Tensor] = latents
    options: dict[str, Any] = field(default_factory=dict)
    backend: Any = "vsa"
    dynamic: bool | None = None
    autocast: bool = False
    grad: bool = False

    def __call__(self) -> Seen:
        torch._dynamo.reset()
        counters.clear()
        options = OPTIONS | self.options if self.backend != "inductor" else None
        compiled = torch.compile(self.function(), backend=self.backend, options=options, dynamic=self.dynamic)
        with (
            torch.compiler.config.patch(cache_key_tag=TAG),
            torch.set_grad_enabled(self.grad),
            torch.autocast("cpu", torch.bfloat16, enabled=self.autocast),
        ):
            out = compiled(self.argument().requires_grad_(self.grad))
            if self.grad:  # the backward is compiled, and the entry complete, when it first runs
                out.sum().backward()
        tables = (dict(counters[name]) for name in ("aot_autograd", "inductor", "vsa_compile"))
        return Seen(*tables, out.detach())


BASE = Run()

# Dense: nothing but wrapper code, so that a miss costs next to nothing. The key is made all the same.
DENSE = Run(options={"sparsity": 0})


def dense(**change: Any) -> Run:
    return Run(**change | {"options": {"sparsity": 0} | change.get("options", {})})


def assert_found_with_the_same_bits(run: Run, first: Seen) -> None:
    again = run()
    assert again.found, again
    assert again.ours == first.ours
    assert torch.equal(again.out, first.out)


def halved(*arguments: Any) -> Tensor:
    """A second method."""
    return methods.vsa(*arguments) / 2
