"""The table of operators: what is called -> its result's layout, its mask fact, and what it writes.

An entry is keyed by the object that is called: a torch function, a torch.Tensor method, a Python operator, or
an operator registered with torch under its full name (`aten::view`, `vsa_compile::gate`). A bare name is no
key: a user's own function called `flatten` is not torch's, and not in the table.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from ...torch_compat import owned_namespaces, registered_name, written_arguments
from ..facts import Fact
from ..graph_facts import argument, example_of, first_argument
from ..values import Known, Layout, OpCall, Result, Taken, Value
from . import carry

LayoutRule = Callable[[OpCall], Result]
FactRule = Callable[[OpCall, Layout], "Fact | None"]  # (call, its layout)
WriteRule = Callable[[OpCall], "Known | None"]  # -> what the first argument becomes


@dataclass(frozen=True)
class Entry:
    """One operator.

    `layout`: the axes of its result. `fact`: what is known of the entries of its result. `becomes`: for an
    operator that always writes into its first argument, the content afterwards (None: unknown). `layer`: it
    computes new features, as a linear layer does. `table`: whether its result is nobody's tokens; None: if
    all tensor arguments are tables. `writes`: further arguments that it writes to, by position and name.
    `in_place`: this is the spelling that writes the result into the first argument.
    """

    name: str
    layout: LayoutRule
    fact: FactRule | None = None
    becomes: WriteRule | None = None
    layer: bool = False
    table: bool | None = None
    writes: tuple[tuple[int, str], ...] = field(default=())
    in_place: bool = False


_ENTRIES: dict[object, Entry] = {}

# Python's operators that occur in graphs, with their augmented assignments, which write into the left side.
_PYTHON = {
    "add": "iadd", "sub": "isub", "mul": "imul", "truediv": "itruediv", "floordiv": "ifloordiv",
    "mod": "imod", "pow": "ipow", "and_": "iand", "or_": "ior", "xor": "ixor", "matmul": "imatmul",
    "lshift": "ilshift", "rshift": "irshift", "neg": "", "pos": "", "invert": "", "eq": "", "ne": "",
    "lt": "", "le": "", "gt": "", "ge": "", "getitem": "", "setitem": "",
}  # fmt: skip
NAMESPACES = (torch.Tensor, torch, F, *owned_namespaces())


def op(*names: str, **what: Any) -> Callable[[LayoutRule], LayoutRule]:
    """Register a function as the layout rule of operators of these names, wherever torch has them, and of
    the spellings that write their result into the first argument. `what`: further fields of the entry."""

    def register(rule: LayoutRule) -> LayoutRule:
        for name in names:
            entry = Entry(name, rule, **what)
            for called in _objects(name):
                _ENTRIES[called] = entry
            for called in _objects(name + "_", augmented=_PYTHON.get(name, "")):
                _ENTRIES.setdefault(called, Entry(name, rule, in_place=True, **what))
        return rule

    return register


def own(name: str, **what: Any) -> Callable[[LayoutRule], LayoutRule]:
    """Register a rule for the operator with this full name, and for nothing else."""

    def register(rule: LayoutRule) -> LayoutRule:
        _ENTRIES[name] = Entry(name, rule, **what)
        return rule

    return register


def python(called: object, **what: Any) -> Callable[[LayoutRule], LayoutRule]:
    """Register a rule for one Python function."""

    def register(rule: LayoutRule) -> LayoutRule:
        _ENTRIES[called] = Entry(getattr(called, "__name__", ""), rule, **what)
        return rule

    return register


def _objects(name: str, augmented: str = "") -> Iterator[object]:
    yield f"aten::{name}"
    if name in _PYTHON:
        yield getattr(operator, name)
    if augmented:
        yield getattr(operator, augmented)
    for space in NAMESPACES:
        found = getattr(space, name, None)
        if callable(found):
            yield found


def entry_of(node: Node) -> Entry | None:
    """The entry for what a node calls; None if that is neither torch's nor ours."""
    called = node.target
    if node.op == "call_method":
        owner = example_of(node.args[0]) if node.args else None
        called = getattr(torch.Tensor, str(called), None) if isinstance(owner, torch.Tensor) else None
    return None if called is None else _entry(called)


