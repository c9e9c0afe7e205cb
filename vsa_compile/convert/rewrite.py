"""Plans a `vsa_compile::attention` node in the place of every Conversion's SDPA node, with its metadata.

Changes no graph: the plan consists of values, which `edits.apply` inserts. Symbolic sizes become nodes that
are computed from the graph's inputs; arguments never contain sympy.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from .. import methods
from ..analysis.algebra import Size, equal
from ..analysis.graph_facts import example_of, sizes_of
from ..runtime.state import Wanted
from ..torch_compat import (
    FakeMode,
    fake_mode_of,
    is_floor_division,
    is_remainder,
    on_examples,
    shape_environment,
    size_expression,
    size_hint,
    symbol_of,
)
from . import refusals
from .edits import Edit, NewNode, example_of_argument, new_node
from .judge import Conversion, Decision, Refusal, attention_arguments
from .refusals import Refused
from .strides import changed_by, in_order_of, places_of, same_strides

aten = torch.ops.aten

SizeArgument = int | Node | NewNode
_OPERATORS = {sympy.Add: operator.add, sympy.Mul: operator.mul}


def plan(module: GraphModule, decisions: list[Decision], wanted: Wanted) -> tuple[list[Decision], list[Edit]]:
    """An edit for every Conversion, and the decisions, where what cannot be written has become a Refusal."""
    times = Counter(decision.call.node for decision in decisions)
    mode, owners = fake_mode_of(module), {}
    result: list[Decision] = []
    edits: list[Edit] = []
    for decision in decisions:
        if isinstance(decision, Conversion):
            owner = decision.call.owner
            facts = owners[owner] = owners.get(owner) or _Owner(owner, mode)
            try:
                if times[decision.call.node] > 1:
                    raise Refused(refusals.shared_body())
                edits.append(_edit(decision, wanted, facts))
            except Refused as refused:
                call, name, segments = decision.call, decision.name, decision.segments
                decision = Refusal(call, name, segments, refused.reason)
        result.append(decision)
    return result, edits


class _Owner:
    """A graph, and what the plans of its conversions share."""

    def __init__(self, module: GraphModule, mode: FakeMode | None) -> None:
        self.module, self.mode = module, mode
        self.environment = shape_environment(module)
        self.places = places_of(module.graph)
        self.sizes = _Sizes(module, mode)
        self.attentions: dict[tuple, NewNode] = {}

    def hint(self, size: Size) -> int:
        return size_hint(size, self.environment)

    def new_node(self, like: Node, target: Callable[..., Any], *args: object) -> NewNode:
        return new_node(self.mode, like, target, *args)

    def attention(self, like: Node, *args: object) -> NewNode:
        """The sparse call. Computing its example runs the whole method, so calls that are alike share one."""
        key = tuple(map(_described, args))
        before = self.attentions.get(key)
        if before is None:
            made = self.attentions[key] = self.new_node(like, torch.ops.vsa_compile.attention.default, *args)
            return made
        x = before.example
        example = on_examples(self.mode, "new_empty_strided", x, x.shape, x.stride())
        return NewNode(before.target, args, example, like.meta)


def _described(argument: object) -> Hashable:
    """What the example of a result depends on: a literal, a size, or a tensor's metadata."""
    example = example_of_argument(argument)
    if isinstance(example, (list, tuple)):
        return tuple(map(_described, example))
    if isinstance(example, torch.Tensor):
        sizes = (size_expression(size) for size in (*example.shape, *example.stride()))
        return (*sizes, example.dtype, example.device)
    return size_expression(example) if isinstance(example, torch.SymInt) else example


def _edit(conversion: Conversion, wanted: Wanted, owner: _Owner) -> Edit:
    """The edit for a conversion. Raises Refused."""
    node, sizes, options = conversion.call.node, owner.sizes, wanted.options
    grid = [sizes.size(size) for size in conversion.grid]
    starts = [sizes.size(size) for size in (conversion.q_start, conversion.kv_start)]
    arguments = attention_arguments(node)
    q, k, v = (arguments[name] for name in ("query", "key", "value"))
    gate = None if conversion.gate is None else _gate(conversion, conversion.gate, q, owner)
    padding = conversion.key_padding
    if padding is not None:  # (B or 1, 1, 1, Nkv) -> (B or 1, Nkv)
        padding = owner.new_node(
            padding, aten.select.int, owner.new_node(padding, aten.select.int, padding, 1, 0), 1, 0
        )
    out = owner.attention(
        node, q, k, v, gate, grid, list(options.tile), *starts, padding, conversion.scale,
        wanted.sparsity, methods.literal(options.method), wanted.schedule,
    )  # fmt: skip
    if conversion.query_padding:
        out = _zero_padding(node, out, conversion.key_padding, owner)
    return _laid_out(node, out, owner)


