"""Every message that a user can see: errors, and the reasons why an attention call stays dense.

Each says what came, what is allowed, and the way out.
May be imported by everything; imports only the standard library.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class VsaError(ValueError):
    """Base of all errors that vsa_compile raises on purpose."""


class OptionError(VsaError):
    """A backend option that is unknown or has an impossible value."""


class ArgumentError(VsaError):
    """An argument of `vsa_compile.attention` that cannot be honoured."""


class RefusedError(VsaError):
    """An attention call was refused while `fallback="error"` was asked for."""


class DoubleBackwardError(VsaError, RuntimeError):
    """Someone differentiated the gradient of the sparse kernel."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """ "unknown option 'sparsty'; did you mean 'sparsity'? Known: ..."."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown {kind} {name!r}{guess} Known: {', '.join(known)}."


def bad_value(name: str, got: object, allowed: str, way_out: str = "") -> str:
    """One sentence: the name, what came, what is allowed, and the way out."""
    return f"{name} is {got!r}, but it must be {allowed}." + (f" {way_out}" if way_out else "")


def grid_mismatch(grid: tuple, video_start: int, tokens: int, what: str) -> str:
    frames, rows, cols = grid
    return (
        f"grid {frames}x{rows}x{cols} needs {frames * rows * cols} video tokens from position "
        f"{video_start}, but {what} has {tokens} tokens in all. Pass the grid in tokens (latent "
        "frames, rows and cols after patchify), not in pixels, and video_start= the number of "
        "tokens in front of the video."
    )


def not_a_tensor(name: str, got: object, allowed: str) -> str:
    return f"{name} is of type {type(got).__name__}, but it must be a torch.Tensor, {allowed}."


def differ(what: str, came: str) -> str:
    return f"{what}s differ: {came}. They must be the same; call .to() on the odd one."


def misfit(shapes: str, allowed: str) -> str:
    return f"shapes do not fit: {shapes}. {allowed}"


def kv_alike() -> str:
    return "k and v must have the same batch, heads and tokens; .expand() the one that is shared."


def same_width() -> str:
    return (
        "q, k and v must have the same width. Pad the narrower with zeros (values: cut the output again) and "
        "pass scale=, or call scaled_dot_product_attention, which is dense."
    )


def same_batch(batch: int) -> str:
    return (
        f"q, k and v must have the same batch; nothing is broadcast. Call .expand({batch}, -1, -1, -1) on "
        "what is shared: it copies nothing."
    )


def grouped_heads() -> str:
    return (
        "The heads of k and v must divide those of q (grouped-query attention). Repeat the heads of k and v "
        "with .repeat_interleave(n, dim=1) until they do."
    )


def distributed() -> str:
    return (
        "q, k or v is a DTensor, but the sparse operator has no sharding rule. Call it on .to_local() where "
        "each rank holds all tokens of its batches or heads, or on .full_tensor(). Or pass sparsity=0 and no "
        "gate, which is dense SDPA."
    )


def no_func_transform(name: str) -> str:
    return (
        f"the sparse attention kernel has no rule for {name}. Differentiate with .backward() or "
        "torch.autograd.grad, or pass sparsity=0, which is dense SDPA."
    )


def double_backward() -> str:
    return (
        "the sparse attention kernel has no second derivative. Call backward without "
        'create_graph=True, or run this model with options={"sparsity": 0}, which is dense SDPA.'
    )


def refused_but_required(name: str, reason: str) -> str:
    return (
        f'{name or "an attention call"} stays dense: {reason}. options={{"fallback": "error"}} turns '
        'that into this error; drop the option or set it to "dense" to let the call stay dense.'
    )


def analysis_failed() -> str:
    return (
        "the analysis of a graph failed, and all its attention stays dense. This is a defect of vsa_compile; "
        "please report it with the traceback below. The model itself is not affected."
    )


@dataclass(frozen=True)
class Reason:
    """Why an attention call stays dense. `slug` names the counter, `text` is for people.

    `asked` tells whether the call looked like one that the user wanted converted: `fallback="error"`
    raises on those, and lets cross-attention or a text encoder pass.
    """

    slug: str
    text: str
    asked: bool = False


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


def one_axis() -> Reason:
    return Reason("one-axis", "the tokens have one axis (text, or time only), not frames x rows x cols")


def two_axes() -> Reason:
    return Reason("two-axes", "the tokens have two axes (an image, or one frame), not frames x rows x cols")


def not_raster(axes: str) -> Reason:
    return Reason("not-raster", f"the token order is not raster frames x rows x cols ({axes})")


def unknown_grid() -> Reason:
    return Reason(
        "unknown-grid",
        "the graph does not show the (frames, rows, cols) of these tokens; call vsa_compile.prepare(model), "
        'or pass options={"grid": (frames, rows, cols)}, in tokens, whose product is their number',
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


def dense_layer(index: int) -> Reason:
    return Reason("dense-layer", f"block {index} is listed in dense_layers")


def no_layer_path() -> Reason:
    return Reason(
        "no-layer-path",
        "dense_layers is set, but this call has no module path to read a block index from",
        asked=True,
    )


def enclosed(name: str) -> Reason:
    """A call that is part of node `name` of the graph."""
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


def not_captured() -> Reason:
    return Reason(
        "not-captured",
        'Dynamo has this call in no graph and runs it eagerly; TORCH_LOGS="graph_breaks" says why, and '
        "torch.compile(..., fullgraph=True) takes some models whole",
    )


# --- The command line ---------------------------------------------------------------------------------

FACTORY = (
    "module:factory, a callable of an importable module that returns "
    "(model, kwargs), (model, args) or (model, args, kwargs)"
)
FACTORY_EXAMPLE = "For example my_model:build, with my_model.py in the current directory."


def not_json(name: str, text: str, why: str) -> str:
    return bad_value(name, text, "a JSON object", f"({why}) For example '{{\"sparsity\": 0.9}}', in quotes.")


def no_module(name: str, folder: str) -> str:
    text = f"there is no module {name!r} in {folder} or in this Python's packages."
    if "/" in name or name.endswith(".py"):
        return f"{text} Write it as in an import: dots for slashes, and no .py."
    return f"{text} Install it, or run the command where it lies."


def no_attribute(path: str, name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {close[0]!r}?" if close else f"it must be {FACTORY}."
    return f"{path} has no {name!r}; {guess}"


def not_built(path: str, got: object) -> str:
    shown = type(got).__name__
    if isinstance(got, tuple):
        shown = f"({', '.join(type(item).__name__ for item in got)})"
    return (
        f"{path} returned {shown}, but it must return (model, kwargs dict), (model, args tuple) or "
        "(model, args tuple, kwargs dict), where the model is callable."
    )
