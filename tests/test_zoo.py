"""The zoo is what it says: finite, deterministic, sensitive to attention, counted right."""

import math
from collections.abc import Callable
from operator import attrgetter

import pytest
import torch
from torch.nn import functional

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from zoo import NEGATIVE, VIDEO, Case

each_case = pytest.mark.parametrize("case", VIDEO + NEGATIVE, ids=attrgetter("name"))
each_video = pytest.mark.parametrize("case", VIDEO, ids=attrgetter("name"))


def output(model: Callable, arguments: dict) -> torch.Tensor:
    result = model(**arguments)
    return result if isinstance(result, torch.Tensor) else result[0]


def attention_nodes(model: torch.nn.Module, arguments: dict) -> int:
    """Attention calls in the one graph that Dynamo captures, its nested graphs included."""
    graphs = []

    def record(graph: torch.fx.GraphModule, _: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(model, backend=record, fullgraph=True)(**arguments)
    (graph,) = graphs
    bodies = (body for body in graph.modules() if isinstance(body, torch.fx.GraphModule))
    return sum(
        node.target is functional.scaled_dot_product_attention for body in bodies for node in body.graph.nodes
    )


@pytest.mark.slow
@each_case
def test_outputs_are_finite_and_deterministic_at_every_grid(case: Case):
    model, inputs = case.build()
    twin, twin_inputs = case.build()
    for grid in (case.grid, *case.other_grids):
        with torch.no_grad():
            result = output(model, inputs(grid))
            again = output(twin, twin_inputs(grid))
        assert 0.2 < result.std() < 5
        assert result.abs().max() < 20
        assert torch.equal(result, again)


@pytest.mark.slow
@each_case
def test_dynamo_sees_every_attention_call(case: Case):
    model, inputs = case.build()
    with torch.no_grad():
        assert attention_nodes(model, inputs(case.grid)) == case.calls


@each_video
def test_outputs_depend_on_video_attention(case: Case, monkeypatch: pytest.MonkeyPatch):
    model, inputs = case.build()
    attend = functional.scaled_dot_product_attention
    sites = 0

    def average_values(query, key, value, *args, **kwargs):
        nonlocal sites
        if not query.shape[-2] == key.shape[-2] >= math.prod(case.grid):
            return attend(query, key, value, *args, **kwargs)
        sites += 1
        return value.mean(-2, keepdim=True).expand_as(query)

    with torch.no_grad():
        exact = output(model, inputs(case.grid))
        monkeypatch.setattr(functional, "scaled_dot_product_attention", average_values)
        blurred = output(model, inputs(case.grid))
    assert sites == case.sites
    assert (blurred - exact).norm() > 1e-2 * exact.norm()


@each_video
def test_a_nudge_of_the_latent_is_not_amplified(case: Case):
    model, inputs = case.build()
    with torch.no_grad():
        arguments = inputs(case.grid)
        exact = output(model, arguments)
        arguments["hidden_states"] = arguments["hidden_states"] * (1 + 1e-6)
        nudged = output(model, arguments)
    assert (nudged - exact).norm() < 1e-5 * case.tolerance * exact.norm()


@pytest.mark.slow
@each_video
def test_attention_weights_receive_gradients_under_checkpointing(case: Case):
    model, inputs = case.build()
    output(model, inputs(case.grid)).square().mean().backward()
    plain = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    model.train()
    model.enable_gradient_checkpointing()
    assert attention_nodes(model, inputs(case.grid)) == case.calls
    output(model, inputs(case.grid)).square().mean().backward()
    for name, weight in model.named_parameters():
        if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_qkv.weight")):
            assert plain[name] is None or plain[name].abs().max() > 1e-6, name
        torch.testing.assert_close(weight.grad, plain[name])
