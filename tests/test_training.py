"""Gates, and a small model that trains: the sparse operator as training uses it."""

import pytest
import torch
from compare import assert_same_output, relative_error
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from toy import Habits, ToyDiT, inputs

import vsa_compile
from vsa_compile.grid import Grid
from vsa_compile.ops import reference

pytestmark = pytest.mark.quick

GRID, TILE = Grid(3, 5, 4), (2, 2, 3)


def leaves(seed: int, dtype: torch.dtype, heads: int = 2, kv_heads: int = 2) -> list[torch.Tensor]:
    """q, k, v and gate."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, h, GRID.tokens, 16) for h in (heads, kv_heads, kv_heads, heads)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def sparse(q, k, v, gate=None) -> torch.Tensor:
    return vsa_compile.attention(q, k, v, grid=GRID, tile=TILE, sparsity=0.6, gate=gate)


@pytest.mark.seconds
@examples(8)
@given(seed=st.integers(0, 999), heads=st.sampled_from(((2, 2), (4, 2), (3, 1))))
def test_gradients_through_both_branches_equal_the_reference(seed: int, heads: tuple[int, int]):
    """In fp64, so that both select the same tiles: q, k and v through fine and coarse, and the gate."""
    tensors = leaves(seed, torch.float64, *heads)
    weights = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q, k, v, gate = tensors
    wanted = reference.attention(q, k, v, grid=GRID, tile=TILE, sparsity=0.6, gate=gate)
    got = sparse(*tensors)
    assert relative_error(got.detach(), wanted.detach()) <= 1e-12
    pairs = zip(
        torch.autograd.grad(got, tensors, weights), torch.autograd.grad(wanted, tensors, weights), strict=True
    )
    assert all(relative_error(one, other) <= 1e-12 for one, other in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_of_zero_adds_nothing_and_learns(dtype: torch.dtype):
    q, k, v, _ = leaves(0, dtype)
    gate = torch.zeros_like(q).requires_grad_()
    out, plain = sparse(q, k, v, gate), sparse(q, k, v)
    assert torch.equal(out, plain)
    weights = torch.randn_like(plain)
    grads = torch.autograd.grad(out, (q, k, v, gate), weights)
    for got, wanted in zip(grads, torch.autograd.grad(plain, (q, k, v), weights), strict=False):
        assert_same_output(got, wanted, bound=4 * torch.finfo(dtype).eps)
    assert grads[-1].abs().sum() > 0


def losses(sparsity: float, steps: int) -> list[float]:
    """A toy DiT that learns to give back one noisy clip, its graph converted and run as it is."""
    settings = vsa_compile.Options.read({"min_tokens": 0, "sparsity": sparsity, "tile": (2, 3, 3)})

    def convert(module, example_inputs):
        vsa_compile.backend.convert(module, settings)
        return module.forward

    torch._dynamo.reset()
    model = torch.compile(ToyDiT(width=32, heads=2), backend=convert)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    (clean,) = inputs(Habits(), grid=(4, 5, 6), batch=1)
    generator, result = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        noisy = clean + 0.3 * torch.randn(clean.shape, generator=generator)
        loss = (model(noisy) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        result.append(float(loss.detach()))
    return result


@pytest.mark.seconds
def test_training_with_every_tile_kept_is_dense_training():
    for one, other in zip(losses(1e-6, 10), losses(0, 10), strict=True):
        assert abs(one - other) <= 1e-4 * other


@pytest.mark.seconds
def test_sparse_training_learns():
    course = losses(0.75, 40)
    assert sum(course[-5:]) < 0.5 * sum(course[:5])
