"""What a backward computes again belongs to the forward that ran, whatever else the backward goes through."""

import _thread
import asyncio
import re
import threading
import types
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from compare import assert_same_output
from converting import attend, converting, latents
from test_state import attend_hidden, either_checkpoint, in_a_thread
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import vsa_compile
from vsa_compile import StateError
from vsa_compile.convert.judge import Refusal
from vsa_compile.plan.history import Backward
from vsa_compile.runtime.calls import ModelCall, Running, running
from vsa_compile.runtime.requests import Owner
from vsa_compile.runtime.state import now
from vsa_compile.torch_compat import may_be_within_another

LEVEL, TURNED = (4, 5, 7), (4, 7, 5)


def compiled(function: Callable, graphs: list | None = None) -> Callable:
    torch._dynamo.reset()
    return torch.compile(function, backend=converting([] if graphs is None else graphs, "aot_eager"))


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    """By backward: reentrant checkpoints refuse torch.autograd.grad."""
    x.grad = None
    loss.backward()
    assert x.grad is not None
    return x.grad


# --- Contexts ----------------------------------------------------------------------------------------


@either_checkpoint
def test_a_context_that_a_recompute_enters_is_over_after_it(reentrant: bool) -> None:
    run, again = compiled(attend), partial(checkpoint, use_reentrant=reentrant)
    x = latents(LEVEL).requires_grad_()

    def densely(x: Tensor) -> Tensor:
        with vsa_compile.dense():
            return run(x)

    sparse, dense = (gradient(function(x).square().sum(), x) for function in (run, densely))
    for one, other, wanted in ((densely, run, sparse), (run, densely, dense)):
        with vsa_compile.dense():
            first = again(one, x)
        gradient(first.square().sum(), x)
        second = again(other, x)
        assert_same_output(gradient(second.square().sum(), x), wanted)
    both = again(densely, x).square().sum() + again(run, x).square().sum()
    assert_same_output(gradient(both, x), sparse + dense)


@either_checkpoint
def test_a_recompute_within_a_recompute_has_the_state_of_its_forward(reentrant: bool) -> None:
    run, again = compiled(attend), partial(checkpoint, use_reentrant=reentrant)
    x = latents(LEVEL).requires_grad_()

    def densely(x: Tensor) -> Tensor:
        with vsa_compile.dense():
            return again(run, x)

    with vsa_compile.dense():
        dense = gradient(run(x).square().sum(), x)
        within = again(partial(again, run), x)
    assert_same_output(gradient(within.square().sum(), x), dense)
    mixed = again(lambda x: again(run, x) + densely(x), x)
    sparse = gradient((run(x) + densely(x)).square().sum(), x)
    assert_same_output(gradient(mixed.square().sum(), x), sparse)


@either_checkpoint
def test_a_thread_with_a_record_of_its_own_recomputes_what_another_ran(
    reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads of other tests, too, may have made a node of that number: it would be an error then.
    monkeypatch.setattr(now.dense_requests._history, "_seen", {})
    run, again = compiled(attend), partial(checkpoint, use_reentrant=reentrant)
    x = latents(LEVEL).requires_grad_()
    with vsa_compile.dense():
        wanted = gradient(run(x).square().sum(), x)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run, x.detach().requires_grad_()).result()
        for _ in range(1000):  # nodes that the other thread has not made yet
            x * 1
        with vsa_compile.dense():
            loss = again(run, x).square().sum()
        assert_same_output(pool.submit(gradient, loss, x).result(), wanted)


# --- Calls of prepared models ------------------------------------------------------------------------


class Hidden(nn.Module):
    """Its attention shows no grid, and is checkpointed; `features` is what it made of its tokens."""

    def __init__(self, run: Callable, again: Callable) -> None:
        super().__init__()
        self.patch = nn.Conv3d(32, 32, 1, bias=False)
        nn.init.dirac_(self.patch.weight)
        self.scale = nn.Parameter(torch.ones(()))
        self.run, self.again, self.features = run, again, torch.empty(0)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.patch(video).flatten(2).transpose(1, 2)
        self.features = self.again(self.run, tokens)
        return 2 * self.features, self.scale


def alone(run: Callable, x: Tensor) -> Tensor:
    plain = vsa_compile.prepare(Hidden(run, lambda function, x: function(x)))
    return gradient(plain(x)[0].square().sum(), x)


