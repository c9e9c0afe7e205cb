"""Judges every SDPA call of a graph: a Conversion, or a Refusal with its reason.

Reads graphs and layouts, changes nothing, and knows none of our operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
from torch.fx import Node

from ..analysis import Analysis, Segment, read_segments, same_tokens
from ..analysis.algebra import Size, equal
from ..analysis.facts import Fact
from ..analysis.graph_facts import example_of, module_path, sizes_of
from ..analysis.tokens import offset
from ..analysis.values import Known
from ..analysis.walk import AttentionCall
from ..grid import Grid, Hint
from ..ops.break_even import KernelAtHand, kernel_at_hand
from ..ops.functional import DTYPES
from ..options import Options
from ..torch_compat import depends_on_data, guard_at_least, size_expression
from . import refusals
from .gate_matching import gate_misfit, gates_of
from .hinted import Video, hinted_video
from .no_video import same_samples, why_no_video
from .refusals import Reason, Refused

MAX_HEAD_WIDTH = 256
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_DEFAULTS = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}


@dataclass(frozen=True)
class Conversion:
    """One attention call to convert. Sizes are ints or sympy expressions, in tokens."""

    call: AttentionCall
    name: str
    segments: tuple[Segment, ...]
    grid: Grid
    q_start: Size
    kv_start: Size
    hinted: bool  # whether a hint had to say where the video is
    key_padding: Node | None
    query_padding: bool  # whether padding queries see nothing, too
    scale: float | None
    gate: Node | None = None  # (B, N, H * D), for all queries or for the video alone

    @property
    def video(self) -> Segment:
        """The segment of the queries that becomes sparse."""
        offsets = (offset(self.segments, i) for i in range(len(self.segments)))
        return next(s for s, at in zip(self.segments, offsets, strict=True) if equal(at, self.q_start))


@dataclass(frozen=True)
class Refusal:
    """One attention call that stays dense, and why."""

    call: AttentionCall
    name: str
    segments: tuple[Segment, ...]
    reason: Reason


Decision = Conversion | Refusal


class Needs(IntEnum):
    """What a decision depends on: no hint, whether there is one, or which one."""

    NO_HINT = 0
    ANY_HINT = 1
    THIS_HINT = 2


def needs(decision: Decision) -> Needs:
    """What the decision would change with. Text and cross-attention would change with hints that take them
    for a video: no graph is compiled again for each grid because of those."""
    if isinstance(decision, Conversion):
        return Needs.THIS_HINT if decision.hinted else Needs.NO_HINT
    slug = decision.reason.slug
    if slug in refusals.WITHOUT_HINT or any(segment.grid for segment in decision.segments):
        return Needs.NO_HINT
    return Needs.ANY_HINT if slug in refusals.OTHER_TOKENS else Needs.THIS_HINT


def judge(
    analysis: Analysis,
    options: Options,
    *,
    hint: Hint | None = None,
    guard: bool = True,
    why: str = "",
    within: str = "",
) -> list[Decision]:
    """One Conversion or Refusal for every SDPA call of an analysed graph and its bodies, in graph order.

    `hint`: the process's, which goes before the grid of the options. If the number of tokens is symbolic, the
    comparison with min_tokens becomes a guard of the graph, so that Dynamo recompiles when a call crosses it;
    `guard=False` only looks at the example inputs. `why`: the process's reason why a grid is unknown.
    `within`: the path of the module that runs the graph, if the graph does not show it.
    """
    hint = hint or (options.grid and Hint(options.grid))
    read = [_segments(analysis, call) for call in analysis.calls]
    videos = [tuple(one for one in segments if one.shows_video) for segments in read]
    gates = gates_of(analysis, [attention_arguments(call.node).get("query") for call in analysis.calls])
    decisions: list[Decision] = []
    for call, segments, gate in zip(analysis.calls, read, gates, strict=True):
        name = module_path(call.node) or within
        try:
            conversion = _judge(analysis, call, name, segments, options, hint, videos, guard)
            _check_tokens(analysis, conversion, options, guard)
            decisions.append(_with_gate(analysis, conversion, gate))
        except Refused as refused:
            unknown = refused.reason == refusals.unknown_grid()
            reason = refusals.unknown_grid(why) if unknown else refused.reason
            decisions.append(Refusal(call, name, segments, reason))
    return decisions


def _with_gate(analysis: Analysis, conversion: Conversion, gate: Node | Reason | None) -> Conversion:
    """The conversion with the gate that reaches its queries. Raises Refused if the gate does not fit."""
    if isinstance(gate, Node):
        query = attention_arguments(conversion.call.node)["query"]
        gate = gate_misfit(analysis, query, conversion.video, gate) or gate
    if isinstance(gate, Reason):
        raise Refused(gate)
    return conversion if gate is None else replace(conversion, gate=gate)


def attention_arguments(node: Node) -> dict[str, Any]:
    """SDPA's arguments by name, however they were passed."""
    return {**_DEFAULTS, **dict(zip(_ARGUMENTS, node.args, strict=False)), **node.kwargs}


