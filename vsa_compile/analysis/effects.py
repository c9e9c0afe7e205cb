"""Memory: which values share it, and what a write to one means for the others.

Values share memory if their example values share a storage; that covers views, and the inputs of checkpointed
bodies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import replace

import torch
from torch.fx import Node

from ..torch_compat import bytes_of, size_expression, storage_of
from .algebra import REORDERED, UNKNOWN, Axis, leaves, same
from .facts import Fact, Proofs, both, patched
from .graph_facts import example_of, tensors_in
from .overwriting import Write
from .pieces import place, replaced
from .sizes import Size, equal, product
from .values import Known, Taken, Value, unknown


class Memory:
    """What is known of every value at this point of the walk, and the writes so far."""

    def __init__(self, proofs: Proofs) -> None:
        self.values: dict[Node, Value] = {}
        self.proofs = proofs
        self.sharing: dict[Hashable, list[Node]] = defaultdict(list)
        self.writers: dict[Hashable, list[Node]] = defaultdict(list)

    def define(self, node: Node, value: Value) -> None:
        """Add a value. For a view of memory that was written to, `value` describes the present content."""
        self.values[node] = value
        for key in self.keys(node):
            self.sharing[key].append(node)

    def keys(self, node: object) -> set[Hashable]:
        """Keys of the memories that hold a node's tensors."""
        keys = (
            {storage_of(tensor) for tensor in tensors_in(example_of(node))}
            if isinstance(node, Node)
            else set()
        )
        return keys - {None}

    def stamp(self, node: object) -> int:
        """How often the memory of a value has been written to."""
        return sum(len(self.writers[key]) for key in self.keys(node))

    def writers_of(self, node: Node) -> list[Node]:
        """The calls that wrote into the memory of a value."""
        return [writer for key in self.keys(node) for writer in self.writers[key]]

    def write(self, writer: Node, written: Node, now: Known | None) -> None:
        """Record that `written` holds `now` from here on; None: its content is unknown."""
        before = self.values.get(written)
        for key in self.keys(written):
            self.writers[key].append(writer)
        others = {
            node: None for key in self.keys(written) for node in self.sharing[key] if node is not written
        }
        if now is None or not isinstance(before, Known):
            self.values.update({node: unknown(example_of(node)) for node in (*others, written)})
            return
        if not others:
            self.values[written] = now
            return
        own, whole = (size_expression(size) for size in bytes_of(example_of(written)))
        complete = equal(own, whole) and _is_dense(example_of(written))
        alone = complete or equal(own * product(axis.size for axis, _ in before.taken), whole)
        write = Write(before.table, not now.table)
        placed = dict(write.placed(before.taken, now.taken, all_of_it=alone))
        for other in others:
            self.values[other] = self._seen_through(
                self.values.get(other), example_of(other), example_of(written), before, now, placed, complete
            )
        taken = tuple((placed.get(axis, axis), at) for axis, at in before.taken)
        self.values[written] = replace(now, taken=taken)

    def _seen_through(
        self,
        known: Value,
        example: object,
        written: torch.Tensor,
        before: Known,
        now: Known,
        placed: Mapping[Axis, Axis],
        complete: bool,
    ) -> Value:
        """What is known of a value after a write to another value, `written`, that shares its memory.

        `placed`: axis -> new axis, for axes of which one position was written. `complete`: the write covered
        all of the memory.
        """
        if isinstance(known, tuple) and isinstance(example, (tuple, list)) and len(known) == len(example):
            return tuple(
                self._seen_through(*one, written, before, now, placed, complete)
                for one in zip(known, example, strict=True)
            )
        if not isinstance(known, Known):
            return unknown(example)
        taken = tuple((placed.get(axis, axis), at) for axis, at in known.taken)
        apart = _apart(known.taken, before.taken) and not _may_overlap(example, written)
        axes, write = list(known.axes), Write(before.table, not now.table)
        whole = [leaf for axis in known.axes for leaf in leaves(axis)]
        covers = [all(leaf in whole for leaf in leaves(axis)) for axis in before.axes]
        places = {axis for axis, _ in known.taken}
        changes = [(old, new) for old, new in placed.items() if old not in places]
        for dim, (old, new) in enumerate(zip(before.axes, now.axes, strict=True)):
            others = not before.taken and all(covers[:dim] + covers[dim + 1 :])
            held = new if complete else write.held(old, new, everywhere=covers[dim], all_of_it=others)
            changes += [] if held is old else [(old, held)]
        for old, new in changes:
            found = [replaced(axis, old, new) for axis in axes]
            if sum(axis is not None for axis in found) == 1:
                axes = [axis or kept for axis, kept in zip(found, axes, strict=True)]
            elif not apart:  # tokens were put somewhere: no hint may say that they are in order
                return unknown(example, REORDERED if write.tokens else UNKNOWN)
        if apart:  # disjoint, but in one memory: the new axes of the whole hold here too
            return replace(known, axes=axes, taken=taken)
        alike = isinstance(example, torch.Tensor) and example.dtype == written.dtype  # else other numbers
        fact = self._fact_through(known, axes, before, now, complete) if alike else None
        return Known(axes, fact, known.table and now.table, taken=taken)

    def _fact_through(
        self, known: Known, axes: list, before: Known, now: Known, complete: bool
    ) -> Fact | None:
        start = None if complete else _run_within(known, before)
        if start is not None:
            size = before.axes[-1].size
            inside = now.fact if now.fact is None or now.fact.dim == -1 else Fact(now.fact.everywhere)
            return patched(known.fact, inside, (start, start + size), all_rows=True, proofs=self.proofs)
        fact = now.fact and Fact(now.fact.claims, now.fact.dim)
        if fact is not None and fact.claims != fact.everywhere:
            along = now.axes[fact.dim]
            there = [position for position, axis in enumerate(axes) if same(axis, along)]
            alone = len(there) == 1 and sum(same(axis, along) for axis in now.axes) == 1
            fact = Fact(fact.claims, there[0] - len(axes)) if alone else Fact(fact.everywhere)
        return fact if complete else both(known.fact, fact, self.proofs)


