"""X19-X23: the other arguments of attention: masks, dropout, causal, scale, grouped heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .row import COMPUTED, CONVERTED, TOKENS, Row, by_hand, heads, in_graph, itself, sdpa, tensor

UNEXPECTED = "attention() got an unexpected keyword argument"
FULL = (2, 1, 1, TOKENS)
NOT_TRUE = "dense: attn_mask is not provably True on the video keys"
SCALE = (
    "but it must be a finite number, or None for 1 / sqrt(width). Multiply q by a learned scale, and pass "
    "scale=1."
)


def with_mask(shape: tuple[int, ...], value: bool | float = True) -> Callable[[], str]:
    """A mask that comes into the model from outside, so that the graph does not know its values."""
    return in_graph(lambda x, mask: itself(x, attn_mask=mask), torch.full(shape, value))


def masked_by_hand(mask: Any, behind: int = 0) -> Callable[[], str]:
    """By hand, with `behind` tokens behind the video."""
    shape = (1, 2, TOKENS + behind, 16)
    return by_hand(
        **{name: tensor(*shape, seed=s) for s, name in enumerate(("q", "k", "v"))}, key_padding_mask=mask
    )


def true_by_construction(x: Tensor) -> Tensor:
    return itself(x, attn_mask=torch.ones(FULL, dtype=torch.bool))


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


ROWS = (
    Row("X19", "key_padding_mask all True", masked_by_hand(ones(1, TOKENS)), COMPUTED),
    Row(
        "X19",
        "key_padding_mask all False: the video's keys take part anyway",
        masked_by_hand(~ones(1, TOKENS)),
        COMPUTED,
    ),
    Row(
        "X19",
        "all tokens behind the video masked",
        masked_by_hand(torch.arange(TOKENS + 6)[None] < TOKENS, behind=6),
        COMPUTED,
    ),
    Row(
        "X19",
        "a mask of floats",
        masked_by_hand(torch.zeros(1, TOKENS)),
        "ArgumentError: key_padding_mask.dtype is torch.float32, but it must be torch.bool, True where a "
        "key takes "
        "part.",
    ),
    Row(
        "X19",
        "a (tokens, tokens) mask",
        masked_by_hand(ones(TOKENS, TOKENS)),
        "ArgumentError: key_padding_mask.shape is (60, 60), but it must be (1 or 1, 60): (batch, keys).",
    ),
    Row(
        "X19",
        "a (batch, 1, 1, tokens) mask",
        masked_by_hand(ones(1, 1, 1, TOKENS)),
        "ArgumentError: key_padding_mask.shape is (1, 1, 1, 60), but it must be (1 or 1, 60): (batch, keys).",
    ),
    Row(
        "X19",
        "a mask that is a list",
        masked_by_hand([True] * TOKENS),
        "ArgumentError: key_padding_mask is of type list, but it must be a torch.Tensor, (batch or 1, keys).",
    ),
    Row("X19", "a model whose mask is all True by construction", in_graph(true_by_construction), CONVERTED),
    Row("X19", "a model whose mask is an input, all True", with_mask(FULL), NOT_TRUE),
    Row("X19", "a model whose mask is an input, all False", with_mask(FULL, False), NOT_TRUE),
    Row(
        "X19",
        "a model with a (tokens, tokens) mask",
        with_mask((TOKENS, TOKENS)),
        "dense: attn_mask [60, 60] is not a key-padding mask (batch, 1, 1, keys)",
    ),
    Row(
        "X19",
        "a model with a mask for each query",
        with_mask((2, 1, TOKENS, TOKENS)),
        "dense: attn_mask [2, 1, 60, 60] is not a key-padding mask (batch, 1, 1, keys)",
    ),
    Row(
        "X19",
        "a model with a mask of floats",
        with_mask(FULL, 0.0),
        "dense: attn_mask is added to the scores; only a boolean mask is understood",
    ),
    *(
        Row(x, f"{name}={value}", by_hand(**{name: value}), f"TypeError: {UNEXPECTED} '{name}'")
        for x, name, value in (
            ("X20", "dropout_p", 0.1),
            ("X21", "is_causal", True),
            ("X23", "enable_gqa", True),
        )
    ),
    Row(
        "X20",
        "a model with dropout_p=0.1",
        in_graph(lambda x: itself(x, dropout_p=0.1)),
        "dense: dropout_p is not 0; the sparse kernel has no dropout",
    ),
    Row("X20", "a model with dropout_p=0.0", in_graph(lambda x: itself(x, dropout_p=0.0)), CONVERTED),
    Row(
        "X21",
        "a model with is_causal=True",
        in_graph(lambda x: itself(x, is_causal=True)),
        "dense: is_causal is set; video self-attention is not causal",
    ),
    *(Row("X22", f"scale={scale}", by_hand(scale=scale), COMPUTED) for scale in (None, 0, 0.0, -0.3, 1)),
    *(
        Row("X22", f"scale={scale!r}", by_hand(scale=scale), f"ArgumentError: scale is {scale!r}, {SCALE}")
        for scale in (float("nan"), float("inf"), "0.3", True, torch.tensor(0.3))
    ),
    Row(
        "X22",
        "scale=a tensor that needs a gradient",
        by_hand(scale=torch.tensor(0.3, requires_grad=True)),
        f"ArgumentError: scale is tensor(0.3000, requires_grad=True), {SCALE}",
    ),
    *(
        Row(
            "X22",
            f"a model with scale={scale}",
            in_graph(lambda x, scale=scale: itself(x, scale=scale)),
            CONVERTED,
        )
        for scale in (None, 0.0, -0.3)
    ),
    Row(
        "X22",
        "a model whose scale is a tensor: Dynamo leaves the call out of the graph",
        in_graph(lambda x, scale: itself(x, scale=scale), torch.tensor(0.3)),
        "dense: torch compiles nothing here",
    ),
    Row(
        "X23",
        "a model with enable_gqa=True and as many heads of k and v as of q",
        in_graph(lambda x: itself(x, enable_gqa=True)),
        CONVERTED,
    ),
    Row(
        "X23",
        "a model with enable_gqa=True and fewer heads of k and v",
        in_graph(lambda x: sdpa(heads(x, 4), *[heads(x, 4)[:, :2]] * 2, enable_gqa=True)),
        CONVERTED,
    ),
    Row(
        "X23",
        "a model with enable_gqa=True and fewer heads of v than of k",
        in_graph(lambda x: sdpa(heads(x, 4), heads(x, 4)[:, :2], heads(x, 4)[:, :1], enable_gqa=True)),
        "dense: q [2, 4, 60, 8], k [2, 2, 60, 8] and v [2, 1, 60, 8] are not provably alike in batch and "
        "heads "
        "(those of k may divide q's); .expand() what is shared",
    ),
)
