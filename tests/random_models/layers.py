"""Attention, feed-forward and block of the random models: every spelling that a `Block` asks for."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import kinds, rope
from .plan import Block, Plan


class Heads(nn.Module):
    """Tokens (B, N, dim) -> q, k, v (B, heads, N, width)."""

    def __init__(self, plan: Plan, block: Block):
        super().__init__()
        self.block, self.heads, self.width = block, plan.heads, plan.width
        self.kv_heads = plan.heads // block.groups
        sizes = [plan.dim, self.kv_heads * plan.width, self.kv_heads * plan.width]
        self.sizes = sizes
        if block.qkv == "separate":
            self.to_q, self.to_k, self.to_v = (nn.Linear(plan.dim, size) for size in sizes)
        else:
            self.to_qkv = nn.Linear(plan.dim, sum(sizes))
        if block.norm == "wide" and block.qkv in ("separate", "chunk", "split"):
            self.norm_q, self.norm_k = nn.RMSNorm(sizes[0]), nn.RMSNorm(sizes[1])
        elif block.norm != "none":
            norm = nn.LayerNorm if block.norm == "layer" else nn.RMSNorm
            self.norm_q, self.norm_k = norm(plan.width), norm(plan.width)

    def forward(self, x: Tensor, context: Tensor | None, tables: rope.Tables | None) -> list[Tensor]:
        q, k, v = self._project(x)
        if context is not None:
            _, k, v = self._project(context)
        if self.block.norm != "none" and not self._wide:
            q, k = self.norm_q(q), self.norm_k(k)
        first = self.block.rope_first
        if tables is not None and first:
            q, k = (rope.rotate(self.block.rope, x, tables, 1) for x in (q, k))
        q, k, v = (self._forward_heads(x) for x in (q, k, v))
        if tables is not None and not first:
            q, k = (rope.rotate(self.block.rope, x, tables, 2) for x in (q, k))
        return [q, k, v]

    @property
    def _wide(self) -> bool:
        return self.block.norm == "wide" and self.block.qkv in ("separate", "chunk", "split")

    def _project(self, x: Tensor) -> list[Tensor]:
        """Three tensors (B, N, heads, width)."""
        qkv, shape = self.block.qkv, (*x.shape[:2], -1, self.width)
        if qkv == "unbind":
            return list(self.to_qkv(x).view(*x.shape[:2], 3, self.heads, self.width).unbind(2))
        if qkv == "permute":
            three = self.to_qkv(x).reshape(x.shape[0], x.shape[1], 3, self.heads, self.width)
            three = three.permute(2, 0, 3, 1, 4)
            return [three[0].transpose(1, 2), three[1].transpose(1, 2), three[2].transpose(1, 2)]
        if qkv == "separate":
            parts = [self.to_q(x), self.to_k(x), self.to_v(x)]
        elif qkv == "chunk":
            parts = list(self.to_qkv(x).chunk(3, dim=-1))
        else:
            parts = list(self.to_qkv(x).split(self.sizes, dim=-1))
        if self._wide:
            parts[:2] = [self.norm_q(parts[0]), self.norm_k(parts[1])]
        if self.block.merge == "flatten":
            return [part.unflatten(-1, (-1, self.width)) for part in parts]
        return [part.reshape(shape) if self.block.merge == "reshape" else part.view(shape) for part in parts]

    def _forward_heads(self, x: Tensor) -> Tensor:
        batch, tokens, heads, width = x.shape
        if self.block.heads == "transpose":
            x = x.transpose(1, 2)
        elif self.block.heads == "permute":
            x = x.permute(0, 2, 1, 3)
        else:  # as nn.MultiheadAttention does: tokens in front, batch and heads in one dimension
            x = x.transpose(0, 1).reshape(tokens, batch * heads, width).transpose(0, 1)
            x = x.reshape(batch, heads, tokens, width)
        return x.contiguous() if self.block.contiguous else x


class Attention(nn.Module):
    """One attention call of a block's kind."""

    def __init__(self, plan: Plan, block: Block):
        super().__init__()
        self.plan, self.block = plan, block
        self.heads = Heads(plan, block)
        if block.kind.startswith("two-stream"):
            self.text_heads = Heads(plan, block)
        self.registers = nn.Parameter(torch.zeros(1, 2, plan.dim))
        self.to_out = nn.Linear(plan.dim, plan.dim)

    def forward(self, x: Tensor, scene: "kinds.Scene") -> tuple[Tensor, Tensor | None]:
        """What the video tokens (B, N, dim) and the text get added."""
        return kinds.KINDS[self.block.kind].run(self, x, scene)

    def plain(self, x: Tensor, context: Tensor | None = None, tables: rope.Tables | None = None, **sdpa):
        """Attention of x to `context` or to itself."""
        return self.attend(*self.heads(x, context, tables), **sdpa)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask=None, dropout: float = 0.0, causal: bool = False):
        """SDPA as the block spells it: q, k, v (B, heads, N, width) -> (B, N, dim)."""
        block, groups = self.block, q.shape[1] // k.shape[1]
        if groups > 1 and block.gqa != "flag":
            k, v = (self._repeated(x, groups) for x in (k, v))
            groups = 1
        if block.positional:
            out = F.scaled_dot_product_attention(
                q, k, v, mask, dropout, causal, scale=block.scale, enable_gqa=groups > 1
            )
        elif mask is None and not dropout and not causal and groups == 1 and block.scale is None:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = F.scaled_dot_product_attention(
                value=v, key=k, query=q, attn_mask=mask, dropout_p=dropout, is_causal=causal,
                scale=block.scale, enable_gqa=groups > 1,
            )  # fmt: skip
        return self.to_out(self._merged(out))

    def _repeated(self, x: Tensor, groups: int) -> Tensor:
        if self.block.gqa == "repeat":
            return x.repeat_interleave(groups, dim=1)
        batch, heads, tokens, width = x.shape
        return x[:, :, None].expand(-1, -1, groups, -1, -1).reshape(batch, heads * groups, tokens, width)

    def _merged(self, out: Tensor) -> Tensor:
        batch, heads, tokens, width = out.shape
        if self.block.merge == "flatten":
            return out.transpose(1, 2).flatten(2)
        if self.block.merge == "reshape":
            return out.permute(0, 2, 1, 3).reshape(batch, tokens, heads * width)
        return out.transpose(1, 2).contiguous().view(batch, -1, heads * width)


