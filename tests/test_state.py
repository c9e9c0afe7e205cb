"""State that changes between forward and backward: no change reaches the gradients, recomputed or not."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest
import torch
from compare import assert_same_output
from converting import OPTIONS, Grid, attend, converting, latents
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from vsa_compile import video_grid
from vsa_compile.convert.judge import Refusal, Site


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def aten() -> AbstractContextManager:
    return mock.patch.dict(os.environ, {"VSA_COMPILE_CPU": "aten"})


def autocast() -> AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16)


@contextmanager
def forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield


@contextmanager
def another_model() -> Iterator[None]:
    """Other options and another grid, compiled, run and differentiated in between."""
    gain = torch.ones((), requires_grad=True)
    other = torch.compile(attend, backend=converting([], "aot_eager", sparsity=0.75, tile=(4, 4, 4)))
    other(latents((4, 3, 5)), gain).sum().backward()
    yield


CHANGES = {
    "autocast-entered": (nullcontext, autocast),
    "autocast-left": (autocast, nullcontext),
    "grad-mode": (nullcontext, torch.no_grad),
    "threads": (lambda: threads(2), lambda: threads(1)),
    "default-dtype": (nullcontext, lambda: default_dtype(torch.float64)),
    "reset": (nullcontext, forgotten),
    "another-model": (nullcontext, another_model),
    "kernel-to-aten": (nullcontext, aten),
    "aten-to-kernel": (aten, nullcontext),
    "autocast-entered-in-aten": (aten, lambda: stacked(aten, autocast)),
}
OTHER_KERNEL = ("kernel-to-aten", "aten-to-kernel")


@contextmanager
def stacked(*contexts: Callable[[], AbstractContextManager]) -> Iterator[None]:
    with contexts[0](), contexts[1]():
        yield


def checkpointed(function: Callable) -> Callable:
    return lambda *args: checkpoint(function, *args, use_reentrant=False)


def compiled_for(mode: str, backend: Any) -> Callable:
    """`attend`, compiled; checkpointed inside the graph, or around the compiled function, or not."""
    options = OPTIONS if backend == "vsa" else None
    inner = checkpointed(attend) if mode == "inside" else attend
    compiled = torch.compile(inner, backend=backend, options=options)
    return checkpointed(compiled) if mode == "around" else compiled


def gradients(
    mode: str, before: Callable, after: Callable, backend: Any = None, grid: Grid = (3, 4, 5)
) -> tuple[Tensor, ...]:
    """Output and gradients of one forward under `before` and one backward under `after`."""
    torch._dynamo.reset()
    graphs: list[list[Site | Refusal]] = []
    function = compiled_for(mode, backend or converting(graphs, "aot_eager"))
    x, gain = latents(grid).requires_grad_(), torch.tensor(1.5, requires_grad=True)
    with before():
        out = function(x, gain)
        loss = (out.float() * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum()
    with after():
        loss.backward()
    assert all(isinstance(decision, Site) for graph in graphs for decision in graph)
    return out.detach(), x.grad, gain.grad


@functools.cache
def unchanged(mode: str, state: Callable) -> tuple[Tensor, ...]:
    """The gradients of a forward and a backward under the same state."""
    return gradients(mode, state, state)


@pytest.mark.parametrize("mode", ["plain", "inside", "around"])
@pytest.mark.parametrize("change", CHANGES)
def test_no_change_of_state_before_the_backward_reaches_the_gradients(change: str, mode: str) -> None:
    before, after = CHANGES[change]
    wanted, got = unchanged(mode, before), gradients(mode, before, after)
    for one, other in zip(got, wanted, strict=True):
        if change in OTHER_KERNEL:
            assert_same_output(one, other)
        else:
            assert torch.equal(one, other)


@pytest.mark.quick
@pytest.mark.parametrize("mode", ["inside", "around"])
def test_a_recomputed_selection_is_the_same_to_the_bit(mode: str) -> None:
    plain, recomputed = (gradients(m, nullcontext, nullcontext) for m in ("plain", mode))
    assert all(torch.equal(one, other) for one, other in zip(plain, recomputed, strict=True))


@pytest.mark.parametrize("change", ["autocast-entered", "kernel-to-aten"])
def test_a_backward_that_inductor_compiles_under_a_changed_state(change: str) -> None:
    """The backward is compiled when it first runs: here after the change, by a cache tag of its own."""
    before, after = CHANGES[change]
    wanted = gradients("plain", before, before, "vsa")
    for mode in ("plain", "inside", "around"):
        counters.clear()
        with torch.compiler.config.patch(cache_key_tag=str(uuid4())):
            got = gradients(mode, before, after, "vsa")
        assert not counters["aot_autograd"]["autograd_cache_hit"]
        for one, other in zip(got, wanted, strict=True):
            assert_same_output(one, other)


def test_a_second_derivative_is_an_error_as_with_inductor() -> None:
    x = latents((2, 4, 4)).requires_grad_()
    loss = torch.compile(lambda x: attend(x).square().sum(), backend="vsa", options=OPTIONS)(x)
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        grad.sum().backward()


# --- The hinted grid and a recompute -----------------------------------------------------------------


def attend_hidden(tokens: Tensor) -> Tensor:
    """(1, tokens, 32): a graph that shows no grid."""
    x = 3 * tokens.unflatten(-1, (2, 16)).transpose(1, 2)
    return torch.nn.functional.scaled_dot_product_attention(x, x * 0.5, x)


# Of equal numbers of tokens and of tiles: nothing but the witness of the grid differs.
@pytest.mark.parametrize(
    ("later", "backend"),
    [((4, 5, 7), "aot_eager"), ((4, 7, 5), "aot_eager"), (None, "aot_eager"), ((4, 7, 5), "inductor")],
    ids=["same", "turned", "none", "turned, inductor"],
)
def test_a_recompute_under_another_hinted_grid_is_an_error(later: Grid | None, backend: str) -> None:
    torch._dynamo.reset()
    graphs: list[list[Site | Refusal]] = []
    compiled = torch.compile(attend_hidden, backend=converting(graphs, backend, tile=(2, 4, 4)))
    tokens = latents((4, 5, 7)).flatten(2).transpose(1, 2).requires_grad_()
    for grid in ((4, 5, 7), (4, 7, 5)):  # both are compiled before; the recompute finds its own
        with video_grid(*grid):
            compiled(tokens)
    with video_grid(4, 5, 7):
        wanted = torch.autograd.grad(compiled(tokens).square().sum(), tokens)[0]
        loss = checkpointed(compiled)(tokens).square().sum()
    with video_grid(*later) if later else nullcontext():
        if later == (4, 5, 7):
            assert torch.equal(torch.autograd.grad(loss, tokens)[0], wanted)
        else:
            with pytest.raises(torch.utils.checkpoint.CheckpointError):
                loss.backward()
    assert sum(isinstance(decision, Site) for graph in graphs for decision in graph) == 2
