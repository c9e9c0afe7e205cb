"""Why an attention call stays dense: every reason that a user can see, with the way out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """Why an attention call stays dense. `slug` names the counter; `text` is for people.

    `asked`: whether the call looks like one that the user wants converted. `fallback="error"` raises for
    those; cross-attention or a text encoder passes.
    """

    slug: str
    text: str
    asked: bool = False


class Refused(Exception):
    """Raised while a call is judged, when it is refused."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason


def dropout() -> Reason:
    return Reason("dropout", "dropout_p is not 0; the sparse kernel has no dropout", asked=True)


def causal() -> Reason:
    return Reason("causal", "is_causal is set; video self-attention is not causal", asked=True)


def shape(text: str) -> Reason:
    return Reason("shape", text)


def dynamic_argument(name: str) -> Reason:
    return Reason("argument", f"{name} is not a constant of the graph", asked=True)


def mask(text: str) -> Reason:
    return Reason("mask", text, asked=True)


def cross() -> Reason:
    return Reason("cross", "queries and keys are different tokens (cross-attention)")


def lengths_are_data() -> Reason:
    return Reason(
        "data-dependent",
        "the graph has symbolic sizes and cuts the sequence at a data-dependent length, so that queries and "
        "keys cannot be proved to be the same tokens; torch.compile(..., dynamic=False) compiles each size "
        "with numbers, for which they can",
        asked=True,
    )


def split_by_a_symbol() -> Reason:
    return Reason(
        "unknown-grid",
        "the graph has symbolic sizes and splits these tokens by one that it does not show to be their "
        "number of frames (that of another input, for instance); torch.compile(..., dynamic=False) compiles "
        "each size with numbers, which show it",
        asked=True,
    )


def one_axis() -> Reason:
    return Reason("one-axis", "the tokens have one axis (text, or time only), not frames x rows x cols")


def two_axes() -> Reason:
    return Reason("two-axes", "the tokens have two axes (an image, or one frame), not frames x rows x cols")


def not_raster(axes: str) -> Reason:
    return Reason(
        "not-raster",
        f"the token order is not raster frames x rows x cols ({axes}), and no hint makes it so; flatten the "
        "tokens from (batch, frames, rows, cols, ...)",
    )


def reordered(by: str, *, asked: bool) -> Reason:
    """`by`: the operator that put the tokens into another order."""
    return Reason(
        "reordered",
        f"the graph puts these tokens into another order ({by}), so that they are not raster frames x rows x "
        "cols, and no hint makes them so, nor another index that puts them back; attend before that, or call "
        "vsa_compile.attention(q, k, v, grid=(frames, rows, cols)) where they are in raster order, or "
        "vsa_compile.prepare(model) if they are where a block begins",
        asked,
    )


def windows(axes: str) -> Reason:
    return Reason(
        "windows",
        f"the tokens are windows of a video ({axes}), each a sequence of its own; a window is not the video",
    )


def gate_shared() -> Reason:
    return Reason(
        "gate-shared", "a gate reaches several attention calls, or several gates reach this one", asked=True
    )


def gate_outside() -> Reason:
    return Reason(
        "gate-outside",
        "its gate is computed outside of the checkpointed function that holds the call; let the checkpoint "
        "span the query projection too (the whole block), or call vsa_compile.remove_gates(model)",
        asked=True,
    )


def gate_inside() -> Reason:
    return Reason(
        "gate-inside",
        "a gate is computed within a checkpointed function that does not hold its call; let the checkpoint "
        "span the attention call too (the whole block), or call vsa_compile.remove_gates(model)",
        asked=True,
    )


def gate_shape(came: str, wanted: str) -> Reason:
    return Reason("gate-shape", f"its gate is {came}, not {wanted}", asked=True)


def gate_tokens() -> Reason:
    return Reason(
        "gate-tokens", "its gate belongs to other tokens than its queries or their video", asked=True
    )


def shared_body() -> Reason:
    return Reason(
        "shared-body", "the graph runs one body, with this call in it, in several places", asked=True
    )


def unknown_grid(why: str = "") -> Reason:
    """`why`: the reason that a running prepared model gives."""
    way_out = (
        "call vsa_compile.prepare(model), again if its forward was replaced since, "
        'or pass options={"grid": (frames, rows, cols)}, in tokens, whose product is their number; if the '
        "video is a part of them, video_grid(frames, rows, cols, start=..., tokens=...) says which"
    )
    text = f"the graph does not show the (frames, rows, cols) of these tokens; {why or way_out}"
    return Reason("unknown-grid", text, asked=True)


def not_learned(why: str) -> str:
    """The reason that a prepared model gives for calls that it did not mark."""
    return (
        f"vsa_compile.prepare did not learn them either: {why or 'no argument of the model shows them'}. If "
        "they are video, call the model within `with vsa_compile.video_grid(frames, rows, cols):`, in "
        "tokens, whose product is their number (start= and tokens= say where they are in a longer sequence), "
        "and compile the model itself or its blocks, not what calls it"
    )


