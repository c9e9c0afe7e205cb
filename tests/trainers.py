"""What the tests of trainers share: a gated toy model, its gradients, and sparse attention uncompiled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from toy import Habits, ToyDiT, inputs

import vsa_compile

GRID = (3, 4, 4)
OPTIONS = {"min_tokens": 0, "tile": (2, 2, 2), "sparsity": 0.5}
TWO_BLOCKS = Habits(blocks=2)
Gradients = dict[str, Tensor]


def gated(habits: Habits = TWO_BLOCKS, *, gates: bool = True) -> ToyDiT:
    """A toy model whose gates are open, as after some training."""
    model = ToyDiT(habits, width=32, heads=2)
    if gates:
        parameters = vsa_compile.add_gates(model, *clips(1), options=OPTIONS)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def clips(count: int, seed: int = 1) -> tuple[Tensor]:
    """Arguments of the model."""
    return inputs(Habits(), grid=GRID, batch=count, seed=seed)


def loss_of(model: Callable, latents: Tensor) -> Tensor:
    """A mean over clips, as trainers take it."""
    out = model(latents).float()
    weights = torch.linspace(-1, 1, out[0].numel()).reshape(out[0].shape)
    return (out * weights).sum() / len(out)


def gradients(model: nn.Module) -> Gradients:
    """Of every parameter: none may lack one. The names are those of the plain model."""
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        found[name.removeprefix("_orig_mod.").removeprefix("module.")] = parameter.grad.clone()
    return found


def trained_on(model: nn.Module, latents: Tensor) -> tuple[Tensor, Gradients]:
    """Loss and gradients of one batch."""
    model.zero_grad()
    loss = loss_of(model, latents)
    loss.backward()
    return loss.detach(), gradients(model)


@contextmanager
def by_hand(model: nn.Module, **options: Any) -> Iterator[nn.Module]:
    """The model, uncompiled, whose attention is the operator called by hand, with the gate of its block."""
    settings = OPTIONS | options
    hidden: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        block.attn.register_forward_pre_hook(lambda _, args, block=block: hidden.append((block, args[0])))
        for block in model.blocks
    ]

    def attend(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        block, x = hidden.pop()
        gate = None
        if hasattr(block, "to_gate_compress"):
            gate = block.to_gate_compress(x).unflatten(-1, (-1, query.shape[-1])).transpose(1, 2)
        given = {name: settings[name] for name in ("tile", "sparsity", "method") if name in settings}
        return vsa_compile.attention(query, key, value, gate=gate, grid=GRID, **given)

    try:
        with mock.patch("toy.F", SimpleNamespace(scaled_dot_product_attention=attend)):
            yield model
    finally:
        for hook in hooks:
            hook.remove()
