"""Memory: which values share it, and what a write to one makes of the others.

Values that share memory are told by their example values' storages, through views and into checkpointed
bodies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Any

from torch.fx import Node

from ..torch_compat import bytes_of, size_expression, storage_of
from .algebra import same
from .facts import Fact, Proofs, both
from .graph_facts import example_of, tensors_in
from .optable.writes import overwritten, replaced
from .sizes import equal
from .values import Known, Value, unknown


class Memory:
    """What is known of every value now, and of the writes so far."""

    def __init__(self, proofs: Proofs) -> None:
        self.values: dict[Node, Value] = {}
        self.proofs = proofs
        self.sharing: dict[Hashable, list[Node]] = defaultdict(list)
        self.writers: dict[Hashable, list[Node]] = defaultdict(list)

    def define(self, node: Node, value: Value) -> None:
        """A new value. What is a view of a memory that was written to is so as it is now."""
        self.values[node] = value
        for key in self.keys(node):
            self.sharing[key].append(node)

    def keys(self, node: Any) -> set[Hashable]:
        """The memories that a node's tensors lie in."""
        keys = (
            {storage_of(tensor) for tensor in tensors_in(example_of(node))}
            if isinstance(node, Node)
            else set()
        )
        return keys - {None}

    def stamp(self, node: Any) -> int:
        """How often the memory of a value has been written to."""
        return sum(len(self.writers[key]) for key in self.keys(node))

    def writers_of(self, node: Node) -> list[Node]:
        """The calls that wrote into the memory of a value."""
        return [writer for key in self.keys(node) for writer in self.writers[key]]

    def write(self, writer: Node, written: Node, now: Known | None) -> None:
        """`written` holds `now` from here on, or nobody knows what."""
        before = self.values.get(written)
        for key in self.keys(written):
            self.writers[key].append(writer)
        for other in {node: None for key in self.keys(written) for node in self.sharing[key]}:
            if other is not written:
                self.values[other] = self._seen_through(other, written, before, now)
        self.values[written] = now if now is not None else unknown(example_of(written))

    def _seen_through(self, other: Node, written: Node, before: Value, now: Known | None) -> Value:
        """What is known of a value after a write to another that shares its memory."""
        known = self.values.get(other)
        if now is None or not isinstance(before, Known) or not isinstance(known, Known):
            return unknown(example_of(other))
        complete = _is_all_of_its_memory(written)
        axes = list(known.axes)
        for old, new in zip(before.axes, now.axes, strict=True):
            if old is new or same(old, new):
                continue
            held = new if complete else overwritten(
                old, new, blank=before.table, tokens=not now.table, everywhere=True, all_of_it=False
            )  # fmt: skip
            found = [replaced(axis, old, held) for axis in axes]
            if sum(axis is not None for axis in found) != 1:
                return unknown(example_of(other))
            axes = [axis or kept for axis, kept in zip(found, axes, strict=True)]
        fact = self._fact_through(known, axes, now, complete)
        return Known(axes, fact, known.table and now.table)

    def _fact_through(self, known: Known, axes: list, now: Known, complete: bool) -> Fact | None:
        fact = now.fact and Fact(now.fact.claims, now.fact.dim)
        if fact is not None and fact.claims != fact.everywhere:
            along = now.axes[fact.dim]
            there = [position for position, axis in enumerate(axes) if same(axis, along)]
            alone = len(there) == 1 and sum(same(axis, along) for axis in now.axes) == 1
            fact = Fact(fact.claims, there[0] - len(axes)) if alone else Fact(fact.everywhere)
        return fact if complete else both(known.fact, fact, self.proofs)


def _is_all_of_its_memory(node: Node) -> bool:
    own, whole = (size_expression(size) for size in bytes_of(example_of(node)))
    return equal(own, whole)
