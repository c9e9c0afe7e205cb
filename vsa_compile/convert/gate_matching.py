"""Finds the attention call that a gate belongs to, by the markers that `add_gates` leaves in a graph.

A marker vsa_compile::gate(q, gate) returns the output q of the query projection. `gate` is (B, N, H * D): one
value per channel of the queries, or of their video alone.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.fx import GraphModule, Node

from ..analysis import Analysis, Segment
from ..analysis.algebra import equal, includes
from ..analysis.backward_slice import nearest
from ..analysis.graph_facts import example_of, is_call, sizes_of
from ..analysis.optable import name_of
from . import refusals
from .refusals import Reason

MARKER = "vsa_compile::gate"


def gates_of(analysis: Analysis, queries: list[object]) -> list[Node | Reason | None]:
    """For the queries of each attention call of a graph: its gate, or why none can be assigned, or None."""
    markers = [node for node in _calls(analysis.module) if _is_marker(node)]
    if not markers:
        return [None] * len(queries)
    reached = [nearest(analysis, query, MARKER) for query in queries]
    times = Counter(marker for found in reached for marker in found)
    # The search enters no bodies, so a marker that it did not reach may be inside of one.
    nobodys = refusals.gate_inside() if any(times[marker] == 0 for marker in markers) else None
    return [_the_one(found, times) if found else nobodys for found in reached]


def _is_marker(node: Node) -> bool:
    return name_of(node) == MARKER


def _calls(module: GraphModule) -> list[Node]:
    parts = (part for part in module.modules() if isinstance(part, GraphModule))
    return [node for part in parts for node in part.graph.nodes if is_call(node)]


def _the_one(found: list[Node], times: Counter[Node]) -> Node | Reason:
    if len(found) > 1 or times[found[0]] > 1:
        return refusals.gate_shared()
    gate: Any = found[0].args[1]
    return gate


def gate_misfit(analysis: Analysis, query: Node, video: Segment, gate: Node) -> Reason | None:
    """Why a call with the video segment `video` cannot take the gate; None if it can."""
    batch, heads, _, width = sizes_of(example_of(query)) or []
    sizes, tokens = sizes_of(example_of(gate)) or [], analysis.tokens(gate)
    if len(sizes) != 3 or not equal(sizes[0], batch) or not equal(sizes[2], heads * width):
        return refusals.gate_shape(str(sizes), f"({batch}, tokens, {heads * width})")
    meant = (analysis.tokens(query), video.axis)
    fits = tokens is not None and any(axis is not None and includes(axis, tokens) for axis in meant)
    return None if fits else refusals.gate_tokens()
