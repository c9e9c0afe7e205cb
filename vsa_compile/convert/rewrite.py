"""Puts `vsa_compile::attention` in the place of every Site: one node for one node, meta copied.

Symbolic sizes become graph nodes built from the graph's own inputs, never sympy in arguments.
"""

from __future__ import annotations

import operator
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from torch.fx import Graph, GraphModule, Node, map_arg

from .. import methods
from ..analysis.algebra import Size, equal
from ..analysis.graph_facts import example_of, sizes_of
from ..options import Options
from ..runtime import state
from ..torch_compat import is_floor_division, is_remainder, symbol_of
from . import refusals
from .judge import Refusal, Site, attention_arguments
from .refusals import Reason

_OPERATORS = {sympy.Add: operator.add, sympy.Mul: operator.mul}


def rewrite(decisions: list[Site | Refusal], options: Options) -> list[Site | Refusal]:
    """Convert every Site in its graph; returns the decisions, Sites that could not be written refused."""
    sizes: dict[Graph, _Sizes] = {}
    result: list[Site | Refusal] = []
    for decision in decisions:
        if isinstance(decision, Site):
            graph = decision.call.owner.graph
            decision = _convert(decision, options, sizes.setdefault(graph, _Sizes(graph)))
        result.append(decision)
    for owner in {d.call.owner for d in result if isinstance(d, Site)}:
        _finish(owner)
    return result


def _finish(module: GraphModule) -> None:
    module.graph.lint()
    module.recompile()


def _convert(site: Site, options: Options, sizes: _Sizes) -> Site | Refusal:
    try:
        grid = [sizes.node(size) for size in site.grid]
        starts = [sizes.node(size) for size in (site.q_start, site.kv_start)]
        around = (0, 0) if site.gate is None else _rows_around(site, sizes)
    except _MissingSymbol as missing:
        return Refusal(site.call, site.name, site.segments, missing.reason)

    node, (sparsity, schedule) = site.call.node, state.sparsity(options)
    arguments = attention_arguments(node)
    q, k, v = (arguments[name] for name in ("query", "key", "value"))
    state.place_share(options, example_of(q).device)
    with node.graph.inserting_before(node):
        key_padding = _key_padding(node.graph, site.key_padding)
        gate = None if site.gate is None else _gate(site.gate, q, around)
        new = node.graph.call_function(
            torch.ops.vsa_compile.attention.default,
            (q, k, v, gate, grid, list(options.tile), *starts, key_padding, site.scale,
             sparsity, methods.literal(options.method), schedule),
        )  # fmt: skip
    new.meta = dict(node.meta)
    example = _example(node, q, sparsity)
    if site.query_padding:
        new.meta["example_value" if "example_value" in node.meta else "val"] = example
        new = _zero_padding(new, site.key_padding)
        example = example_of(new)
    _replace(node, new, example)
    return site


def _example(node: Node, query: Node, sparsity: float) -> Any:
    """The new node's example value: token-major memory, unless dense SDPA itself runs (sparsity 0)."""
    before = example_of(node)
    if sparsity == 0:
        return before
    batch, heads, tokens, width = example_of(query).shape
    return before.new_empty((batch, tokens, heads, width)).transpose(1, 2)


def _replace(node: Node, new: Node, example: Any) -> None:
    """Swap the nodes; a user that views the result as the strides it had gets those strides back."""
    before = example_of(node)
    new.meta["example_value" if "example_value" in node.meta else "val"] = example
    replacement = new
    viewed = any(user.op == "call_method" and user.target == "view" for user in node.users)
    if viewed and before.is_contiguous() and not example.is_contiguous():
        with node.graph.inserting_before(node):
            replacement = node.graph.call_method("contiguous", (new,))
        replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    node.graph.erase_node(node)


def _rows_around(site: Site, sizes: _Sizes) -> tuple[Any, Any]:
    """How many queries the gate of a site says nothing of, before those that it speaks of and after."""
    query = attention_arguments(site.call.node)["query"]
    of_query, of_gate = (sizes_of(example_of(node)) or [] for node in (query, site.gate))
    if equal(of_query[2], of_gate[1]):
        return 0, 0
    return sizes.node(site.q_start), sizes.node(of_query[2] - site.q_start - of_gate[1])


