"""X1-X7 and X32: grids, sizes and widths."""

from __future__ import annotations

from torch import Tensor, nn

import vsa_compile

from .heads import GROUPED, as_dict
from .row import (
    COMPUTED,
    CONVERTED,
    GRID,
    TOKENS,
    Row,
    alike,
    arguments,
    by_hand,
    compiled,
    heads,
    in_graph,
    itself,
    sdpa,
    tensor,
)

IN_TOKENS = (
    "Pass the grid in tokens (latent frames, rows and cols after patchify), not in pixels, and video_start= "
    "the "
    "number of tokens in front of the video."
)
THREE = "but it must be three positive integers (frames, rows, cols)."
EXAMPLE = "It counts tokens, e.g. (21, 30, 52) for 81 frames of 480x832 in Wan."
SAME_WIDTH = (
    "q, k and v must have the same width. Pad the narrower with zeros (values: cut the output again) and "
    "pass "
    "scale=, or call scaled_dot_product_attention, which is dense."
)
AMID_A_FRAME = (
    "dense: the graph puts these tokens into another order (they are cut out amid a frame), so that they "
    "are not raster frames x rows x cols, and no hint makes them so, nor another index that puts "
    "them back; attend before that, or call vsa_compile.attention(q, k, v, grid=(frames, rows, cols)) where "
    "they are in raster order, or vsa_compile.prepare(model) if they are where a block begins"
)
NO_GRID = (
    "dense: the graph does not show the (frames, rows, cols) of these tokens; "
    "call vsa_compile.prepare(model), again if its forward was replaced since, or pass "
    'options={"grid": (frames, rows, cols)}, in tokens, '
    "whose product is their number; if the video is a part of them, "
    "video_grid(frames, rows, cols, start=..., tokens=...) says which"
)


class Tokens(nn.Module):
    """Self-attention of (B, tokens, C) whose grid nothing shows."""

    def forward(self, x: Tensor) -> Tensor:
        return itself(x)


def plain_tokens(**options: object) -> str:
    return compiled(Tokens(), (tensor(2, TOKENS, 32),), options)


def no_grid() -> str:
    args = arguments()
    del args["grid"]
    vsa_compile.attention(**args)
    return "computed"


GRIDS = (
    Row(
        "X1",
        "a grid of more tokens than there are",
        by_hand(grid=(3, 4, 6)),
        f"ArgumentError: grid 3x4x6 needs 72 video tokens from position 0, but k has 60 tokens in all. "
        f"{IN_TOKENS}",
    ),
    Row(
        "X1",
        "a grid of fewer tokens than there are",
        by_hand(grid=(3, 4, 4)),
        f"ArgumentError: grid 3x4x4 needs 48 video tokens from position 0, but k has 60 tokens in all. "
        f"{IN_TOKENS} "
        "The 12 tokens behind the video need a key_padding_mask, all True if none is padding.",
    ),
    Row(
        "X1",
        "a video that starts too late",
        by_hand(video_start=1),
        f"ArgumentError: grid 3x4x5 needs 60 video tokens from position 1, but k has 60 tokens in all. "
        f"{IN_TOKENS}",
    ),
    Row(
        "X1",
        "fewer queries than video tokens",
        by_hand(q=tensor(1, 2, 59, 16)),
        f"ArgumentError: grid 3x4x5 needs 60 video tokens from position 0, but q has 59 tokens in all. "
        f"{IN_TOKENS}",
    ),
    Row(
        "X1",
        'a graph without a grid, and options={"grid": (3, 4, 6)} of another number of tokens',
        lambda: plain_tokens(grid=(3, 4, 6)),
        NO_GRID,
    ),
    Row("X2", "no grid=", no_grid, "TypeError: attention() missing 1 required keyword-only argument: 'grid'"),
    Row("X2", "grid=None", by_hand(grid=None), f"OptionError: grid is None, {THREE} {EXAMPLE}"),
    Row("X2", "a graph that does not show the grid", lambda: plain_tokens(), NO_GRID),
    Row("X2", 'the same graph with options={"grid": (3, 4, 5)}', lambda: plain_tokens(grid=GRID), CONVERTED),
    Row("X3", "no frames", by_hand(grid=(0, 4, 5)), f"OptionError: grid is (0, 4, 5), {THREE} {EXAMPLE}"),
    Row("X3", "no rows", by_hand(grid=(3, 0, 5)), f"OptionError: grid is (3, 0, 5), {THREE} {EXAMPLE}"),
    Row("X3", "no cols", by_hand(grid=(3, 4, 0)), f"OptionError: grid is (3, 4, 0), {THREE} {EXAMPLE}"),
    Row(
        "X3",
        "negative rows and cols",
        by_hand(grid=(3, -4, -5)),
        f"OptionError: grid is (3, -4, -5), {THREE} {EXAMPLE}",
    ),
    Row(
        "X3",
        "a model on a video without frames",
        in_graph(itself, latents=tensor(2, 32, 0, 4, 5)),
        "dense: there is nothing to compute: query is [2, 2, 0, 16]",
    ),
)

