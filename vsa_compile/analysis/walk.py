"""Applies the table of operators to a graph, in order, and to the checkpointed bodies inside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import sympy
from torch.fx import GraphModule, Node

from ..torch_compat import (
    counters,
    is_state,
    known_at_least,
    number_of,
    registered_name,
    shape_environment,
    size_hint,
)
from .algebra import REORDERED, Axis, Form, form_of, mark_origins
from .effects import Memory
from .facts import Proofs, constant
from .graph_facts import argument, bodies_of, example_of, first_argument, is_call, sizes_of
from .optable import Entry, entry_of, value_of, written_by
from .sizes import Size, equal
from .values import Known, OpCall, Value, unknown

log = logging.getLogger(__name__)

ATTENTION = "scaled_dot_product_attention"
# Operators with projections and attention in one node, which Dynamo does not trace into.
WHOLE_LAYERS = (
    "multi_head_attention_forward",
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
)
_ARGUMENTS = ("query", "key", "value", "attn_mask")

# Operators whose body takes the arguments behind it and returns the call's results, unchanged.
TRANSPARENT = (
    "higher_order::tag_activation_checkpoint",
    "higher_order::wrap_with_set_grad_enabled",
    "higher_order::wrap_with_autocast",
)


@dataclass(frozen=True)
class AttentionCall:
    """One SDPA node: the graph module that owns it, and the operator whose body encloses it, if any.

    `known`: what was known of its tensor arguments when it ran. `padding`: if attn_mask repeats a key padding
    p, (B or 1, 1, 1, N), for every query or head, or is p & p.transpose(2, 3): p, and what was known of it.
    `padding_sees_nothing`: whether it is the latter.
    """

    node: Node
    owner: GraphModule
    enclosed_by: str | None = None
    known: dict[str, Known] = field(default_factory=dict, hash=False, compare=False)
    padding: tuple[Node, Known] | None = field(default=None, hash=False, compare=False)
    padding_sees_nothing: bool = False

    def tokens(self, name: str) -> Axis | None:
        """The token axis of an argument (..., N, D) when the call ran."""
        known = self.known.get(name)
        return known.axes[-2] if known is not None and len(known.axes) >= 2 else None


class Analysis:
    """What is known of one captured graph."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.environment = shape_environment(module)
        self.calls: list[AttentionCall] = []
        self.outer: dict[Node, object] = {}  # placeholder of a body -> argument of the call
        self.inputs: set[Axis] = set()  # the axes of the graph's inputs
        self.transforms = False  # whether the graph is under torch.func
        self.equal_counts: dict[Size, Size] = {}  # data-dependent size -> the size that it equals
        self.failures: list[str] = []  # names of operators whose entry failed
        self.proofs = Proofs(self._known_at_least, self._respelled)
        self.memory = Memory(self.proofs)

    @property
    def values(self) -> dict[Node, Value]:
        """What is known of every value at the end of the graph."""
        return self.memory.values

    def hint(self, size: Size) -> int:
        """A size in the example inputs; adds no guard."""
        return size_hint(size, self.environment)

    def tokens(self, argument: object) -> Axis | None:
        """The token axis of a (..., N, D) value."""
        value = self.values.get(argument) if isinstance(argument, Node) else None
        return value.axes[-2] if isinstance(value, Known) and len(value.axes) >= 2 else None

    def read(self, argument: object) -> Value:
        if isinstance(argument, Node):
            return self.values.get(argument)
        if isinstance(argument, (tuple, list)):
            return tuple([self.read(item) for item in argument])
        return None

    def _known_at_least(self, a: Size, b: Size) -> bool:
        return known_at_least(a, b, self.environment)

    def _respelled(self, size: Size) -> Size:
        return size.subs(self.equal_counts) if self.equal_counts and isinstance(size, sympy.Basic) else size


def analyse(module: GraphModule) -> Analysis:
    """Find every SDPA call of a captured graph, and what is known of every value."""
    analysis = Analysis(module)
    _Walk(analysis).graph(module, None)
    for line in described(analysis) if log.isEnabledFor(logging.DEBUG) else ():
        log.debug("%s", line)
    return analysis


def described(analysis: Analysis) -> Iterator[str]:
    """One line per value: what is known of it at the end of the graph."""
    for node, value in analysis.values.items():
        if value is not None:
            yield f"{node.name}: {value if isinstance(value, Known) else [str(one) for one in value]}"