def _is_dense(example: torch.Tensor) -> bool:
    """Whether the elements lie side by side in memory; as_strided windows of it may overlap."""
    left = [
        (size_expression(n), size_expression(stride))
        for n, stride in zip(example.shape, example.stride(), strict=True)
    ]
    left, step = [(n, stride) for n, stride in left if not equal(n, 1)], 1
    while left:
        innermost = next((one for one in left if equal(one[1], step)), None)
        if innermost is None:
            return False
        left.remove(innermost)
        step = step * innermost[0]
    return True


def _run_within(known: Known, written: Known) -> Size | None:
    """Where a view (..., run) lies in the last dimension of a value, if it has all the rest of it."""
    alike = len(known.axes) == len(written.axes) > 0 and known.taken == written.taken
    if not alike or any(a is not b for a, b in zip(known.axes[:-1], written.axes[:-1], strict=True)):
        return None
    facts = [one.fact for one in (known, written) if one.fact is not None]
    return place(written.axes[-1], known.axes[-1]) if all(fact.dim == -1 for fact in facts) else None


def _apart(one: Taken, other: Taken) -> bool:
    """Whether two values lie at different positions of one axis."""
    places = dict(one)
    found = [(at, places[axis]) for axis, at in other if axis in places]
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in found)


def _may_overlap(one: object, other: torch.Tensor) -> bool:
    """Whether two views of one memory may share an element, as positions of an expanded dimension do, and
    windows. Sizes that are symbols are only asked where the views begin."""
    if not isinstance(one, torch.Tensor):
        return True
    apart = size_expression(one.storage_offset()) - size_expression(other.storage_offset())
    if not isinstance(apart, int):
        return equal(apart, 0)
    steps: dict[int, tuple[int, int]] = {}  # stride -> how many of it one may be ahead of the other, from, to
    for view, ahead in ((one, True), (other, False)):
        for n, step in zip(view.shape, view.stride(), strict=True):
            if not (isinstance(n, int) and isinstance(step, int)):
                return equal(apart, 0)
            least, most = steps.get(step, (0, 0))
            steps[step] = (least, most + n - 1) if ahead else (least - n + 1, most)
    return _reaches(apart, sorted(steps.items(), reverse=True))


def _reaches(distance: int, steps: list[tuple[int, tuple[int, int]]]) -> bool:
    """Whether the distance can be made 0 by steps, from so many back to so many forth of each size."""
    if not steps:
        return distance == 0
    (step, (least, most)), *finer = steps
    if step == 0:
        return distance == 0
    back, forth = (sum(size * ends[way] for size, ends in finer) for way in (0, 1))
    first, last = max(least, -((distance + forth) // step)), min(most, (-distance - back) // step)
    if last - first > 3:  # one dimension runs through others
        return True
    return any(_reaches(distance + taken * step, finer) for taken in range(first, last + 1))
