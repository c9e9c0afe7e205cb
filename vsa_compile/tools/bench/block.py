"""A transformer block around the attention, to measure what a model would gain."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .work import Work

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """Self-attention and an MLP of four times the width, normed, scaled and gated: (1, N, C) -> the same."""

    def __init__(self, work: Work, attend: Attend = F.scaled_dot_product_attention) -> None:
        super().__init__()
        channels = work.plan.heads * work.width
        self.heads, self.attend = work.plan.heads, attend
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.norm_q, self.norm_k = nn.RMSNorm(work.width), nn.RMSNorm(work.width)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU("tanh"), nn.Linear(4 * channels, channels)
        )
        self.modulation = nn.Parameter(0.1 * torch.randn(6, channels))

    def forward(self, x: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation.unbind()
        normed = F.layer_norm(x, x.shape[-1:]) * (1 + scale1) + shift1
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(normed).chunk(3, -1))
        seen = self.attend(self.norm_q(q), self.norm_k(k), v)
        x = x + gate1 * self.out(seen.transpose(1, 2).flatten(2))
        return x + gate2 * self.mlp(F.layer_norm(x, x.shape[-1:]) * (1 + scale2) + shift2)


def make_block(work: Work, attend: Attend = F.scaled_dot_product_attention) -> Block:
    """The block with the same weights for every contender."""
    torch.manual_seed(0)
    return Block(work, attend).to(work.plan.device, work.plan.dtype)


def tokens(work: Work) -> tuple[Tensor, Tensor]:
    """x and a gradient of the block's output, (1, N, C)."""
    return work.q.transpose(1, 2).flatten(2), work.grad.transpose(1, 2).flatten(2)