def name_of(node: Node) -> str:
    """The name of the entry for what a node calls; "" if there is none."""
    entry = entry_of(node) if node.op in ("call_function", "call_method") else None
    return entry.name if entry is not None else ""


@cache
def _entry(called: object) -> Entry | None:
    name = registered_name(called)
    found = _ENTRIES.get(name or called)
    if found is not None:
        return found
    if name is not None:
        space, _, short = name.partition("::")
        return _plain(short) if space == "aten" else None
    short = getattr(called, "__name__", "")
    if any(getattr(space, short, None) is called for space in NAMESPACES):
        return _plain(short)
    return None


def _plain(name: str) -> Entry:
    """The entry of a torch operator that has none: pointwise if aten says so, else of unknown result."""
    from .compute import pointwise

    base = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    rule = pointwise if is_pointwise(base) else lambda call: None
    return Entry(base, rule, in_place=base != name)


@cache
def is_pointwise(name: str) -> bool:
    """Whether aten tags any overload of this operator as pointwise."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    return any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())


def written_by(node: Node, entry: Entry | None) -> list[Node]:
    """The arguments that a call may write to; an unknown operator may write to all of its arguments."""
    by_schema = written_arguments(node)
    if by_schema is not None:
        return by_schema
    if entry is None:
        return list(node.all_input_nodes)
    written: list[object] = [node.kwargs["out"]] if node.kwargs.get("out") is not None else []
    written += [argument(node, position, name) for position, name in entry.writes]
    if entry.in_place or entry.becomes is not None or _asked_in_place(node):
        written.append(first_argument(node))
    return [one for one in _flat(written) if isinstance(one, Node)]


def _flat(values: Iterable[object]) -> Iterator[object]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value


def _asked_in_place(node: Node) -> bool:
    """F.relu(x, inplace=True), by name or by position."""
    position = None if node.op == "call_method" else _position_of_inplace(node.target)
    return position is not None and bool(argument(node, position, "inplace", False))


@cache
def _position_of_inplace(function: Any) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def value_of(entry: Entry, call: OpCall) -> Value:
    """What is known of a call's result."""
    layout = entry.layout(call)
    if isinstance(layout, tuple):
        return tuple(_known(entry, call, one, i) for i, one in enumerate(layout))
    return _known(entry, call, layout, None)


def _known(entry: Entry, call: OpCall, layout: Layout | Value, index: int | None) -> Value:
    if not isinstance(layout, list):
        return layout  # a Known already, or nothing
    fact = entry.fact(call, layout) if entry.fact else None
    tensors = call.tensors
    table = entry.table if entry.table is not None else all(known.table for known in tensors)
    given = entry.fact in _THE_SAME and index is None and _is_given(call)
    return Known(layout, fact, table, given, _taken(call, tensors))


def _taken(call: OpCall, tensors: list[Known]) -> Taken:
    """The single positions that the operands are slices of; an in-place addition keeps its target's."""
    carriers = [known for known in tensors if not known.table] or tensors
    if call.in_place and (first := call.known(call.self_)) is not None and not first.table:
        carriers = [first]
    alike = {known.taken for known in carriers}
    return alike.pop() if len(alike) == 1 else ()


# Views and copies, whose entries are those of their input. (A cast to few bits may wrap.)
_THE_SAME = (carry.copied, carry.moved, carry.turned, carry.stretched)
_NARROW = (torch.int8, torch.uint8, torch.int16)


def _is_given(call: OpCall) -> bool:
    known = call.known(call.self_)
    return known is not None and known.given and call.example.dtype not in _NARROW
