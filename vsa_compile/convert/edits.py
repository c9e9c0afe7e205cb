"""NewNode nodes as plain values, and how they get into a graph: all of them, or none.

What can go wrong goes wrong while a `NewNode` is made, which computes its example value and touches no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch.fx import Graph, GraphModule, Node

from ..analysis.graph_facts import example_of
from ..torch_compat import on_examples


@dataclass(frozen=True, eq=False)
class NewNode:
    """A node that is not in a graph yet: the call of an operator, which exported programs allow, too.

    args: literals, nodes, other NewNodes, and lists of them. example: what it gives on the example inputs.
    meta: all else that is known of it. of_inputs: whether it is made of the graph's inputs, beside which it
    is put.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...]
    example: Any
    meta: Mapping[str, Any]
    of_inputs: bool = False


@dataclass(frozen=True, eq=False)
class Edit:
    """`by` takes the place of `node`; `strides`: examples of nodes behind it whose strides change by that."""

    owner: GraphModule
    node: Node
    by: NewNode
    strides: Mapping[Node, Any] = field(default_factory=dict)


def new_node(mode: Any, like: Node, target: Callable[..., Any], *args: Any) -> NewNode:
    """A call whose example value is computed, under the fake mode of the graph. Described as `like` is."""
    return NewNode(target, args, on_examples(mode, target, *_mapped(args, example_of_argument)), like.meta)


def example_of_argument(argument: Any) -> Any:
    """The example value of a node, there already or new; of anything else, itself."""
    return argument.example if isinstance(argument, NewNode) else example_of(argument)


def apply(edits: list[Edit]) -> None:
    """Edit the graphs. If anything fails on the way, all that was done is undone, and the error raised.

    What comes last cannot fail on graphs that passed `lint`: unused nodes go, and code is generated.
    """
    owners = list(dict.fromkeys(edit.owner for edit in edits))
    done: list[Callable[[], Any]] = []  # what takes each step back
    try:
        replacements = _insert(edits, done)
        for edit, replacement in zip(edits, replacements, strict=True):
            done.append(partial(replacement.replace_all_uses_with, edit.node))
            edit.node.replace_all_uses_with(replacement)
            for node, example in edit.strides.items():
                done.append(partial(node.meta.__setitem__, _key(node), example_of(node)))
                node.meta[_key(node)] = example
        for owner in owners:
            owner.graph.lint()
    except BaseException:
        for undo in reversed(done):
            undo()
        raise
    for edit in edits:
        edit.owner.graph.erase_node(edit.node)
    for owner in owners:
        owner.recompile()


def _insert(edits: list[Edit], done: list[Callable[[], Any]]) -> list[Node]:
    """Put all NewNodes into the graphs, each once and behind what it is computed from; those that replace."""
    made: dict[NewNode, Node] = {}
    first = {edit.owner: _first_call(edit.owner.graph) for edit in edits}
    for edit in edits:
        graph = edit.owner.graph
        for value in _in_order(edit.by, made):
            arguments = _mapped(value.args, lambda x: made[x] if isinstance(x, NewNode) else x)
            with graph.inserting_before(first[edit.owner] if value.of_inputs else edit.node):
                node = graph.call_function(value.target, arguments)
            done.append(partial(graph.erase_node, node))
            node.meta = {name: known for name, known in value.meta.items() if name not in _OF_VALUES}
            node.meta[_key(edit.node)] = value.example
            made[value] = node
    return [made[edit.by] for edit in edits]


_OF_VALUES = ("example_value", "val", "tensor_meta")  # what of a node's meta speaks of its value


def _first_call(graph: Graph) -> Node:
    return next(node for node in graph.nodes if node.op != "placeholder")


def _in_order(value: NewNode, made: Mapping[NewNode, Node]) -> list[NewNode]:
    """A NewNode and all that it needs and that is not made yet, each behind what it needs itself."""
    found: dict[NewNode, None] = {}

    def visit(one: Any) -> None:
        if isinstance(one, NewNode) and one not in made and one not in found:
            _mapped(one.args, visit)
            found[one] = None

    visit(value)
    return list(found)


def _mapped(argument: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of every argument, also of those in lists; torch.fx.map_arg knows nodes alone."""
    if isinstance(argument, (list, tuple)):
        mapped = (_mapped(item, function) for item in argument)
        return list(mapped) if isinstance(argument, list) else tuple(mapped)
    return function(argument)


def _key(node: Node) -> str:
    """Dynamo's name for an example value, or export's."""
    return "example_value" if "example_value" in node.meta else "val"