@either_checkpoint
def test_features_are_recomputed_with_the_grid_of_their_call(reentrant: bool) -> None:
    """Nothing that the call returned has a gradient, and another call came after it."""
    run = compiled(attend_hidden)
    model = vsa_compile.prepare(Hidden(run, partial(checkpoint, use_reentrant=reentrant)))
    x, other = (latents(grid).requires_grad_() for grid in (LEVEL, TURNED))
    wanted = alone(run, x)
    model(x)
    features = model.features
    later = model(other)[0]
    assert_same_output(gradient(4 * features.square().sum(), x), wanted)
    assert_same_output(gradient(later.square().sum(), other), alone(run, other))


@either_checkpoint
def test_what_ran_before_a_prepared_model_has_no_grid_of_it(reentrant: bool) -> None:
    """It is not prepared, has as many tokens, and is dense in the forward: so in the backward."""
    graphs: list = []
    run = compiled(attend_hidden, graphs)
    again = partial(checkpoint, use_reentrant=reentrant)
    tokens = latents(LEVEL).flatten(2).transpose(1, 2).requires_grad_()

    def loss(again: Callable) -> Tensor:
        model = vsa_compile.prepare(Hidden(lambda x: x, lambda function, x: function(x)))
        before = again(run, tokens).transpose(1, 2).flatten(2)
        return model(before.transpose(1, 2).unflatten(2, LEVEL))[0].square().sum()

    wanted = gradient(loss(lambda function, x: function(x)), tokens)
    assert_same_output(gradient(loss(again), tokens), wanted)
    assert all(isinstance(decision, Refusal) for graph in graphs for decision in graph)


@either_checkpoint
def test_forwards_of_threads_in_one_backward_are_an_error_or_right(reentrant: bool) -> None:
    """An error where the numbers of their nodes are alike, which depends on what else the threads made. One
    at a time each is right. Where a graph serves both, torch may be the first to notice, by the shapes of
    what was saved."""
    run = compiled(attend_hidden)
    model = vsa_compile.prepare(Hidden(run, partial(checkpoint, use_reentrant=reentrant)))
    inputs = [latents(grid).requires_grad_() for grid in (LEVEL, TURNED)]
    wanted = [alone(run, x) for x in inputs]
    losses = [in_a_thread(lambda x=x: model(x)[0].square().sum()) for x in inputs]
    for x in inputs:
        x.grad = None
    try:
        sum(losses).backward()
    except Exception as error:
        if not re.search(r"several ran such forwards|different metadata", str(error)):
            raise
    else:
        for x, right in zip(inputs, wanted, strict=True):
            assert_same_output(x.grad, right)
    assert running.now is None
    losses = [in_a_thread(lambda x=x: model(x)[0].square().sum()) for x in inputs]
    for loss, x, one in zip(losses, inputs, wanted, strict=True):
        assert_same_output(gradient(loss, x), one)


def test_a_number_that_two_threads_made_tells_no_call() -> None:
    threads = Running()
    calls = [ModelCall(0, grid, first=3, last=9, thread=i) for i, grid in enumerate((LEVEL, TURNED))]
    for call in calls:
        threads.enter(call)
        if call is calls[0]:
            assert threads.of_node(5) is call
    with pytest.raises(StateError, match="several ran such forwards"):
        threads.of_node(5)


def test_backwards_that_take_turns_in_a_thread_of_autograd_are_not_taken_for_each_other(monkeypatch) -> None:
    """By numbers alone, a node may be of the recompute around or of another thread's forward."""
    threads = Running()
    here, there = (
        ModelCall(0, grid, first=3, last=9, thread=-1 - i) for i, grid in enumerate((LEVEL, TURNED))
    )
    monkeypatch.setattr(Running, "past", deque([here, there]))
    around = Backward(0, here)
    assert threads.of_node(10, around) is here
    assert threads.of_node(5, around) is here  # a thread of Python runs its own to the end
    monkeypatch.setattr("vsa_compile.runtime.calls.thread_of_autograd", lambda: True)
    assert threads.of_node(10, around) is here
    with pytest.raises(StateError, match="several ran such forwards"):
        threads.of_node(5, around)


def test_only_a_started_backward_may_be_within_another_in_a_thread_of_autograd() -> None:
    x, seen = torch.ones(1, requires_grad=True), []
    done = threading.Event()

    def run() -> None:
        seen.append(may_be_within_another())
        y = 2 * x
        y.register_hook(lambda grad: seen.append(may_be_within_another()))
        y.backward()
        done.set()

    _thread.start_new_thread(run, ())
    assert done.wait(60)
    assert seen == [False, True]