class _Walk:
    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.memory = analysis, analysis.memory
        self.counted: dict[object, Size] = {}
        self.walked: set[GraphModule] = set()

    def graph(self, module: GraphModule, arguments: tuple[object, ...] | None) -> Value:
        inputs = iter(arguments or ())
        for node in module.graph.nodes:
            if node.op == "placeholder" and arguments is not None:
                argument = next(inputs, None)
                self.analysis.outer[node] = argument
                value = self.analysis.read(argument)
                self.memory.define(node, unknown(example_of(node), "") if value is None else value)
            elif node.op in ("placeholder", "get_attr"):
                value = _source(module, node)
                self.analysis.inputs.update(value.axes if isinstance(value, Known) else ())
                self.memory.define(node, value)
            elif node.op == "output":
                return self.analysis.read(node.args[0])
            elif is_call(node):
                self.call(module, node)
        return None

    def call(self, module: GraphModule, node: Node) -> None:
        bodies = list(bodies_of(module, node))
        name = registered_name(node.target) or ""
        if name in TRANSPARENT and len(bodies) == 1 and bodies[0] not in self.walked:
            self.walked.add(bodies[0])
            self.memory.define(node, _checked(self.graph(bodies[0], _behind_body(node)), node))
            return
        entry = entry_of(node)
        for body in bodies:
            self.enclosed(body, name.rpartition("::")[2])
        self.note(module, node, entry)
        call = OpCall(
            node, entry.name if entry else "", self.analysis.read, self.memory.stamp, self.analysis.proofs,
            entry.in_place if entry else False,
        )  # fmt: skip
        value, becomes = self.applied(entry, call)
        for form in _reordered((value, becomes)):
            form.by = form.by or call.name
        self.write(node, entry, value, becomes)
        if entry is not None and (entry.becomes is not None or entry.in_place):
            value = self.analysis.read(first_argument(node))
        self.memory.define(node, _checked(value, node))
        if entry is not None and entry.name == "getitem":
            self.count(node)

    def note(self, module: GraphModule, node: Node, entry: Entry | None) -> None:
        """Record attention calls and transforms."""
        name = entry.name if entry else ""
        if name == ATTENTION:
            read = {name: self.analysis.read(argument(node, i, name)) for i, name in enumerate(_ARGUMENTS)}
            known = {name: one for name, one in read.items() if isinstance(one, Known)}
            how, padding = self.padding(known.get("attn_mask"), module)
            self.analysis.calls.append(AttentionCall(node, module, None, known, padding, how == "both"))
        elif name in WHOLE_LAYERS:
            self.analysis.calls.append(AttentionCall(node, module, enclosed_by=name))
        elif str(getattr(node.target, "__name__", "")).endswith("_increment_nesting"):
            self.analysis.transforms = True

    def padding(self, mask: Known | None, module: GraphModule) -> tuple[str, tuple[Node, Known] | None]:
        """The padding of which a mask has the rows, or rows and columns, unless it was written to since."""
        rows = mask.fact.rows if mask is not None and mask.fact is not None else None
        if rows is None or rows.how == "columns":
            return "", None
        node, stamp = rows.content
        known = self.analysis.values.get(node)
        kept = node.graph is module.graph and self.memory.stamp(node) == stamp
        return (rows.how, (node, known)) if kept and isinstance(known, Known) else ("", None)

    def applied(self, entry: Entry | None, call: OpCall) -> tuple[Value, Known | None]:
        """(what is known of the result, what is known of the first argument afterwards)."""
        if entry is None:
            return None, None
        try:
            return value_of(entry, call), entry.becomes(call) if entry.becomes else None
        except Exception:  # an unforeseen spelling must not break a working model
            self.analysis.failures.append(entry.name)
            counters()["vsa_compile"]["failed_entries"] += 1
            log.warning("the entry of %s failed; its result counts as unknown", entry.name, exc_info=True)
            return None, None

    def write(self, node: Node, entry: Entry | None, value: Value, becomes: Known | None) -> None:
        """Apply a call's writes: its result, what its entry says, or unknown content."""
        first = first_argument(node)
        for written in written_by(node, entry):
            now = None
            if entry is not None and written is first and entry.becomes is not None:
                now = becomes
            elif entry is not None and (
                (written is first and entry.in_place) or written is node.kwargs.get("out")
            ):
                now = value if isinstance(value, Known) else None
            checked = None if now is None else _checked(now, written)
            self.memory.write(node, written, checked if isinstance(checked, Known) else None)

    def count(self, node: Node) -> None:
        """Note data-dependent sizes that are equal because they count the same mask: x[~mask] and y[~mask].

        For torch every `~mask` is a new value, and so every x[~mask] has a size symbol of its own.
        """
        index = node.args[1]
        if not isinstance(index, Node) or str(getattr(example_of(index), "dtype", "")) != "torch.bool":
            return
        size = (sizes_of(example_of(node)) or [0])[0]
        known = self.counted.setdefault(self._content(index), size)
        if not isinstance(size, int) and isinstance(size, sympy.Symbol) and size != known:
            self.analysis.equal_counts[size] = known

    def _content(self, mask: Node) -> object:
        """A key that is the same for masks with the same content: a node and its state, or a complement."""
        entry = entry_of(mask) if is_call(mask) else None
        unwritten = not self.memory.writers_of(mask)
        if (
            entry is not None
            and entry.name in ("invert", "bitwise_not", "logical_not")
            and unwritten
            and mask.args
        ):
            inner = mask.args[0]
            if isinstance(inner, Node) and not self.memory.writers_of(inner):
                return "not", self._content(inner)
        return mask, self.memory.stamp(mask)

    def enclosed(self, body: GraphModule, name: str) -> None:
        """Record the attention calls of a body that is not analysed, so that each gets a refusal."""
        for node in body.graph.nodes:
            if is_call(node):
                entry = entry_of(node)
                if entry is not None and entry.name == ATTENTION:
                    self.analysis.calls.append(AttentionCall(node, body, enclosed_by=name))
                for inner in bodies_of(body, node):
                    self.enclosed(inner, name)


