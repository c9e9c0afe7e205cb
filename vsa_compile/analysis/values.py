"""What is known of a value (`Known`), and a call as an entry of the table of operators sees it (`OpCall`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.fx import Node

from ..torch_compat import size_expression
from .algebra import REORDERED, UNKNOWN, Axis, rigid, same, unit
from .facts import Claim, Fact, Proofs, constant
from .graph_facts import argument, example_of, first_argument, sizes_of
from .pieces import order
from .sizes import Size, equal
from .unify import contradiction, join, meet, unify

Layout = list[Axis]  # one axis per dimension of a tensor


class Somewhere:
    """A position that the graph does not show. One object is one position, two may be two."""


class Volume(NamedTuple):
    """Of three axes that are the frames, rows and cols of `value`, in this order: what introduced them."""

    value: object


Taken = tuple[tuple[Axis, int | Somewhere], ...]


@dataclass
class Known:
    """What is known of one tensor.

    `axes`: one per dimension. `fact`: what is known of its entries, for masks and their ingredients. `table`:
    it is computed from constants, parameters and positions alone, so its tokens are nobody's. `given`: it is
    an input of the graph, or a cast or view of one. `taken`: (axis, i) for each axis of which it holds
    position i alone, as x.unbind(1)[i] does.
    """

    axes: Layout
    fact: Fact | None = None
    table: bool = False
    given: bool = False
    taken: Taken = ()

    def __str__(self) -> str:
        marks = ("table " if self.table else "") + (str(self.fact) if self.fact else "")
        return f"{self.axes} {marks}".rstrip()


Value: TypeAlias = "Known | tuple[Value, ...] | None"  # of a tensor; of a tuple or list; of anything else
Result: TypeAlias = "Layout | Value | tuple[Layout | Value, ...]"  # of a layout rule; None: unknown


def unknown(example: object, rigid: str = UNKNOWN) -> Value:
    """A value of which only the sizes are known."""
    sizes = sizes_of(example)
    if sizes is not None:
        return Known([unit() if equal(size, 1) else Axis(size, rigid=rigid) for size in sizes])
    if isinstance(example, (tuple, list)):
        return tuple(unknown(item, rigid) for item in example)
    return None


@dataclass
class OpCall:
    """One call under analysis; arguments are found by name or position.

    `read` returns what is known of an argument, `stamp` how often its memory was written to; `proofs`
    compares sizes. `in_place`: the call uses the in-place spelling of its entry, with an underscore or an
    augmented assignment. `example`, `sizes`: the result's; `self_`: the first argument.
    """

    node: Node
    name: str
    read: Callable[[object], Value]
    stamp: Callable[[object], int]
    proofs: Proofs
    in_place: bool = False
    example: Any = field(init=False)
    sizes: list[Size] = field(init=False)
    self_: Any = field(init=False)

    def __post_init__(self) -> None:
        self.example = example_of(self.node)
        self.sizes = sizes_of(self.example) or []
        self.self_ = first_argument(self.node)

    def arg(self, position: int, name: str, default: object = None) -> Any:
        """The raw argument: a Node, a literal, or `default`."""
        return argument(self.node, position, name, default)

    def rest(self, position: int, name: str) -> Sequence[Any]:
        """Varargs that may also be passed as one sequence: x.view(2, 3) and x.view((2, 3))."""
        value = self.arg(position, name, ())
        return value if isinstance(value, (tuple, list)) else self.node.args[position:]

    def known(self, argument: object) -> Known | None:
        """What is known of a tensor argument."""
        value = self.read(argument)
        return value if isinstance(value, Known) else None

    def layout(self, argument: object) -> Layout | None:
        known = self.known(argument)
        return known.axes if known else None

    @property
    def other(self) -> object:
        """The second argument of a binary operation, under any of its names."""
        for name in ("other", "exponent", "value", "mat2", "vec2", "x2"):
            if name in self.node.kwargs:
                return self.node.kwargs[name]
        return self.node.args[1] if len(self.node.args) > 1 else None

    @property
    def input(self) -> Layout | None:
        return self.layout(self.self_)

    def literal(self, argument: object) -> Any:
        """The size that a literal, a SymInt or a node that holds one stands for; other values as they are."""
        value = example_of(argument)
        return size_expression(value) if isinstance(value, (int, torch.SymInt)) else value

    def fact(self, argument: object) -> Fact | None:
        """What is known of the entries of a tensor or a number."""
        known = self.known(argument)
        if known is not None:
            return _uniform_if_one(known)
        value = self.literal(argument)
        if isinstance(value, (bool, int, float)):
            return constant(value)
        size = self.proofs.respelled(value) if hasattr(value, "free_symbols") else None
        return None if size is None else constant(size)

    @cached_property
    def tensors(self) -> list[Known]:
        """What is known of all tensor arguments except `out`."""
        values = (*self.node.args, *(value for name, value in self.node.kwargs.items() if name != "out"))
        return list(_tensors(self.read(values)))


def _tensors(value: Value) -> Iterator[Known]:
    if isinstance(value, Known):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)


def _uniform_if_one(known: Known) -> Fact | None:
    """In a dimension of size 1, a claim of position 0 holds for every entry."""
    fact = known.fact
    if fact is None or len(known.axes) < -fact.dim or not equal(known.axes[fact.dim].size, 1):
        return fact
    claims = [Claim("is" if claim.kind == "position" else claim.kind, claim.value) for claim in fact.claims
              if equal(claim.start, 0)]  # fmt: skip
    return Fact(tuple(claims), -1, fact.rows)


def broadcast(operands: Sequence[Known], sizes: Sequence[Size]) -> Layout:
    """The axes of an elementwise result of `sizes`; aligned dimensions are unified, from the right.

    The result combines the tokens of its operands; tables count only if all operands are tables. A value to
    which positions are added keeps its tokens, and two values that share a table of positions stay two.
    """
    rows = [(one, [unit()] * (len(sizes) - len(one.axes)) + one.axes) for one in operands]
    rows = [(one, axes) for one, axes in rows if len(axes) == len(sizes)]
    met = [[meet(axes, others) for _, others in rows[:i]] for i, (_, axes) in enumerate(rows)]
    agree = [all(each) for each in met]
    carriers = [i for i, (one, _) in enumerate(rows) if not one.table] or list(range(len(rows)))
    result: Layout = []
    for dim, size in enumerate(sizes):
        axes = [rows[i][1][dim] for i in carriers]
        own = [axis for axis in axes if equal(axis.size, size)]
        if not own:  # expanded by a table
            own = [axes[dim] for _, axes in rows if equal(axes[dim].size, size)]
        if equal(size, 1):
            result.append(_single(axes))
        elif not own:
            result.append(Axis(size))
        elif all(agree[i] for i in carriers) or all(axis is own[0] for axis in own):
            result.append(join(own))
        else:
            result.append(_undisputed(own))
    return result


def in_order_of_all(layout: Layout, operands: Sequence[Known]) -> Layout:
    """The axes of a result whose entries are of one operand each, side by side: if one of these is in another
    order, so is the result. (In a sum, what is in another order is something added.)"""
    result = list(layout)
    for one in operands:
        for back in range(1, len(one.axes) + 1) if not one.table else ():
            own, now = one.axes[-back], result[-back]
            if own is not now and order(own) and not same(own, now):
                alone = rigid(own) and not order(now) and equal(own.size, now.size)
                known = REORDERED in (order(own), order(now))
                result[-back] = own if alone else Axis(now.size, rigid=REORDERED if known else UNKNOWN)
    return result


def _single(axes: Sequence[Axis]) -> Axis:
    """The axis of size 1 that is cut from another one, if there is exactly one."""
    runs = {axis for axis in axes if axis.cut is not None}
    return runs.pop() if len(runs) == 1 else unit()


def _undisputed(axes: Sequence[Axis]) -> Axis:
    """The only axis that is not rigid, if there is one; else a contradiction."""
    sure = list(dict.fromkeys(axis for axis in axes if not rigid(axis)))
    return sure[0] if len(sure) == 1 else contradiction(*axes)


def align(a: Axis, b: Axis) -> Axis:
    """The axis of two dimensions that an operation pairs position by position."""
    unify(a, b)
    return join([a, b])


def taken_at(axis: Axis, index: Any) -> Taken:
    """Position `index` of an axis, counted from its start."""
    if equal(axis.size, 1):
        return ()
    if isinstance(index, int) and isinstance(axis.size, int):
        return ((axis, index % axis.size),)
    return ((axis, index if isinstance(index, int) and index >= 0 else Somewhere()),)
