"""The model of the demo, and what it is given: diffusers' own Wan transformer, with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from demo_size import Grid, Layers, Plan
from diffusers import WanTransformer3DModel
from torch import Tensor

Inputs = dict[str, Any]

NOISE = 0.3  # share of noise in the latent: flow matching's sigma

# As wide as Wan2.1-1.3B, which has 30 such layers; and a toy.
WAN = {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "ffn_dim": 8960,
    "text_dim": 4096,
    "num_layers": 1,
}
TOY = {"num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 256, "text_dim": 64, "num_layers": 1}


@dataclass(frozen=True)
class Size:
    """What is run: the model's sizes, the grids, the type of its numbers, the rounds of the race."""

    model: dict[str, int]
    prompt_tokens: int
    video: Grid  # what is timed
    short: (
        Grid  # what is compiled and trained on; with one tile along an axis it would compile for that alone
    )
    dtype: torch.dtype
    rounds: int

    @classmethod
    def of(cls, plan: Plan) -> Size:
        return cls(WAN, 512, plan.grid, (5, 10, 16), plan.dtype, plan.rounds)


QUICK = Size(TOY, 20, (9, 14, 22), (9, 14, 22), torch.bfloat16, 3)
TINY = Size(TOY, 20, (5, 7, 9), (5, 7, 9), torch.float32, 1)


def wan(size: Size) -> WanTransformer3DModel:
    """diffusers' own random weights, in bf16 but for the parts that diffusers keeps in fp32.

    Keys are projected as queries are: tokens attend to what is like them. Random projections attend almost
    everywhere, which no trained model does, and then there is nothing to choose.
    """
    torch.manual_seed(0)
    model = WanTransformer3DModel(**size.model, qk_norm="rms_norm_across_heads", cross_attn_norm=True)
    for block in model.blocks:
        block.attn1.to_k.load_state_dict(block.attn1.to_q.state_dict())
    for name, parameter in model.named_parameters():
        if not any(kept in name for kept in model._keep_in_fp32_modules):
            parameter.data = parameter.data.to(size.dtype)
    return model


def cost(model: dict[str, int]) -> Layers:
    """What a forward pass costs, from the weights of a model on the meta device, which holds no numbers."""
    with torch.device("meta"):
        weights = sum(p.numel() for p in WanTransformer3DModel(**model).blocks.parameters())
    return Layers(weights, model["num_attention_heads"] * model["attention_head_dim"], model["num_layers"])


def noise(grid: Grid) -> Tensor:
    shape = (1, 16, grid[0], 2 * grid[1], 2 * grid[2])
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def under_noise(size: Size, latent: Tensor, device: str = "cpu") -> Inputs:
    """The model's arguments: a latent (1, 16, frames, 2 rows, 2 cols) under noise, a random prompt."""
    _, _, frames, rows, cols = latent.shape
    mixed = (1 - NOISE) * latent + NOISE * noise((frames, rows // 2, cols // 2))
    prompt = torch.randn(
        1, size.prompt_tokens, size.model["text_dim"], generator=torch.Generator().manual_seed(3)
    )
    return {
        "hidden_states": mixed.to(device, size.dtype),
        "timestep": torch.tensor([1000 * NOISE], device=device),
        "encoder_hidden_states": prompt.to(device, size.dtype),
    }


@contextmanager
def silenced(model: WanTransformer3DModel) -> Iterator[None]:
    """The model without its self-attention: the projections behind it give 0."""
    parameters = [p for block in model.blocks for p in block.attn1.to_out.parameters()]
    values = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
        yield
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def moved(output: Tensor, reference: Tensor) -> float:
    """Relative L2 difference."""
    return ((output - reference).norm() / reference.norm()).item()
