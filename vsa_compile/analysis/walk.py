"""Applies the layout rules to a graph, in order, and to the checkpointed bodies inside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch.fx import GraphModule, Node

from ..torch_compat import shape_environment, size_hint
from .algebra import Axis, Size, equal, mark_origins
from .equal_data_sizes import equal_counts
from .graph_facts import Call, Value, example_of, op_name, sizes_of, unknown
from .optable import compute, indexing, views  # noqa: F401  (they fill the table of rules)
from .optable.table import RULES, is_pointwise

log = logging.getLogger(__name__)

ATTENTION = "scaled_dot_product_attention"
# One node for projections and attention together, which Dynamo does not look into.
WHOLE_LAYERS = (
    "multi_head_attention_forward",
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
)

# Bodies whose inputs and outputs are plainly the arguments and results of the call.
TRANSPARENT = ("tag_activation_checkpoint",)


@dataclass(frozen=True)
class AttentionCall:
    """One SDPA node: the graph module that owns it, and the op whose body encloses it, if any."""

    node: Node
    owner: GraphModule
    enclosed_by: str | None = None


@dataclass
class Analysis:
    """What is known of one captured graph."""

    module: GraphModule
    calls: list[AttentionCall] = field(default_factory=list)
    values: dict[Node, Value] = field(default_factory=dict)
    outer: dict[Node, Any] = field(default_factory=dict)  # body placeholder -> argument of the call
    transforms: bool = False  # under torch.func

    @cached_property
    def environment(self) -> Any | None:
        """The ShapeEnv of the graph's symbolic sizes, None if there are none."""
        return shape_environment(self.module)

    @cached_property
    def equal_counts(self) -> dict[Any, Size]:
        """Sizes that are data and equal others."""
        return equal_counts(self.module.graph)

    def hint(self, size: Size) -> int:
        """A size on the example inputs; adds no guard."""
        return size_hint(size, self.environment)

    def tokens(self, argument: Any) -> Axis | None:
        """The token axis of a (..., N, D) value."""
        value = self.values.get(argument) if isinstance(argument, Node) else None
        return value[-2] if isinstance(value, list) and len(value) >= 2 else None


def analyse(module: GraphModule) -> Analysis:
    """Find every SDPA call of a captured graph and the layout of every value around it."""
    analysis = Analysis(module)
    _walk(analysis, module, None)
    return analysis


def _walk(analysis: Analysis, module: GraphModule, arguments: tuple[Any, ...] | None) -> Value:
    values = analysis.values
    inputs = iter(arguments or ())
    for node in module.graph.nodes:
        if node.op == "placeholder" and arguments is not None:
            argument = next(inputs, None)
            analysis.outer[node] = argument
            values[node] = values.get(argument) if isinstance(argument, Node) else None
            values[node] = values[node] or unknown(example_of(node))
        elif node.op in ("placeholder", "get_attr"):
            values[node] = _source(module, node)
        elif node.op == "output":
            return _read(values, node.args[0])
        elif node.op in ("call_function", "call_method"):
            values[node] = _checked(_call(analysis, module, node), node)
    return None


def _source(module: GraphModule, node: Node) -> Value:
    """An input, parameter or constant; the dimensions of one with four or more are axes of one value."""
    example = example_of(node)
    if example is None and node.op == "get_attr":
        example = getattr(module, str(node.target), None)
    value = unknown(example)
    if isinstance(value, list) and len(value) >= 4:
        mark_origins(value, node)
    return value


def _call(analysis: Analysis, module: GraphModule, node: Node) -> Value:
    name = op_name(node)
    bodies = list(_bodies(module, node))
    if bodies and name in TRANSPARENT:
        return _walk(analysis, bodies[0], tuple(node.args[1:]))
    for body in bodies:
        _enclosed(analysis, body, name)
    if name == ATTENTION:
        analysis.calls.append(AttentionCall(node, module))
    elif name in WHOLE_LAYERS:
        analysis.calls.append(AttentionCall(node, module, enclosed_by=name))
    elif name.endswith("_increment_nesting"):
        analysis.transforms = True
    if name == "setitem" and isinstance(node.args[0], Node) and indexing.scatters(node):
        analysis.values[node.args[0]] = unknown(example_of(node.args[0]))
        return None

    call = Call(node, name, lambda argument: _read(analysis.values, argument))
    rule = RULES.get(name) or (compute.pointwise if is_pointwise(name) else None)
    try:
        return rule(call) if rule is not None else None
    except Exception:  # a spelling that the rule was not written for must not break a working model
        log.warning("the layout rule of %s failed; its result counts as unknown", name, exc_info=True)
        return None


def _read(values: dict[Node, Value], argument: Any) -> Value:
    if isinstance(argument, (tuple, list)):
        return tuple(_read(values, item) for item in argument)
    return values.get(argument) if isinstance(argument, Node) else None


def _bodies(module: GraphModule, node: Node) -> Iterator[GraphModule]:
    for argument in node.args:
        if isinstance(argument, Node) and argument.op == "get_attr":
            body = getattr(module, str(argument.target), None)
            if isinstance(body, GraphModule):
                yield body


def _enclosed(analysis: Analysis, body: GraphModule, name: str) -> None:
    """Record the attention calls of a body that is not analysed, so that each gets its refusal."""
    for node in body.graph.nodes:
        if node.op in ("call_function", "call_method"):
            if op_name(node) == ATTENTION:
                analysis.calls.append(AttentionCall(node, body, enclosed_by=name))
            for inner in _bodies(body, node):
                _enclosed(analysis, inner, name)


def _checked(value: Value, node: Node) -> Value:
    """Hold a rule's answer against the real output; what does not fit becomes unknown."""
    return _fitted(value, example_of(node))


def _fitted(value: Value, example: Any) -> Value:
    sizes = sizes_of(example)
    if sizes is not None:
        if not isinstance(value, list) or len(value) != len(sizes):
            return unknown(example)
        return [a if equal(a.size, s) else Axis(s) for a, s in zip(value, sizes, strict=True)]
    if isinstance(example, (tuple, list)):
        if not isinstance(value, (tuple, list)) or len(value) != len(example):
            return unknown(example)
        return tuple(_fitted(v, e) for v, e in zip(value, example, strict=True))
    return None
