"""The attention half of a video transformer's block, as the rendered training graphs see it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from random_models import rope
from torch import Tensor, nn

GRID = (21, 30, 52)  # Wan 2.1's 480p: no axis but the last is a multiple of the tile
HEADS, WIDTH = 12, 128


class Layer(nn.Module):
    """Normed, modulated, projected, normed again and turned; SDPA; projected, gated and added to x.

    x (B, N, C) -> alike. across: q and k are normed over all heads at once, as Wan does, not head by head.
    """

    def __init__(self, *, across: bool = False) -> None:
        super().__init__()
        channels, normed = HEADS * WIDTH, HEADS * WIDTH if across else WIDTH
        self.across = across
        self.modulation = nn.Parameter(torch.zeros(3, channels))
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(channels, channels) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(normed), nn.RMSNorm(normed)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift, scale, gate = self.modulation.unbind()
        hidden = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
        q, k = self._turned(self.to_q(hidden), self.norm_q, cos, sin), self._turned(
            self.to_k(hidden), self.norm_k, cos, sin
        )
        v = self.to_v(hidden).unflatten(-1, (HEADS, WIDTH))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        seen = F.scaled_dot_product_attention(q, k, v)
        return x + gate * self.to_out(seen.transpose(1, 2).flatten(2))

    def _turned(self, x: Tensor, norm: nn.Module, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, H, D), normed, with the position in it."""
        heads = (HEADS, WIDTH)
        x = norm(x).unflatten(-1, heads) if self.across else norm(x.unflatten(-1, heads))
        return rope.rotate("interleaved", x, (cos, sin), tokens=1)


def inputs(batch: int = 1) -> list[Tensor]:
    """x, cos and sin."""
    tokens = GRID[0] * GRID[1] * GRID[2]
    x = torch.empty(batch, tokens, HEADS * WIDTH, dtype=torch.bfloat16, requires_grad=True)
    return [x, *(torch.empty(tokens, WIDTH) for _ in range(2))]