def block_indices(path: str) -> list[int]:
    """The numbers in a module path: usually one, the index of the transformer block in its list."""
    return [int(part) for part in path.split(".") if part.isdigit()]


def _segments(analysis: Analysis, call: AttentionCall) -> tuple[Segment, ...]:
    if call.enclosed_by is not None:
        return ()
    return _read(call, "query")


def _read(call: AttentionCall, name: str) -> tuple[Segment, ...]:
    """The segments of the queries or the keys, as known when the call ran."""
    tokens = call.tokens(name)
    return tuple(read_segments(tokens, call.known[name].axes[:-2])) if tokens is not None else ()


def _judge(
    analysis: Analysis,
    call: AttentionCall,
    name: str,
    segments: tuple[Segment, ...],
    options: Options,
    hint: Hint | None,
    videos: Sequence[tuple[Segment, ...]],
    guard: bool,
) -> Conversion:
    if call.enclosed_by is not None:
        raise Refused(refusals.enclosed(call.enclosed_by))
    if analysis.transforms:
        raise Refused(refusals.func_transform())
    arguments = attention_arguments(call.node)
    _check_rank(arguments)
    video = _video(analysis, call, segments, hint, videos, guard)
    _check_call(arguments)
    mask, known = call.padding or (arguments["attn_mask"], call.known.get("attn_mask"))
    arguments["attn_mask"] = mask
    key_padding = _key_padding(analysis, known, arguments, video.kv_start, video.kv_stop)
    check_layer(name, options)
    scale = _constant(arguments, "scale")
    return Conversion(call, name, *video, key_padding, call.padding_sees_nothing, scale)


def _check_rank(arguments: dict[str, Any]) -> None:
    for name in ("query", "key", "value"):
        sizes = sizes_of(example_of(arguments.get(name)))
        if sizes is None or len(sizes) != 4:
            came = "unknown" if sizes is None else f"{len(sizes)}-D"
            raise Refused(refusals.shape(f"{name} is {came}, not (batch, heads, tokens, width)"))
        if any(equal(size, 0) for size in sizes):
            raise Refused(refusals.empty(f"{name} is {sizes}"))


def _video(
    analysis: Analysis,
    call: AttentionCall,
    segments: tuple[Segment, ...],
    hint: Hint | None,
    videos: Sequence[tuple[Segment, ...]],
    guard: bool,
) -> Video:
    """The video among the queries and keys. Raises Refused if there is none."""
    keys = _read(call, "key")
    if not same_samples(analysis, call):
        raise Refused(refusals.cross())
    shared = [
        Video(segments, q.grid, offset(segments, i), offset(keys, j))
        for i, q in enumerate(segments)
        for j, k in enumerate(keys)
        if q.grid and k.grid and same_tokens(q.axis, k.axis)
    ]
    if shared:
        return max(shared, key=lambda video: analysis.hint(video.grid.tokens))
    if hint is not None and not any(q.grid for q in segments):
        hinted = hinted_video(analysis, call, hint, segments, keys, videos, guard)
        if hinted is not None:
            return hinted
    raise Refused(
        why_no_video(analysis, call, segments, keys, any(one.grid for video in videos for one in video))
    )


def _check_call(arguments: dict[str, Any]) -> None:
    if _constant(arguments, "dropout_p"):
        raise Refused(refusals.dropout())
    if _constant(arguments, "is_causal"):
        raise Refused(refusals.causal())
    q, k, v = (example_of(arguments[name]) for name in ("query", "key", "value"))
    for x in (q, k, v):  # subclasses (DTensor, ...) may not support what the operator consists of
        if type(x).__name__ not in ("FakeTensor", "Tensor", "Parameter"):
            raise Refused(refusals.subclass(type(x).__name__))
    shapes = [sizes_of(x) or [] for x in (q, k, v)]
    (batch, heads), (kv_batch, kv_heads) = shapes[0][:2], shapes[1][:2]
    alike = all(equal(a, b) for a, b in zip(shapes[1][:2], shapes[2][:2], strict=True))
    alike = alike and _as_many(shapes[1][2], shapes[2][2])
    grouped = isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads == 0
    if not (alike and equal(batch, kv_batch) and (grouped or equal(heads, kv_heads))):
        raise Refused(refusals.broadcast(*map(str, shapes)))
    widths = [shape[-1] for shape in shapes]
    if not all(isinstance(width, int) for width in widths):
        raise Refused(refusals.shape("the head width is symbolic"))
    if widths[0] > MAX_HEAD_WIDTH:
        raise Refused(refusals.head_width(widths[0], MAX_HEAD_WIDTH))
    if widths[1] != widths[2]:
        raise Refused(refusals.value_width(widths[1], widths[2]))
    if q.dtype not in DTYPES:
        raise Refused(refusals.dtype(str(q.dtype).removeprefix("torch.")))


