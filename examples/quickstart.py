"""Sparse video attention in one line, on a toy-sized Wan transformer: seconds on any CPU, after compiling."""

from typing import Any

import torch
from diffusers import WanTransformer3DModel

import vsa_compile

torch.manual_seed(0)
model = WanTransformer3DModel(
    num_attention_heads=4, attention_head_dim=32, text_dim=64, freq_dim=64, ffn_dim=256, num_layers=2
).eval()
clip = {
    "hidden_states": torch.randn(1, 16, 9, 28, 44),  # patches of (1, 2, 2): 9 x 14 x 22 = 2,772 tokens
    "timestep": torch.tensor([500.0]),
    "encoder_hidden_states": torch.randn(1, 20, 64),  # the prompt
}
# Real videos need no options: torch.compile(model, backend="vsa")
options: dict[str, Any] = {"sparsity": 0.75, "min_tokens": 0}

print(vsa_compile.explain(model, options=options, **clip))

sparse = torch.compile(model, backend="vsa", options=options)
with torch.no_grad():
    dense_out, sparse_out = model(**clip).sample, sparse(**clip).sample
print(f"Relative difference to dense: {(sparse_out - dense_out).norm() / dense_out.norm():.4f}")
