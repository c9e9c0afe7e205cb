"""How an edit writes into a graph: on proxies, after a node, in place of some uses of it."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from random_models import Plan
from torch import Tensor
from torch.fx import GraphModule, Node, Proxy
from torch.fx.proxy import GraphAppendingTracer

from .captured import modules
from .truth import SDPA


@dataclass
class Spot:
    """A value of a graph that an edit is made to, and the dimension that it is about."""

    owner: GraphModule
    node: Node
    dim: int
    plan: Plan
    random: random.Random
    _tracer: Any = field(init=False)

    def __post_init__(self) -> None:
        self._tracer = GraphAppendingTracer(self.owner.graph)

    @property
    def value(self) -> Tensor:
        return self.node.meta["example_value"]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def size(self) -> int:
        return self.shape[self.dim]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """A node that calls a function, or a method by its name."""
        kind = "call_method" if isinstance(target, str) else "call_function"
        return self._tracer.create_proxy(kind, target, args, kwargs)

    def proxy(self, node: Node) -> Proxy:
        return Proxy(node, self._tracer)

    def at(self, index: Any) -> tuple:
        """The index of the whole value that has `index` at the dimension."""
        return (*(slice(None),) * self.dim, index)

    def order(self) -> Any:
        """The positions of the dimension in some other order, (size,) int64."""
        n, k = self.size, self.random.randrange(1, self.size)
        steps = self.call(torch.arange, n)
        way = self.random.randrange(6)
        if way == 0:
            return steps.flip(0)
        if way == 1:
            return steps.roll(k)
        if way == 2:
            return self.call(torch.arange, n - 1, -1, -1)
        if way == 3:
            return ((steps + k) % n).argsort()
        if way == 4:
            values = list(range(n))
            self.random.shuffle(values)
            return self.call(torch.tensor, values)
        return self.call(torch.cat, [steps[k:], steps[:k]])

    def spread(self, index: Any) -> Any:
        """(size,) -> the value's shape, as gather and scatter want it."""
        shape = [1] * len(self.shape)
        shape[self.dim] = self.size
        return index.view(shape).expand(self.shape)

    def like(self) -> Any:
        """Memory of the value's shape and dtype that holds nothing of it."""
        return self.call(torch.empty, self.shape, dtype=self.value.dtype)

    def put(self, x: Any, index: Any, value: Any) -> None:
        self.call(operator.setitem, x, index, value)

    def filled(self, x: Any, order: Sequence[int]) -> Any:
        """A buffer that is filled with the positions of the value in an order, one by one."""
        y, n = self.like(), self.size
        places = list(range(n))
        if self.random.random() < 0.3:
            self.random.shuffle(places)
        views, of_x = y.unbind(self.dim), x.unbind(self.dim)
        way = self.random.randrange(5)
        for i in places:
            j = order[i]
            if way == 0:
                y.select(self.dim, i).copy_(x.select(self.dim, j))
            elif way == 1:
                self.put(y, self.at(i), of_x[j] + 0)
            elif way == 2:
                y.narrow(self.dim, i, 1).copy_(x.narrow(self.dim, j, 1))
            elif way == 3:
                self.put(y, self.at(slice(i, i + 1)), x[self.at(slice(j, j + 1))] * 1)
            else:
                views[i].copy_(of_x[j])
        return y


Edit = Callable[[Any, Spot], Any]


def draw_on(spot: Spot, edit: Edit) -> None:
    """Make an edit: what it returns stands for the value from here on, or for some uses of it."""
    graph, point = spot.owner.graph, spot.node
    known, writes = set(graph.nodes), edit.__name__.endswith("_")
    last = [node for node in graph.nodes if node.op == "placeholder"][-1:]
    if point.op == "placeholder":
        point = last[0]
    if writes:  # some steps later
        for _ in range(spot.random.choice((0, 0, 1, 2, 4, 8, 16))):
            if point.next.op != "output":
                point = point.next
    with graph.inserting_before(point.next):
        made = edit(spot.proxy(spot.node), spot)
    if not isinstance(made, Proxy):
        return
    users = [user for user in spot.node.users if user in known]
    if spot.random.random() < 0.4 and len(users) > 1:
        users = spot.random.sample(users, spot.random.randrange(1, len(users)))
    for user in users:
        user.replace_input_with(spot.node, made.node)


def tensors(module: GraphModule, wanted: Callable[[Tensor], bool]) -> list[tuple[GraphModule, Node]]:
    """The nodes before an attention call whose values are wanted, of the graph and its bodies."""
    found = []
    for part in modules(module):
        needed: set[Node] = set()
        for node in reversed(part.graph.nodes):
            if node.target is SDPA or node in needed or _calls_body(part, node):
                needed |= set(node.all_input_nodes)
        for node in part.graph.nodes:
            value = node.meta.get("example_value")
            if node in needed and isinstance(value, Tensor) and wanted(value):
                found.append((part, node))
    return found


def _calls_body(owner: GraphModule, node: Node) -> bool:
    names = (str(n.target) for n in node.all_input_nodes if n.op == "get_attr")
    return any(isinstance(getattr(owner, name), GraphModule) for name in names)


def pick(items: Sequence[Any], place: int) -> Any:
    return items[place % len(items)]