def no_guards(what: str) -> Reason:
    return Reason(
        "no-guards",
        f"this code is compiled ahead of time (aot_compile), which drops the guards that {what} needs: "
        'later changes would be ignored. Pass options={"grid": (frames, rows, cols)} and a number as '
        "sparsity, or call the compiled model itself",
        asked=True,
    )


def grid_symbol(symbol: str) -> Reason:
    return Reason(
        "grid-symbol",
        f"the grid depends on {symbol}, which is not an input of this graph",
        asked=True,
    )


def too_few_tokens(tokens: int, least: int) -> Reason:
    return Reason("few-tokens", f"{tokens} video tokens are below min_tokens={least}; dense is faster there")


_ANYWAY = 'options={"min_tokens": 0} makes it sparse anyway'


def before_break_even(tokens: int, least: int, kernel: str, measured: bool) -> Reason:
    beats = "beats" if measured else "is assumed, not measured, to beat"
    text = f"{kernel} {beats} dense attention from {least} on; {_ANYWAY}"
    return Reason("few-tokens", f"{tokens} video tokens are too few: {text}")


def slower(kernel: str, faster: str) -> Reason:
    """`faster`: how to get a faster kernel, or ""."""
    ways_out = "; ".join(filter(None, (faster, _ANYWAY)))
    text = f"{kernel} is not known to beat dense attention at any size; {ways_out}"
    return Reason("slower", text, asked=True)


# Reasons of calls that could be sparse but would be slower.
OF_SPEED = frozenset(["few-tokens", "slower"])
# Reasons that have nothing to do with tokens, and those that the graph shows the tokens to be something else.
WITHOUT_HINT = frozenset(["shape", "autograd-function", "whole-layer", "higher-order", "func-transform"])
OTHER_TOKENS = frozenset(["cross", "one-axis", "windows", "reordered", "not-raster", "data-dependent"])


def data_dependent() -> Reason:
    return Reason("data-dependent", "the number of video tokens depends on data, not on shapes", asked=True)


def head_width(width: int, most: int) -> Reason:
    return Reason("head-width", f"head width {width} is above {most}", asked=True)


def empty(shape: str) -> Reason:
    return Reason("shape", f"there is nothing to compute: {shape}")


def broadcast(q: str, k: str, v: str) -> Reason:
    return Reason(
        "broadcast",
        f"q {q}, k {k} and v {v} are not provably alike in batch and heads (those of k may divide q's); "
        ".expand() what is shared",
        asked=True,
    )


def subclass(name: str) -> Reason:
    return Reason("subclass", f"the query, key or value is a {name}, not a plain tensor", asked=True)


def value_width(keys: int, values: int) -> Reason:
    return Reason("head-width", f"keys are {keys} wide and values {values}; they must agree", asked=True)


def dtype(name: str) -> Reason:
    return Reason("dtype", f"dtype {name} is not one of float32, bfloat16, float16, float64", asked=True)


def dense_layer(layer: int | str) -> Reason:
    return Reason("dense-layer", f"block {layer} is listed in dense_layers")


def several_indices(path: str) -> Reason:
    return Reason(
        "several-indices",
        f"dense_layers has a number, but {path} has several, and the block could be any of them; list "
        f'blocks by their paths, such as dense_layers=("{path}",)',
        asked=True,
    )


def no_layer_path() -> Reason:
    return Reason(
        "no-layer-path",
        "dense_layers is set, but this call has no module path, or no number in it, that names its block",
        asked=True,
    )


def enclosed(name: str) -> Reason:
    """A call inside of the operator `name`."""
    if name.startswith("autograd_function"):
        text = "the call is inside a torch.autograd.Function, whose hand-written backward would not match"
        return Reason("autograd-function", text, asked=True)
    if "multi_head" in name or "encoder_layer" in name:
        text = (
            f"{name} holds projections and attention in one operator; write the layer with "
            "torch.nn.functional.scaled_dot_product_attention to have it converted"
        )
        return Reason("whole-layer", text)
    return Reason("higher-order", f"the call is inside {name}, which is not rewritten", asked=True)


def func_transform() -> Reason:
    return Reason("func-transform", "the graph is under a torch.func transform", asked=True)


def not_captured(where: str) -> Reason:
    """`where` the graph breaks; "" if that is unknown."""
    where = where or 'often at a data-dependent size (TORCH_LOGS="graph_breaks" shows where)'
    return Reason(
        "not-captured",
        f"Dynamo has this call in no graph and runs it eagerly: the graph breaks, {where}. Call "
        "vsa_compile.prepare(model), which captures data-dependent sizes, and then "
        "vsa_compile.patch_attention(model), which makes calls sparse that are in no graph",
    )


def not_learned_of_these() -> str:
    return "they are not the video whose grid vsa_compile.prepare learned"


def scattered(name: str) -> str:
    return f"{name} spreads the video over the sequence, and only one run of tokens can be a grid"


def unreadable(error: str) -> str:
    return f"its positions cannot be read ({error.partition(chr(10))[0]})"


def several_grids(grids: list) -> str:
    return f"tensors of positions show several: {', '.join(map(str, dict.fromkeys(grids)))}"


def not_one_grid(name: str) -> str:
    return f"{name} are not those of one frames x rows x cols grid in raster order"