def _gate(gate: Node, query: Node, around: tuple[Any, Any]) -> Node:
    """(B, N, H * D) -> (B, H, Nq, D), with zeros for the queries that it says nothing of."""
    _, heads, _, width = example_of(query).shape
    made = _derived(gate, "unflatten", gate, -1, (heads, width))
    made = _derived(gate, "transpose", made, 1, 2)
    return made if around == (0, 0) else _derived(gate, F.pad, made, (0, 0, *around))


def _derived(node: Node, target: Any, *args: Any) -> Node:
    """A call that computes something of `node`, with its meta and an example value of its own."""
    graph, key = node.graph, "example_value" if "example_value" in node.meta else "val"
    new = graph.call_method(target, args) if isinstance(target, str) else graph.call_function(target, args)
    values = map_arg(args, example_of)
    function = getattr(torch.Tensor, target) if isinstance(target, str) else target
    new.meta = dict(node.meta) | {key: function(*values)}
    return new


def _key_padding(graph: Graph, mask: Node | None) -> Node | None:
    """(B or 1, 1, 1, Nkv) -> (B or 1, Nkv)."""
    if mask is None:
        return None
    index = (slice(None), 0, 0, slice(None))
    rows = graph.call_function(operator.getitem, (mask, index))
    rows.meta = {key: value for key, value in mask.meta.items() if key in ("nn_module_stack", "stack_trace")}
    rows.meta["example_value" if "example_value" in mask.meta else "val"] = example_of(mask)[index]
    return rows


def _zero_padding(out: Node, padding: Any) -> Node:
    """The output (B, H, N, D) with zeros in the rows of queries that see no key, as SDPA gives."""
    with out.graph.inserting_after(out):
        rows = out.graph.call_function(torch.ops.vsa_compile.zero_padding.default, (out, padding))
    with out.graph.inserting_after(rows):
        result = out.graph.call_method("transpose", (rows, 1, 2))
    key = "example_value" if "example_value" in out.meta else "val"
    rows.meta = out.meta | {key: torch.ops.vsa_compile.zero_padding(example_of(out), example_of(padding))}
    result.meta = out.meta | {key: example_of(rows).transpose(1, 2)}
    return result


class _MissingSymbol(Exception):
    def __init__(self, reason: Reason) -> None:
        self.reason = reason


class _Sizes:
    """Sizes as arguments of nodes of one graph: ints, or nodes placed right after its inputs."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.known: dict[sympy.Expr, Any] = {}
        self.inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self.last = self.inputs[-1] if self.inputs else None

    def node(self, size: Size) -> Any:
        """An int, or the node that holds the size. Raises _MissingSymbol."""
        if isinstance(size, int) or size.is_Integer:
            return int(size)
        if size not in self.known:
            self.known[size] = self._make(size)
        return self.known[size]

    def _make(self, size: sympy.Expr) -> Any:
        if isinstance(size, sympy.Symbol):
            return self._symbol(size)
        parts = [self.node(part) for part in size.args]
        if is_floor_division(size):
            return self._call(operator.floordiv, *parts)
        if is_remainder(size):
            return self._call(operator.mod, *parts)
        function = _OPERATORS.get(size.func)
        if function is None:
            raise _MissingSymbol(refusals.grid_symbol(str(size)))
        result = parts[0]
        for part in parts[1:]:
            result = self._call(function, result, part)
        return result

    def _symbol(self, symbol: sympy.Symbol) -> Node:
        """The input that is this symbol (Dynamo), or a dimension of an input that is (export)."""
        for node in self.inputs:
            if symbol_of(example_of(node)) == symbol:
                return node
        for node in self.inputs:
            example = example_of(node)
            if isinstance(example, torch.Tensor):
                for dim, size in enumerate(example.shape):
                    if symbol_of(size) == symbol:
                        return self._call(torch.ops.aten.sym_size.int, node, dim)
        raise _MissingSymbol(refusals.grid_symbol(str(symbol)))

    def _call(self, function: Any, *arguments: Any) -> Node:
        with self.graph.inserting_after(self.last):
            node = self.graph.call_function(function, arguments)
        value = function(*(example_of(argument) for argument in arguments))
        dynamo = any("example_value" in node.meta for node in self.inputs)
        node.meta["example_value" if dynamo else "val"] = value
        self.last = node
        return node
