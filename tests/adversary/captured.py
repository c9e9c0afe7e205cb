"""Graphs of random models as Dynamo captures them, once each, and a cheap way to run them.

Values flow through a graph as small real tensors. They are its example values too: views share a storage and
writes count there as they do in Dynamo's own. So a graph that was edited needs no second capture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from random_models import Plan, RandomModel, inputs, plans, truths
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

Run = Callable[[Node, tuple, dict], Any]


@dataclass(frozen=True)
class Captured:
    """A model's graph, the values of its placeholders, and which of them the latents are.

    before: names of the nodes before the patch embedding, where another order is that of another video.
    """

    plan: Plan
    module: GraphModule
    inputs: tuple[Any, ...]
    latents: int
    before: frozenset[str]

    def copy(self) -> GraphModule:
        return copied(self.module)

    def fresh_inputs(self, latents: Tensor | None = None) -> list[Any]:
        """The inputs, safe to write into."""
        values = [x.clone() if isinstance(x, Tensor) else x for x in self.inputs]
        if latents is not None:
            values[self.latents] = latents.clone()
        return values


@functools.cache
def capture(plan: Plan) -> Captured:
    """The one graph of a plan's model, for inference."""
    model, arguments = RandomModel(plan), inputs(plan)
    found: list[tuple[GraphModule, tuple]] = []

    def backend(module: GraphModule, example_inputs: list[Any]) -> Callable:
        detached = (x.detach().clone() if isinstance(x, Tensor) else x for x in example_inputs)
        found.append((module, tuple(detached)))
        return module.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, dynamic=False, fullgraph=True)(**arguments)
    torch._dynamo.reset()
    ((module, values),) = found
    latents = arguments["latents"]
    (place,) = (i for i, x in enumerate(values) if isinstance(x, Tensor) and _same(x, latents))
    module = copied(module)
    play(module, values)
    return Captured(plan, module, values, place, _before_embedding(module, place))


def _before_embedding(module: GraphModule, latents: int) -> frozenset[str]:
    """The latents and what is made of them, up to the first layer."""
    nodes = list(module.graph.nodes)
    found = {[node for node in nodes if node.op == "placeholder"][latents]}
    for node in nodes:
        if found & set(node.all_input_nodes):
            if getattr(node.target, "__name__", "") in ("conv2d", "conv3d", "linear"):
                break
            found.add(node)
    return frozenset(node.name for node in found)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


@functools.cache
def pool(count: int, start: int = 0) -> tuple[Plan, ...]:
    """`count` small plans of many kinds, most with a video to convert; the same ones for one `start`."""
    drawn: list[Plan] = []

    @seed(start)
    @settings(
        max_examples=10 * count, database=None, phases=[Phase.generate], deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(plan=plans(depth=2))
    def collect(plan: Plan) -> None:
        if plan.tokens <= 100 and plan.min_tokens == 0:
            drawn.append(plan)

    collect()
    rare: dict[tuple, int] = {}
    ranked = []
    for plan in drawn:
        kinds = tuple(block.kind for block in plan.blocks)
        rare[kinds] = rare.get(kinds, 0) + 1
        bare = not any(truth.grid for truth in truths(plan).values())
        ranked.append((rare[kinds] + 2 * bare, len(ranked), plan))
    return tuple(plan for *_, plan in sorted(ranked)[:count])


class Sketch(GraphModule):
    """A graph that is played, never called: no code is generated for it."""

    def recompile(self) -> Any:
        return None


def copied(module: GraphModule) -> GraphModule:
    """A copy whose nodes, and those of the bodies in it, may be edited; constants are shared."""
    graph, names = Graph(), {}
    out = graph.graph_copy(module.graph, names)
    output = graph.output(out)
    output.meta = dict(next(iter(reversed(module.graph.nodes))).meta)
    attributes: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            value = getattr(module, str(node.target))
            attributes[str(node.target)] = copied(value) if isinstance(value, GraphModule) else value
    return Sketch(attributes, graph)


def play(module: GraphModule, values: Any, run: Run | None = None, *, note: bool = True) -> Any:
    """Run a graph node by node. `run` computes a node in place of its own target if it does not return
    NotImplemented; `note` makes the values the example values of the nodes."""
    environment: dict[Node, Any] = {}
    given = iter(values)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            value = next(given)
        elif node.op == "get_attr":
            value = getattr(module, str(node.target))
        elif node.op == "output":
            return torch.fx.map_arg(node.args[0], environment.__getitem__)
        else:
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), environment.__getitem__)
            value = NotImplemented if run is None else run(node, args, kwargs)
            if value is NotImplemented:
                value = _computed(node, args, kwargs, run, note)
        environment[node] = value
        if note and not isinstance(value, GraphModule):
            node.meta["example_value"] = value
    return None


def _computed(node: Node, args: tuple, kwargs: dict, run: Run | None, note: bool) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if args and isinstance(args[0], GraphModule):  # a checkpointed body
        return play(args[0], args[1:], run, note=note)
    return node.target(*args, **kwargs)


def modules(module: GraphModule) -> Iterator[GraphModule]:
    """The graph and the bodies inside it."""
    yield module
    for child in module.children():
        if isinstance(child, GraphModule):
            yield from modules(child)
