"""A small video transformer with every habit of the real ones as a switch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Habits:
    """How the toy model is written. `text` is "none", "before" or "after"."""

    text: str = "none"
    mask: bool = False
    spelling: str = "keywords"
    checkpointed: bool = False
    groups: int = 1
    fused: bool = False
    blocks: int = 1
    dropout: float = 0.0
    causal: bool = False
    scale: float | None = None


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, habits: Habits):
        super().__init__()
        self.heads, self.habits = heads, habits
        kv_width = width // habits.groups
        self.to_qkv = nn.Linear(width, width + 2 * kv_width) if habits.fused else None
        if not habits.fused:
            self.to_q = nn.Linear(width, width)
            self.to_k = nn.Linear(width, kv_width)
            self.to_v = nn.Linear(width, kv_width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x, mask):
        q, k, v = self._project(x)
        width = q.shape[-1] // self.heads
        q, k, v = (t.unflatten(-1, (-1, width)).transpose(1, 2) for t in (q, k, v))
        return self.to_out(self._attend(q, k, v, mask).transpose(1, 2).flatten(2))

    def _project(self, x):
        if self.to_qkv is None:
            return self.to_q(x), self.to_k(x), self.to_v(x)
        kv_width = x.shape[-1] // self.habits.groups
        return self.to_qkv(x).split([x.shape[-1], kv_width, kv_width], dim=-1)

    def _attend(self, q, k, v, mask):
        habits, gqa = self.habits, self.habits.groups > 1
        if habits.spelling == "positional":
            return F.scaled_dot_product_attention(
                q, k, v, mask, habits.dropout, habits.causal, scale=habits.scale, enable_gqa=gqa
            )
        return F.scaled_dot_product_attention(
            query=q, key=k, value=v, attn_mask=mask, dropout_p=habits.dropout, is_causal=habits.causal,
            scale=habits.scale, enable_gqa=gqa,
        )  # fmt: skip


class Block(nn.Module):
    def __init__(self, width: int, heads: int, habits: Habits):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = Attention(width, heads, habits)
        self.ffn = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x, mask):
        x = x + self.attn(self.norm(x), mask)
        return x + self.ffn(x)


class ToyDiT(nn.Module):
    """(B, 4, frames, 2 rows, 2 cols) latents, (B, L, width) text -> latents of the same shape."""

    def __init__(self, habits: Habits = Habits(), width: int = 64, heads: int = 4, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.habits = habits
        self.patch = nn.Conv3d(4, width, (1, 2, 2), stride=(1, 2, 2))
        self.blocks = nn.ModuleList(Block(width, heads, habits) for _ in range(habits.blocks))
        self.unpatch = nn.Linear(width, 16)
        for parameter in self.parameters():  # sharp attention, so that a wrong tile shows
            nn.init.normal_(parameter, std=0.25 if parameter.dim() > 1 else 0.1)

    def forward(self, latents, text=None, text_mask=None):
        batch, _, frames, rows, cols = latents.shape
        x = self.patch(latents).flatten(2).transpose(1, 2)
        video = x.shape[1]
        mask = None
        if self.habits.text == "after":
            x = torch.cat([x, text], dim=1)
            if self.habits.mask:
                seen = torch.ones(batch, video, dtype=torch.bool, device=x.device)
                mask = torch.cat([seen, text_mask], dim=1)[:, None, None, :]
        elif self.habits.text == "before":
            x = torch.cat([text, x], dim=1)
            if self.habits.mask:
                mask = F.pad(text_mask, (0, video), value=True)[:, None, None, :]
        for block in self.blocks:
            if self.habits.checkpointed:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        if self.habits.text == "after":
            x = x[:, :video]
        elif self.habits.text == "before":
            x = x[:, -video:]
        x = self.unpatch(x).reshape(batch, frames, rows // 2, cols // 2, 2, 2, 4)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(latents.shape)


def inputs(habits: Habits, grid=(5, 6, 7), batch=2, width=64, text_tokens=9, seed=1):
    """Arguments of ToyDiT.forward for a token grid."""
    generator = torch.Generator().manual_seed(seed)
    frames, rows, cols = grid
    latents = torch.randn(batch, 4, frames, 2 * rows, 2 * cols, generator=generator)
    if habits.text == "none":
        return (latents,)
    text = torch.randn(batch, text_tokens, width, generator=generator)
    if not habits.mask:
        return latents, text
    lengths = torch.arange(batch)[:, None] * 3 + 4
    return latents, text, torch.arange(text_tokens)[None] < lengths
