"""What a value is computed from, back to the layers that made its features."""

from __future__ import annotations

from torch.fx import Node

from .graph_facts import is_call
from .optable import entry_of
from .walk import Analysis


def nearest(analysis: Analysis, node: object, name: str) -> list[Node]:
    """The calls of the operator `name` (of its table entry) that `node` is computed from, with no other layer
    in between.

    Follows operators that are no layers, and writes into a value. Leaves checkpointed bodies through their
    inputs, and enters none.
    """
    found: list[Node] = []
    seen: set[Node] = set()
    left: list[object] = [node]
    while left:
        node = left.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        seen.add(node)
        entry = entry_of(node) if is_call(node) else None
        if entry is not None and entry.name == name:
            found.append(node)
        elif node.op == "placeholder":
            left.append(analysis.outer.get(node))
        elif entry is not None and entry.name == "vsa_compile::gate":  # returns its first argument
            left.append(node.args[0])
        elif is_call(node) and not (entry is not None and entry.layer):
            left += node.all_input_nodes
            left += [one for writer in analysis.memory.writers_of(node) for one in writer.all_input_nodes]
    return found