EMPTY = (
    *(
        Row(
            "X4",
            f"{name} = 0{extra}",
            by_hand(**alike(shape=shape), **keywords),
            f"an empty tensor of shape {shape}",
        )
        for name, shape in (
            ("batch", (0, 2, TOKENS, 16)),
            ("heads", (1, 0, TOKENS, 16)),
            ("batch and heads", (0, 0, TOKENS, 16)),
            ("width", (1, 2, TOKENS, 0)),
        )
        for extra, keywords in (
            ("", {}),
            (", with a gate", {"gate": tensor(*shape)}),
            (", dense", {"sparsity": 0}),
        )
    ),
    Row(
        "X4",
        "heads = 0 of k and v alone",
        by_hand(**as_dict(q=2, k=0, v=0)),
        f"ArgumentError: shapes do not fit: q (1, 2, 60, 16), k (1, 0, 60, 16), v (1, 0, 60, 16). {GROUPED}",
    ),
    Row(
        "X4",
        "a model with batch = 0",
        in_graph(itself, latents=tensor(0, 32, *GRID)),
        "dense: there is nothing to compute: query is [0, 2, 60, 16]",
    ),
    Row(
        "X4",
        "a model with heads = 0",
        in_graph(lambda x: sdpa(*[heads(x)[:, :0]] * 3)),
        "dense: there is nothing to compute: query is [2, 0, 60, 16]",
    ),
    Row(
        "X4",
        "a model with width = 0",
        in_graph(lambda x: sdpa(*[heads(x)[..., :0]] * 3)),
        "dense: there is nothing to compute: query is [2, 2, 60, 0]",
    ),
    Row("X5", "one token", by_hand(**alike(shape=(1, 2, 1, 16)), grid=(1, 1, 1)), COMPUTED),
    Row(
        "X5",
        "one token, with a gate",
        by_hand(**alike(shape=(1, 2, 1, 16)), grid=(1, 1, 1), gate=tensor(1, 2, 1, 16)),
        COMPUTED,
    ),
    Row(
        "X5",
        "a model on a video of one token",
        in_graph(itself, latents=tensor(2, 32, 1, 1, 1)),
        "dense: the tokens have one axis (text, or time only), not frames x rows x cols",
    ),
)

WIDTHS = (
    *(
        Row("X6", f"width {width}", by_hand(**alike(shape=(1, 2, TOKENS, width))), COMPUTED)
        for width in (1, 8, 40, 72, 80, 96, 160, 256, 512)
    ),
    *(
        Row(
            "X6",
            f"a model with width {width}",
            in_graph(itself, latents=tensor(2, 2 * width, *GRID)),
            CONVERTED,
        )
        for width in (8, 40, 72, 80, 96, 160, 256)
    ),
    Row(
        "X6",
        "a model with width 512",
        in_graph(itself, latents=tensor(2, 1024, *GRID)),
        "dense: head width 512 is above 256",
    ),
    Row(
        "X7",
        "values narrower than keys",
        by_hand(v=tensor(1, 2, TOKENS, 8)),
        f"ArgumentError: shapes do not fit: q (1, 2, 60, 16), k (1, 2, 60, 16), v (1, 2, 60, 8). "
        f"{SAME_WIDTH}",
    ),
    Row(
        "X7",
        "values wider than keys",
        by_hand(v=tensor(1, 2, TOKENS, 24)),
        f"ArgumentError: shapes do not fit: q (1, 2, 60, 16), k (1, 2, 60, 16), v (1, 2, 60, 24). "
        f"{SAME_WIDTH}",
    ),
    Row(
        "X7",
        "keys narrower than queries",
        by_hand(k=tensor(1, 2, TOKENS, 8)),
        "ArgumentError: shapes do not fit: q (1, 2, 60, 16), k (1, 2, 60, 8), v (1, 2, 60, 16). "
        f"{SAME_WIDTH}",
    ),
    Row(
        "X7",
        "a model with values narrower than keys",
        in_graph(lambda x: sdpa(heads(x), heads(x), heads(x)[..., :8])),
        "dense: keys are 16 wide and values 8; they must agree",
    ),
)

SHARDS = (
    Row(
        "X32",
        "one of two sequence-parallel shards of q, k and v, with the grid of the whole video",
        by_hand(**alike(shape=(1, 2, TOKENS // 2, 16))),
        f"ArgumentError: grid 3x4x5 needs 60 video tokens from position 0, but k has 30 tokens in all. "
        f"{IN_TOKENS}",
    ),
    Row(
        "X32",
        "a shard of q, all of k and v",
        by_hand(q=tensor(1, 2, TOKENS // 2, 16)),
        f"ArgumentError: grid 3x4x5 needs 60 video tokens from position 0, but q has 30 tokens in all. "
        f"{IN_TOKENS}",
    ),
    Row(
        "X32",
        "a model that attends within a shard of 30 tokens",
        in_graph(lambda x: itself(x[:, 30:])),
        AMID_A_FRAME,
    ),
    Row(
        "X32",
        "a model in which a shard of q attends to all of k and v",
        in_graph(lambda x: sdpa(heads(x[:, :30]), heads(x), heads(x))),
        AMID_A_FRAME,
    ),
    Row(
        "X32",
        'a graph that sees only a shard, and options={"grid": (3, 4, 5)} of the whole video',
        lambda: compiled(Tokens(), (tensor(2, TOKENS // 2, 32),), {"grid": GRID}),
        NO_GRID,
    ),
)

ROWS = (*GRIDS, *EMPTY, *WIDTHS, *SHARDS)
