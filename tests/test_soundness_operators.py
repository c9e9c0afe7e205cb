"""Operators that only look like ours."""

from collections.abc import Callable

import pytest
import torch
from soundness import Model, attention, dense, fates, heads, latents, sdpa, tiled
from torch import Tensor

pytestmark = pytest.mark.quick

_library = torch.library.Library("mylib", "DEF")
for _schema, _function in {
    "gate(Tensor q, Tensor g) -> Tensor": lambda q, g: q * 2,
    "scaled_dot_product_attention(Tensor q, Tensor k, Tensor v) -> Tensor": lambda q, k, v: (
        (q @ k.transpose(-1, -2)).sigmoid() @ v
    ),
    "flatten(Tensor x) -> Tensor": lambda x: tiled(x).clone(),
}.items():
    _library.define(_schema)
    _library.impl(_schema.partition("(")[0], _function, "CompositeExplicitAutograd")


def test_a_gate_of_another_namespace_is_none():
    gate = torch.ops.mylib.gate

    def attend(x: Tensor) -> Tensor:
        return sdpa(gate(heads(x), x), heads(x), heads(x))

    fates(Model(attend), latents())  # the numbers show whether it was taken for ours


def test_an_attention_of_another_namespace_is_none():
    model = Model(lambda x: torch.ops.mylib.scaled_dot_product_attention(heads(x), heads(x), heads(x)) + 0)
    assert fates(model, latents()) == []


class FlattenedElsewhere(Model):
    def __init__(self, flatten: Callable[[Tensor], Tensor]) -> None:
        super().__init__(lambda x: attention(x))
        self.flatten = flatten

    def tokens(self, latents: Tensor) -> Tensor:
        return self.flatten(self.patch(latents)).transpose(1, 2)


def test_a_flatten_of_another_namespace_is_unknown():
    assert dense(fates(FlattenedElsewhere(torch.ops.mylib.flatten), latents()))


@torch.compiler.allow_in_graph
def flatten(volume: Tensor) -> Tensor:
    return tiled(volume)


@torch.compiler.allow_in_graph
def contiguous(x: Tensor) -> Tensor:
    return x.roll(1, 1)


@torch.compiler.allow_in_graph
def relu(x: Tensor) -> Tensor:
    return x.roll(1, 1)


def test_a_python_function_of_a_known_name_is_unknown():
    assert dense(fates(Model(lambda x: attention(relu(x))), latents()))
    assert dense(fates(FlattenedElsewhere(flatten), latents()))
    assert dense(fates(Model(lambda x: attention(contiguous(x))), latents()))
