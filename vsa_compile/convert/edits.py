"""New nodes as plain values, and their insertion into a graph: all of them, or none.

Whatever can fail happens while a `NewNode` is made, which computes its example value but touches no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch.fx import Graph, GraphModule, Node

from ..analysis.graph_facts import example_of
from ..torch_compat import FakeMode, on_examples


@dataclass(frozen=True, eq=False)
class NewNode:
    """The call of an operator (which exported programs allow) that is not in a graph yet.

    args: literals, nodes, other NewNodes, and lists of them. example: the result on the example inputs. meta:
    the other metadata. of_inputs: it is computed from the graph's inputs alone, and inserted next to them.
    """

    target: Callable[..., Any]
    args: tuple[object, ...]
    example: Any
    meta: Mapping[str, object]
    of_inputs: bool = False


@dataclass(frozen=True, eq=False)
class Edit:
    """`by` replaces `node`; `strides`: new examples for later nodes whose strides change by that."""

    owner: GraphModule
    node: Node
    by: NewNode
    strides: Mapping[Node, Any] = field(default_factory=dict)


def new_node(mode: FakeMode | None, like: Node, target: Callable[..., Any], *args: object) -> NewNode:
    """A new call, with its example computed under the fake mode `mode`, and the metadata of `like`."""
    return NewNode(target, args, on_examples(mode, target, *_mapped(args, example_of_argument)), like.meta)


def example_of_argument(argument: object) -> Any:
    """The example value of a node or a NewNode; any other argument itself."""
    return argument.example if isinstance(argument, NewNode) else example_of(argument)


def apply(edits: list[Edit]) -> None:
    """Edit the graphs. If anything fails, undo everything and raise the error.

    The last steps, erasing unused nodes and generating code, cannot fail on graphs that passed `lint`.
    """
    owners = list(dict.fromkeys(edit.owner for edit in edits))
    done: list[Callable[[], object]] = []  # undoes each step
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


def _insert(edits: list[Edit], done: list[Callable[[], object]]) -> list[Node]:
    """Insert all NewNodes, each once and after its arguments; returns the replacement of each edit."""
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


_OF_VALUES = ("example_value", "val", "tensor_meta")  # metadata about the node's value


def _first_call(graph: Graph) -> Node:
    return next(node for node in graph.nodes if node.op != "placeholder")


def _in_order(value: NewNode, made: Mapping[NewNode, Node]) -> list[NewNode]:
    """A NewNode and those that it needs and that are not inserted yet, in an order to insert them in."""
    found: dict[NewNode, None] = {}

    def visit(one: object) -> None:
        if isinstance(one, NewNode) and one not in made and one not in found:
            _mapped(one.args, visit)
            found[one] = None

    visit(value)
    return list(found)


def _mapped(argument: object, function: Callable[[Any], Any]) -> Any:
    """`function` of every argument, also inside lists; torch.fx.map_arg handles nodes alone."""
    if isinstance(argument, (list, tuple)):
        mapped = (_mapped(item, function) for item in argument)
        return list(mapped) if isinstance(argument, list) else tuple(mapped)
    return function(argument)


def _key(node: Node) -> str:
    """The metadata key of the example value: Dynamo's or export's."""
    return "example_value" if "example_value" in node.meta else "val"