@either_checkpoint
def test_several_calls_are_told_apart_in_checkpoints_within_checkpoints(reentrant: bool) -> None:
    """In one backward, with the calls' outputs and with what was inside them alone."""
    run = compiled(attend_hidden)

    def twice(function: Callable, x: Tensor) -> Tensor:
        return checkpoint(partial(checkpoint, function, use_reentrant=reentrant), x, use_reentrant=reentrant)

    model = vsa_compile.prepare(Hidden(run, twice))
    inputs = [latents(grid).requires_grad_() for grid in (LEVEL, TURNED, LEVEL)]
    wanted = [alone(run, latents(grid).requires_grad_()) for grid in (LEVEL, TURNED, LEVEL)]
    for inside in ((True, False, True), (False, True, False), (True, True, True)):
        losses = []
        for x, features in zip(inputs, inside, strict=True):
            x.grad = None
            out = model(x)[0]
            losses.append(4 * model.features.square().sum() if features else out.square().sum())
        sum(losses).backward()
        for x, one in zip(inputs, wanted, strict=True):
            assert x.grad is not None
            assert_same_output(x.grad, one)


@either_checkpoint
@pytest.mark.parametrize("thread", ["of autograd", "of Python"])
def test_features_are_recomputed_in_another_thread(reentrant: bool, thread: str) -> None:
    """Autograd has a thread for each GPU. A thread of Python may have made the nodes itself."""
    run = compiled(attend_hidden)
    model = vsa_compile.prepare(Hidden(run, partial(checkpoint, use_reentrant=reentrant)))
    x, other = (latents(grid).requires_grad_() for grid in (LEVEL, TURNED))
    wanted = alone(run, latents(LEVEL).requires_grad_())
    model(x)
    features = model.features
    model(other)
    failed: list[Exception] = []
    done = threading.Event()

    def backward() -> None:
        try:
            features.square().sum().mul(4).backward()
        except Exception as error:
            failed.append(error)
        done.set()

    if thread == "of Python":
        threading.Thread(target=backward).start()
    else:
        _thread.start_new_thread(backward, ())  # unknown to threading, as are those of autograd
    assert done.wait(60)
    if thread == "of Python":
        (error,) = failed
        assert isinstance(error, StateError) or "the grid of a prepared model" in str(error)
    else:
        assert not failed
        assert x.grad is not None
        assert_same_output(x.grad, wanted)


def test_a_thread_is_told_from_one_that_is_over() -> None:
    """Whose identifier Python may give to it."""
    threads = []
    for _ in range(20):
        call = ModelCall(0)
        in_a_thread(lambda call=call: running.begin(call)())
        threads.append((call.thread, in_a_thread(Owner.here).thread))
    assert len({number for pair in threads for number in pair}) == 40


def test_a_parameter_that_is_returned_gets_no_hooks() -> None:
    model = vsa_compile.prepare(Hidden(attend_hidden, lambda function, x: function(x)))
    for _ in range(2):
        model(latents(LEVEL))
    assert not model.scale._backward_hooks


# --- denoising and tasks -----------------------------------------------------------------------------


def test_a_loop_may_run_in_another_thread_than_its_context() -> None:
    with vsa_compile.denoising(3, dense_steps=2) as end:

        def loop() -> list[bool]:
            return [now.dense for step in range(3) if end(None, step, None, {}) is not None]

        assert in_a_thread(loop) == [True, False, True]


@pytest.mark.parametrize("steps", [2, 4])
def test_a_loop_that_ended_early_is_told_of(steps: int) -> None:
    pipe, seen = types.SimpleNamespace(num_timesteps=4), []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with vsa_compile.denoising(4, dense_steps=1) as end:
            for count in (steps, 4):
                for step in range(count):
                    seen.append(now.dense)
                    end(pipe, step, None, {})
    assert seen == [True] + [False] * (steps - 1) + [steps == 4] + 3 * [False]
    assert [str(one.message)[:30] for one in said] == (
        [] if steps == 4 else ["denoising(4) took the first st"]
    )


def test_tasks_of_one_thread_do_not_overrule_each_other() -> None:
    async def enter(cols: int) -> tuple | None:
        with vsa_compile.video_grid(1, 2, cols):
            await asyncio.sleep(0.01)
            return now.hint and now.hint.grid

    async def both(*cols: int) -> list:
        return await asyncio.gather(*map(enter, cols), return_exceptions=True)

    assert asyncio.run(both(3, 3)) == 2 * [(1, 2, 3)]
    found = asyncio.run(both(3, 4))
    assert found[0] == (1, 2, 3)
    assert isinstance(found[1], StateError)
    with vsa_compile.video_grid(1, 2, 9):  # around the event loop, as contexts nest
        assert asyncio.run(both(3)) == [(1, 2, 3)]
    with ThreadPoolExecutor(1) as pool, vsa_compile.video_grid(1, 2, 9):
        assert isinstance(pool.submit(asyncio.run, both(3)).result()[0], StateError)
