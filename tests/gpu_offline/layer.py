"""The attention half of a video transformer's block, which the rendered training graphs are of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from random_models import rope
from torch import Tensor, nn

GRID = (21, 30, 52)  # Wan 2.1 at 480p; of its axes only the last is a multiple of the tile
HEADS, WIDTH = 12, 128
TOKENS, CHANNELS = GRID[0] * GRID[1] * GRID[2], HEADS * WIDTH


class Layer(nn.Module):
    """Norm, modulation, projections, norms, RoPE; SDPA; projection, gate, residual. (B, N, C) -> alike."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(3, CHANNELS))
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(CHANNELS, CHANNELS) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift, scale, gate = self.modulation.unbind()
        hidden = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
        q, k, v = (
            project(hidden).unflatten(-1, (HEADS, WIDTH)) for project in (self.to_q, self.to_k, self.to_v)
        )
        q, k = (
            rope.rotate("interleaved", norm(y), (cos, sin), tokens=1)
            for norm, y in ((self.norm_q, q), (self.norm_k, k))
        )
        seen = F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)))
        return x + gate * self.to_out(seen.transpose(1, 2).flatten(2))


def make_layer(*, batch: int = 1, trained: bool = True) -> tuple[Layer, list[Tensor]]:
    """The layer in bf16, with x, cos and sin, all on the meta device."""
    with torch.device("meta"):
        layer = Layer().bfloat16().requires_grad_(trained)
        x = torch.empty(batch, TOKENS, CHANNELS, dtype=torch.bfloat16, requires_grad=trained)
        return layer, [x, torch.empty(TOKENS, WIDTH), torch.empty(TOKENS, WIDTH)]
