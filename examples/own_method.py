"""A sparse attention method of one's own: the best tiles, and always those of one's own frames.

A method is a composition of small parts. Here one part is new: a rule in plain PyTorch, the same on CPU and
GPU, eager and compiled, forward and backward. Its source is part of the key under which compiled code is
cached.
"""

from dataclasses import dataclass

import torch

import vsa_compile
from vsa_compile.methods import Method, Selector, TopK


# --- The method, in ten lines ---
@dataclass(frozen=True)
class OwnFrames(Selector):
    """Every query tile sees all tiles that lie in the same frames."""

    def mask(self, scores, queries):
        frames, rows, cols = queries.site.boxes.shape  # in tiles
        frame = torch.arange(frames * rows * cols, device=queries.q.device) // (rows * cols)
        return frame[:, None] == frame

    def width(self, queries):
        _, rows, cols = queries.site.boxes.shape
        return rows * cols


vsa_compile.register_method("own_frames", Method(selector=TopK() | OwnFrames()))
# --- That is all ---


def model(latents):
    """(1, 128, frames, rows, cols) -> (1, 4 heads, tokens, 32)."""
    q = k = v = latents.flatten(2).transpose(1, 2).unflatten(-1, (4, 32)).transpose(1, 2)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


torch.manual_seed(0)
latents = torch.randn(1, 128, 8, 8, 16)
dense = model(latents)
for method in ("vsa", "own_frames"):
    options = {"method": method, "sparsity": 0.875, "min_tokens": 0}
    out = torch.compile(model, backend="vsa", options=options)(latents)
    print(f"{method:10s} moves the output of dense attention by {(out - dense).norm() / dense.norm():.3f}")