class TransformerBlock(nn.Module):
    """Norm, modulation, attention, feed-forward, with residuals around them."""

    def __init__(self, plan: Plan, block: Block):
        super().__init__()
        self.block = block
        self.norm, self.attn = nn.LayerNorm(plan.dim), Attention(plan, block)
        self.modulation = nn.Linear(plan.dim, 3 * plan.dim)
        self.ffn = nn.Sequential(
            nn.LayerNorm(plan.dim),
            nn.Linear(plan.dim, 2 * plan.dim),
            nn.GELU(),
            nn.Linear(2 * plan.dim, plan.dim),
        )

    def forward(self, x: Tensor, scene: "kinds.Scene") -> tuple[Tensor, Tensor]:
        """Video tokens (B, N, dim) and a scene -> the next video tokens and the next text."""
        if self.block.checkpointed:
            return checkpoint(self._autocast, x, scene, use_reentrant=False)
        return self._autocast(x, scene)

    def _autocast(self, x: Tensor, scene: "kinds.Scene") -> tuple[Tensor, Tensor]:
        if not self.block.autocast:
            return self._forward(x, scene)
        with torch.autocast(x.device.type, torch.bfloat16):
            return self._forward(x, scene)

    def _forward(self, x: Tensor, scene: "kinds.Scene") -> tuple[Tensor, Tensor]:
        normed, gate = self.norm(x), 1.0
        if self.block.modulated:
            shift, scale, gate = self.modulation(scene.time)[:, None].chunk(3, dim=-1)
            normed = normed * (1 + scale) + shift
        video, text = self.attn(normed, scene)
        x = x + gate * video
        x = self._held(x + self.ffn(x), scene.grid)
        return x, scene.text if text is None else scene.text + text

    def _held(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """The video tokens through the layout in which the model keeps them between its blocks."""
        frames, rows, cols = grid
        held = self.block.held
        if held == "frames":
            return (x.view(x.shape[0], frames, rows * cols, -1) + 1).flatten(1, 2)
        if held == "grid":
            return (x.unflatten(1, (frames, rows, cols)) * 2).reshape(x.shape)
        if held == "channels":
            volume = x.transpose(1, 2).reshape(x.shape[0], -1, frames, rows, cols)
            return F.relu(volume).flatten(2).transpose(1, 2) + x
        return x
