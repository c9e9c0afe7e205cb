"""State that changes between forward and backward: no change reaches the gradients, recomputed or not."""

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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

import vsa_compile
from vsa_compile import SparsitySchedule, StateError, video_grid
from vsa_compile.convert.judge import Conversion, Decision, Refusal
from vsa_compile.grid import Hint
from vsa_compile.plan.history import History
from vsa_compile.runtime.state import now


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
    graphs: list[list[Decision]] = []
    function = compiled_for(mode, backend or converting(graphs, "aot_eager"))
    x, gain = latents(grid).requires_grad_(), torch.tensor(1.5, requires_grad=True)
    with before():
        out = function(x, gain)
        loss = (out.float() * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum()
    with after():
        loss.backward()
    assert all(isinstance(decision, Conversion) for graph in graphs for decision in graph)
    return out.detach(), x.grad, gain.grad


@functools.cache
def unchanged(mode: str, state: Callable) -> tuple[Tensor, ...]:
    """The gradients of a forward and a backward under the same state."""
    return gradients(mode, state, state)


@pytest.mark.no_cover
@pytest.mark.parametrize("mode", ["plain", "inside", pytest.param("around", marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", CHANGES)
def test_no_change_of_state_before_the_backward_reaches_the_gradients(change: str, mode: str) -> None:
    before, after = CHANGES[change]
    wanted, got = unchanged(mode, before), gradients(mode, before, after)
    for one, other in zip(got, wanted, strict=True):
        if change in OTHER_KERNEL:
            assert_same_output(one, other)
        else:
            assert torch.equal(one, other)


@pytest.mark.seconds
@pytest.mark.quick
@pytest.mark.parametrize("mode", ["inside", "around"])
def test_a_recomputed_selection_is_the_same_to_the_bit(mode: str) -> None:
    plain, recomputed = (gradients(m, nullcontext, nullcontext) for m in ("plain", mode))
    assert all(torch.equal(one, other) for one, other in zip(plain, recomputed, strict=True))


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "change", ["autocast-entered", pytest.param("kernel-to-aten", marks=pytest.mark.slow)]
)
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


@pytest.mark.no_cover
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


TURNED, LEVEL = (4, 7, 5), (4, 5, 7)  # of equal numbers of tokens and of tiles
either_checkpoint = pytest.mark.parametrize("reentrant", [False, True], ids=["hooks", "reentrant"])


@pytest.mark.no_cover
@either_checkpoint
@pytest.mark.parametrize(
    ("later", "backend"),
    [
        (LEVEL, "aot_eager"),
        (TURNED, "aot_eager"),
        (None, "aot_eager"),
        pytest.param(TURNED, "inductor", marks=pytest.mark.slow),
    ],
    ids=["same", "turned", "none", "turned, inductor"],
)
def test_a_recompute_has_the_hinted_grid_of_its_forward(
    later: Grid | None, backend: str, reentrant: bool
) -> None:
    torch._dynamo.reset()
    graphs: list[list[Decision]] = []
    compiled = torch.compile(attend_hidden, backend=converting(graphs, backend, tile=(2, 4, 4)))
    tokens = latents(LEVEL).flatten(2).transpose(1, 2).requires_grad_()
    with video_grid(*LEVEL):
        wanted = torch.autograd.grad(compiled(tokens).square().sum(), tokens)[0]
        out = checkpoint(compiled, tokens, use_reentrant=reentrant)
    with video_grid(*later) if later else nullcontext():
        out.square().sum().backward()
    assert_same_output(tokens.grad, wanted)
    assert all(isinstance(decision, Conversion) for graph in graphs for decision in graph)


def test_a_recompute_that_is_given_another_hinted_grid_is_an_error(monkeypatch) -> None:
    """Should the history ever be silent (there is none under compiled autograd), the witness is not."""
    monkeypatch.setattr("vsa_compile.plan.history.position_of_forward", lambda: None)
    compiled = torch.compile(attend_hidden, backend=converting([], "aot_eager", tile=(2, 4, 4)))
    tokens = latents(LEVEL).flatten(2).transpose(1, 2).requires_grad_()
    with video_grid(*LEVEL):
        loss = checkpointed(compiled)(tokens).sum()
    for later in (TURNED, None):
        hinted = video_grid(*later) if later else nullcontext()
        with hinted, pytest.raises(torch.utils.checkpoint.CheckpointError):
            loss.backward(retain_graph=True)


@either_checkpoint
def test_a_recompute_is_dense_as_its_forward(reentrant: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attend, backend=converting([], "aot_eager"))
    x = latents(LEVEL).requires_grad_()
    found = []
    for inside in (True, False):
        with vsa_compile.dense() if inside else nullcontext():
            wanted = torch.autograd.grad(compiled(x).square().sum(), x)[0]
            out = checkpoint(compiled, x, use_reentrant=reentrant)
        x.grad = None
        with nullcontext() if inside else vsa_compile.dense():
            out.square().sum().backward()
        assert_same_output(x.grad, wanted)
        found.append(wanted)
    assert (found[0] - found[1]).norm() > 0.01 * found[0].norm()


@either_checkpoint
def test_a_context_that_the_recompute_itself_enters_holds(reentrant: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attend, backend=converting([], "aot_eager"))
    x = latents(LEVEL).requires_grad_()

    def densely(x: Tensor) -> Tensor:
        with vsa_compile.dense():
            return compiled(x)

    wanted = torch.autograd.grad(densely(x).square().sum(), x)[0]
    checkpoint(densely, x, use_reentrant=reentrant).square().sum().backward()
    assert_same_output(x.grad, wanted)
    assert not now.dense


@pytest.mark.no_cover
@either_checkpoint
@pytest.mark.parametrize("where", ["inside", "around"])
def test_a_recompute_has_the_step_of_the_schedule_of_its_forward(where: str, reentrant: bool) -> None:
    """Within a bucket, where nothing but the number that is read differs, and across."""
    for steps in ((0.6, 0.7), (0.6, 0.9), (0.6, 0.0)):
        torch._dynamo.reset()
        schedule = SparsitySchedule(lambda step, steps=steps: steps[step])
        twin = torch.compile(attend, backend=converting([], "aot_eager", sparsity=steps[0]))
        backend = converting([], "aot_eager", sparsity=schedule)
        again = functools.partial(checkpoint, use_reentrant=reentrant)
        if where == "inside":
            run = torch.compile(functools.partial(again, attend), backend=backend)
        else:
            run = functools.partial(again, torch.compile(attend, backend=backend))
        x = latents((4, 6, 8)).requires_grad_()
        (wanted,) = torch.autograd.grad(twin(x).square().sum(), x)
        out = run(x)
        schedule.step()
        out.square().sum().backward()
        assert_same_output(x.grad, wanted)


def test_a_forward_of_which_there_is_no_telling_is_an_error() -> None:
    """Another thread changes the value between two looks of this one, and nodes are made in between."""
    history: History[int] = History("it", 0)
    seen = []

    class Asks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(history.in_force())
            return grad

    x = torch.ones(2, requires_grad=True)
    history.in_force()
    before = Asks.apply(x)
    other = threading.Thread(target=lambda: history.set(1))
    other.start(), other.join()
    unsure = Asks.apply(x)
    history.in_force()
    after = Asks.apply(x)
    history.set(2)
    after.sum().backward()
    assert seen == [1]
    for doubtful in (before, unsure):
        with pytest.raises(StateError, match="it is unknown what that forward saw"):
            doubtful.sum().backward()


def test_a_history_is_as_long_as_it_may_be() -> None:
    history: History[int] = History("it", 0)
    for value in range(1, 2000):
        history.set(value)
    assert history.in_force() == 1999
    assert max(len(seen.values) for seen in history._seen.values()) < 300


# --- Tokens ------------------------------------------------------------------------------------------


def test_contexts_that_overlap_in_any_order_leave_nothing_behind() -> None:
    for order in itertools.permutations(range(3)):
        contexts = [vsa_compile.dense(), video_grid(1, 2, 3), video_grid(1, 2, 4)]
        for context in contexts:
            context.__enter__()
        assert (now.dense, now.hint) == (True, Hint((1, 2, 4)))
        left = [0, 1, 2]
        for index in order:
            contexts[index].__exit__(None, None, None)
            left.remove(index)
            hints = [Hint((1, 2, 2 + i)) for i in left if i]
            assert (now.dense, now.hint) == (0 in left, hints[-1] if hints else None)


def in_a_thread(function: Callable) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_a_thread_that_wants_another_value_is_told() -> None:
    def enter(context: Callable[[], AbstractContextManager]) -> Any:
        with context():
            return now.dense, now.hint

    with video_grid(1, 2, 3), vsa_compile.dense():
        assert in_a_thread(lambda: enter(lambda: video_grid(1, 2, 3))) == (True, Hint((1, 2, 3)))
        with pytest.raises(
            StateError, match=r"\(1, 2, 4\) here, but another thread or task has it at \(1, 2, 3\)"
        ):
            in_a_thread(lambda: enter(lambda: video_grid(1, 2, 4)))
        assert in_a_thread(lambda: enter(vsa_compile.dense)) == (True, Hint((1, 2, 3)))
        with pytest.raises(StateError, match="dense is requested as False here"):
            in_a_thread(lambda: enter(lambda: vsa_compile.denoising(4)))
    assert (now.dense, now.hint) == (False, None)
    with vsa_compile.denoising(4) as end:
        end(None, 3, None, {})
        with pytest.raises(StateError, match="dense is requested as True here"):
            in_a_thread(lambda: enter(vsa_compile.dense))


# --- aot_compile, which drops guards -----------------------------------------------------------------


def test_what_needs_a_guard_stays_dense_where_guards_are_dropped() -> None:
    grid = (4, 5, 7)
    tokens = latents(grid).flatten(2).transpose(1, 2)
    schedule = SparsitySchedule(0.5)
    hidden, shown = (attend_hidden, tokens), (attend, latents(grid))
    for (function, x), options, hint, slug in (
        (hidden, {}, grid, "no-guards"),
        (shown, {"sparsity": schedule}, None, "no-guards"),
        (shown, {}, None, None),
        (hidden, {"grid": grid}, None, None),
    ):
        torch._dynamo.reset()
        graphs: list[list[Decision]] = []
        backend = converting(graphs, **options)

        def alone(module: torch.fx.GraphModule, inputs: list, backend: Callable = backend) -> Any:
            backend(module, inputs)
            raise RuntimeError("seen enough")

        hinted = video_grid(*hint) if hint else nullcontext()
        said = nullcontext() if slug else pytest.warns(UserWarning, match="stays sparse")
        with hinted, said, pytest.raises(RuntimeError, match="seen enough"):
            torch.compile(function, backend=alone, fullgraph=True).aot_compile(((x,), {}))
        (one,) = graphs[0]
        assert slug == (one.reason.slug if isinstance(one, Refusal) else None)
