"""The smallest models of what was once believed of a graph and is not so, and what becomes of their calls.

A call that must not convert also has to give the numbers of the model, with every tile kept; one that must
convert shows that the cure took nothing that is true.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from compare import assert_same_output
from torch import Tensor, nn

import vsa_compile
from vsa_compile.convert.judge import Conversion

GRID, VIDEO, TEXT, WIDTH = (4, 4, 4), 64, 8, 16
ORDER = torch.randperm(VIDEO, generator=torch.Generator().manual_seed(0))
BACK = ORDER.argsort()
sdpa = F.scaled_dot_product_attention


def heads(x: Tensor) -> Tensor:
    """(B, N, 16) -> (B, 2, N, 8)."""
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


def attention(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, N, 16) alike. mask: (B or 1, 1, 1, N) or None."""
    return sdpa(heads(x), heads(x), heads(x), attn_mask=mask).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, *tokens: Tensor) -> Tensor:
        return self.attend(*tokens)


class Model(nn.Module):
    """Latents (B, 4, frames, rows, cols) -> tokens (B, N, 16) in raster order -> what `attend` gives.

    `before`: what becomes of the tokens on the way to the block.
    """

    def __init__(
        self, attend: Callable[..., Tensor], before: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv3d(4, WIDTH, 1)
        self.before = before
        self.blocks = nn.ModuleList([Block(attend)])

    def tokens(self, latents: Tensor) -> Tensor:
        return self.before(self.patch(latents).flatten(2).transpose(1, 2))

    def forward(self, latents: Tensor, *rest: Tensor) -> Tensor:
        return self.blocks[0](self.tokens(latents), *rest)


class TwoVideos(Model):
    """Another video of the same grid goes through the same patch embedding."""

    def forward(self, latents: Tensor, *rest: Tensor) -> Tensor:
        return self.blocks[0](self.tokens(latents), self.tokens(rest[0]), *rest[1:])


def latents(batch: int = 2, seed: int = 0, grid: tuple[int, ...] = GRID) -> Tensor:
    return torch.randn(batch, 4, *grid, generator=torch.Generator().manual_seed(seed))


def fates(
    model: nn.Module, *args: Tensor, context: Any = None, texts: list[str] | None = None, **options: Any
) -> list[Any]:
    """The grid of every call that converts, the reason's slug of every one that does not.

    The converted graph must compute what the model does. `texts` is given the reasons.
    """
    found: list[Any] = []
    settings = vsa_compile.Options.read({"min_tokens": 0, "sparsity": 1e-6} | options)

    def backend(module: torch.fx.GraphModule, example_inputs: list) -> Callable:
        for one in vsa_compile.backend.convert(module, settings):
            found.append(tuple(one.grid) if isinstance(one, Conversion) else one.reason.slug)
            if texts is not None and not isinstance(one, Conversion):
                texts.append(one.reason.text)
        return module.forward

    torch._dynamo.reset()
    with torch.no_grad():
        with context or nullcontext():
            got = torch.compile(model, backend=backend, dynamic=False)(*(x.clone() for x in args))
        assert_same_output(got, model(*(x.clone() for x in args)))
    return found


def dense(found: list[Any]) -> bool:
    """Whether there are calls, none of which converts."""
    return bool(found) and all(isinstance(one, str) for one in found)


def tiled(volume: Tensor) -> Tensor:
    """(B, C, frames, rows, cols) -> (B, C, N), tile by tile of (2, 2, 2)."""
    parts = volume.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return parts.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(2)