def _laid_out(node: Node, out: NewNode, owner: _Owner) -> Edit:
    """The edit; with a copy to SDPA's strides if some user of the output depends on them."""
    if same_strides(example_of(node), out.example):
        return Edit(owner.module, node, out)
    changed = changed_by(out, node, owner.mode, owner.places)
    if changed is not None:
        return Edit(owner.module, node, out, changed)
    copied = in_order_of(node, out, owner.mode, owner.hint)
    changed = {} if same_strides(example_of(node), copied.example) else None
    if changed is None:  # SDPA's layout has gaps: the copy allows the same views, and more
        changed = changed_by(copied, node, owner.mode, owner.places) or {}
    return Edit(owner.module, node, copied, changed)


def _zero_padding(node: Node, out: NewNode, padding: Node | None, owner: _Owner) -> NewNode:
    """The output (B, H, N, D) with zeros in the rows of queries that see no key, as SDPA gives."""
    rows = owner.new_node(node, torch.ops.vsa_compile.zero_padding.default, out, padding)
    return owner.new_node(node, aten.transpose.int, rows, 1, 2)


def _gate(conversion: Conversion, gate: Node, query: Node, owner: _Owner) -> NewNode:
    """The gate (B, N, H * D) as (B, H, Nq, D), with zeros for queries that it does not cover."""
    if gate.graph is not conversion.call.node.graph:
        raise Refused(refusals.gate_outside())
    _, heads, _, width = example_of(query).shape
    made = owner.new_node(gate, aten.unflatten.int, gate, -1, [heads, width])
    made = owner.new_node(gate, aten.transpose.int, made, 1, 2)
    of_query, of_gate = (sizes_of(example_of(node)) or [] for node in (query, gate))
    if equal(of_query[2], of_gate[1]):
        return made
    before, behind = conversion.q_start, of_query[2] - conversion.q_start - of_gate[1]
    around = (owner.sizes.size(before), owner.sizes.size(behind))
    return owner.new_node(gate, aten.pad.default, made, [0, 0, *around])


class _Sizes:
    """Sizes as arguments of nodes of one graph: ints, inputs, or nodes computed from inputs."""

    def __init__(self, module: GraphModule, mode: FakeMode | None) -> None:
        self.mode = mode
        self.known: dict[sympy.Expr, SizeArgument] = {}
        self.inputs = [node for node in module.graph.nodes if node.op == "placeholder"]

    def size(self, size: Size) -> SizeArgument:
        """An int, or the node that holds the size. Raises Refused."""
        if isinstance(size, int) or size.is_Integer:
            return int(size)
        if size not in self.known:
            self.known[size] = self._make(size)
        return self.known[size]

    def _make(self, size: sympy.Expr) -> SizeArgument:
        if isinstance(size, sympy.Symbol):
            return self._symbol(size)
        parts = [self.size(part) for part in size.args]
        if is_floor_division(size):
            return self._call(operator.floordiv, *parts)
        if is_remainder(size):
            return self._call(operator.mod, *parts)
        function = _OPERATORS.get(size.func)
        if function is None:
            raise Refused(refusals.grid_symbol(str(size)))
        result = parts[0]
        for part in parts[1:]:
            result = self._call(function, result, part)
        return result

    def _symbol(self, symbol: sympy.Symbol) -> SizeArgument:
        """The input that is this symbol (Dynamo), or a node computed from an input's size that is linear in
        it (export)."""
        for node in self.inputs:
            if symbol_of(example_of(node)) == symbol:
                return node
        for node in self.inputs:
            for dim, size in enumerate(sizes_of(example_of(node)) or []):
                if isinstance(size, sympy.Expr) and size.free_symbols == {symbol}:
                    slope, offset = size.diff(symbol), size.subs(symbol, 0)
                    if slope.is_Integer and offset.is_Integer:
                        length = self._call(aten.sym_size.int, node, dim)
                        length = self._call(operator.sub, length, int(offset)) if offset else length
                        return self._call(operator.floordiv, length, int(slope)) if slope != 1 else length
        raise Refused(refusals.grid_symbol(str(symbol)))

    def _call(self, function: Callable[..., Any], *arguments: object) -> NewNode:
        value = function(*map(example_of_argument, arguments))
        return NewNode(function, arguments, value, {}, of_inputs=True)