def _as_many(keys: Size, values: Size) -> bool:
    """Whether there are as many values as keys; if that depends on data, the operator checks at run time."""
    return equal(keys, values) or depends_on_data(keys) or depends_on_data(values)


def _constant(arguments: dict[str, Any], name: str) -> Any:
    """A scalar argument. Under dynamic=True a number is a value of the graph; it is guarded then."""
    value = example_of(arguments[name])
    if isinstance(value, torch.SymFloat):
        return float(value)
    if isinstance(value, torch.SymInt) and not depends_on_data(size_expression(value)):
        return int(value)
    if value is not None and not isinstance(value, (bool, int, float)):
        raise Refused(refusals.dynamic_argument(name))
    return value


def _key_padding(
    analysis: Analysis, known: Known | None, arguments: dict[str, Any], start: Size, stop: Size
) -> Node | None:
    """The mask node (B or 1, 1, 1, Nkv) if it masks non-video keys alone. Raises Refused otherwise."""
    mask = arguments["attn_mask"]
    if mask is None:
        return None
    example = example_of(mask)
    sizes = sizes_of(example)
    if sizes is None or len(sizes) != 4 or not (equal(sizes[1], 1) and equal(sizes[2], 1)):
        raise Refused(refusals.mask(f"attn_mask {sizes} is not a key-padding mask (batch, 1, 1, keys)"))
    if example.dtype != torch.bool:
        raise Refused(refusals.mask("attn_mask is added to the scores; only a boolean mask is understood"))
    if not equal(sizes[3], sizes_of(example_of(arguments["key"]))[2]):  # pyright: ignore[reportOptionalSubscript]
        raise Refused(refusals.mask("attn_mask does not span the keys"))
    fact = known.fact if known is not None else None
    if fact is not None and fact.dim != -1:
        fact = Fact(fact.everywhere)
    if not analysis.proofs.all_are(fact, True, start, stop):
        raise Refused(refusals.mask("attn_mask is not provably True on the video keys"))
    return mask


def _check_tokens(analysis: Analysis, conversion: Conversion, options: Options, guard: bool) -> None:
    """Check for enough tokens: as many as the options ask for, or for the kernel to beat dense attention."""
    tokens, least, kernel = conversion.grid.tokens, options.min_tokens, None
    hint = analysis.hint(tokens)
    if hint == 0:
        raise Refused(refusals.data_dependent())
    if least is None:
        kernel = kernel_of(conversion, options)
        least = kernel.least
        if least is None:
            raise Refused(refusals.slower(kernel.name, kernel.faster))
    if isinstance(tokens, int) or not guard:
        enough = hint >= least
    else:
        enough = guard_at_least(tokens, least, analysis.environment)
    if not enough and kernel is not None:
        raise Refused(refusals.before_break_even(hint, least, kernel.name, kernel.measured))
    if not enough:
        raise Refused(refusals.too_few_tokens(hint, least))


def kernel_of(conversion: Conversion, options: Options) -> KernelAtHand:
    """The kernel that would serve the call. Its dtype is the output's, which autocast may have changed."""
    node = conversion.call.node
    out, query = example_of(node), example_of(attention_arguments(node)["query"])
    return kernel_at_hand(out.device, out.dtype, options.tile, query.shape[-1])


def check_layer(name: str, options: Options) -> None:
    """Raise Refused if a call in the module `name` is to stay dense, or if that cannot be told.

    An index in dense_layers means that block in every list of blocks; a path, a module and all in it."""
    if not options.dense_layers:
        return
    if not name:
        raise Refused(refusals.no_layer_path())
    for path in (layer for layer in options.dense_layers if isinstance(layer, str)):
        if f"{name}.".startswith(f"{path}."):
            raise Refused(refusals.dense_layer(path))
    listed = {layer for layer in options.dense_layers if isinstance(layer, int)}
    indices = block_indices(name)
    if listed and not indices:
        raise Refused(refusals.no_layer_path())
    if listed and len(indices) > 1:
        raise Refused(refusals.several_indices(name))
    if listed.intersection(indices):
        raise Refused(refusals.dense_layer(indices[0]))