def _behind_body(node: Node) -> tuple[object, ...]:
    """What a call passes to its body: the arguments that follow it."""
    body = next(i for i, value in enumerate(node.args) if isinstance(value, Node) and value.op == "get_attr")
    return tuple(node.args[body + 1 :])


def _reordered(value: Value) -> Iterator[Form]:
    """The forms of a value's axes that are reordered."""
    if isinstance(value, Known):
        forms = (axis.form for axis in value.axes)
        yield from (form for form in forms if form is not None and form.rigid == REORDERED)
    elif isinstance(value, tuple):
        for item in value:
            yield from _reordered(item)


def _source(module: GraphModule, node: Node) -> Value:
    """An input, parameter or constant. Its dimensions, if four or more, are axes of one value.

    Of four, all but the second, which is where pictures have their channels.
    """
    example, held = example_of(node), node.op == "get_attr"
    if example is None and held:
        example = getattr(module, str(node.target), None)
    value = unknown(example, "")
    if isinstance(value, Known):
        number = number_of(node)
        value.fact = None if number is None else constant(number)
        value.table = held or is_state(node) or number is not None
        value.given = not value.table
        if len(value.axes) >= 4:
            axes = list(value.axes)
            axes[1] = axes[1] if len(axes) > 4 else Axis(1)
            mark_origins(axes, node)
    return value


def _checked(value: Value, node: Node) -> Value:
    """Check an entry's answer against the real output; what does not fit becomes unknown."""
    return _fitted(value, example_of(node))


def _fitted(value: Value, example: object) -> Value:
    sizes = sizes_of(example)
    if sizes is not None:
        if not isinstance(value, Known) or len(value.axes) != len(sizes):
            return unknown(example)
        axes = [_sized(axis, size) for axis, size in zip(value.axes, sizes, strict=True)]
        return Known(axes, value.fact, value.table, value.given, value.taken)
    if isinstance(example, (tuple, list)):
        if not isinstance(value, (tuple, list)) or len(value) != len(example):
            return unknown(example)
        return tuple(_fitted(v, e) for v, e in zip(value, example, strict=True))
    return None


def _sized(axis: Axis, size: Size) -> Axis:
    """The axis if it has the real size, else a new one. An axis of yet unknown size gets the real one."""
    if isinstance(axis.size, sympy.Dummy):
        axis.size = axis.shown = form_of(axis).size = size
    return axis if equal(axis.size, size) else Axis(size)
