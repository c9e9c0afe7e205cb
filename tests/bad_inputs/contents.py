"""X16-X18: NaN, infinity, ties and denormal numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

import vsa_compile
from vsa_compile.grid import TileGrid, kept_tiles
from vsa_compile.ops import reference

from .row import BOUNDS, EVERY_TILE, GRID, TILE, TOKENS, Row, alike, arguments, expected, relative


def read_by_each_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """fp64 output that touches only what a query's kept tiles hold, so that NaN elsewhere cannot enter it."""
    ids = reference.tile_of_token(GRID, TILE)
    means = [
        torch.stack([x[:, :, ids == t].mean(2) for t in range(TileGrid(GRID, TILE).tiles)], 2) for x in (q, k)
    ]
    kept = kept_tiles(TileGrid(GRID, TILE).tiles, 0.5)
    tiles, counts = reference.select(means[0] @ means[1].mT * q.shape[-1] ** -0.5, kept)
    seen = reference.allowed_keys(q, k, tiles, counts, GRID, TILE, 0, 0, None)
    logits = q.double() @ k.double().mT * q.shape[-1] ** -0.5
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    parts = weights[..., None] * v.double()[:, :, None]
    return parts.masked_fill(~seen[..., None], 0).sum(3)


def poisoned(where: str, value: float, kernel: str) -> Callable[[], str]:
    """One number of q, k or v is NaN or infinite: says which rows are not finite, if all others are right."""

    def how() -> str:
        args = arguments()
        args[where][0, 0, 17, 3] = value
        with mock.patch.dict("os.environ", {"VSA_COMPILE_CPU": kernel}):
            out = vsa_compile.attention(**args)
        wanted = read_by_each_row(args["q"], args["k"], args["v"])
        finite = wanted.isfinite()
        if not torch.equal(out.isfinite(), finite) or relative(out[finite], wanted[finite]) > 1e-5:
            return "not the rows that read it"
        rows = (~finite).any(-1)[0]
        if rows[1].any() or not rows[0].any():
            return "nothing surfaces, or in another head"
        tokens = rows[0].nonzero().flatten().tolist()
        return "not finite: " + {1: f"token {tokens[0]}", TOKENS: "all tokens of the head"}.get(
            len(tokens), "the tokens that read it"
        )

    return how


def constant(value: float, path: str = "") -> Callable[[], str]:
    """All of q, k and v are one number, so that all scores tie. path: what VSA_COMPILE_CPU says."""

    @mock.patch.dict(os.environ, VSA_COMPILE_CPU=path)
    def how() -> str:
        video = torch.full((1, 2, TOKENS, 16), value, requires_grad=True)
        args = arguments(q=video, k=video, v=video)
        out = vsa_compile.attention(**args)
        (grad,) = torch.autograd.grad(out.sum(), video)
        near = bool(((out - value).abs() <= 2 * torch.finfo(out.dtype).eps * value).all())
        # Weights that sum to 1: the gradients of v sum to one for each output.
        total = bool((grad.sum() - out.numel()).abs() <= 1e-5 * out.numel())
        again = torch.equal(out, vsa_compile.attention(**args))
        return f"computed: {value} everywhere" if near and total and again else "something else"

    return how


def denormal(dtype: torch.dtype, **scales: float) -> Callable[[], str]:
    """Inputs below the least normal number; all tiles are kept, so that no underflown score decides."""

    def how() -> str:
        args = arguments(sparsity=EVERY_TILE)
        names = ("q", "k", "v")
        args |= {name: (args[name] * scales.get(name, 1)).to(dtype) for name in names}
        out = vsa_compile.attention(**args)
        wanted = expected(args | {name: args[name].double() for name in names})
        # Every term that is summed up in the output's own type is rounded once, a denormal one by a step.
        numbers, terms = torch.finfo(dtype), TOKENS if dtype == torch.float32 else 1
        step = numbers.eps * (args["v"].abs().max().double() + numbers.smallest_normal)
        close = bool(((out - wanted).abs() <= terms * step).all())
        return "computed: nothing is lost" if close and out.any() else "wrong, or all zero"

    return how


def denormal_beside_normal() -> str:
    """bfloat16 values whose odd columns are denormal. Matrix units may take those for zero, and no more."""
    args = arguments(sparsity=EVERY_TILE, **alike(dtype=torch.bfloat16))
    args["v"][..., 1::2] *= 1e-39
    out = vsa_compile.attention(**args)
    wanted = expected(args | {name: args[name].double() for name in ("q", "k", "v")})
    normal = relative(out[..., ::2], wanted[..., ::2]) <= BOUNDS[torch.bfloat16]
    small = bool((out[..., 1::2].abs() <= args["v"][..., 1::2].abs().max()).all())
    return "computed: what is normal is right, what is denormal may become 0" if normal and small else "wrong"


ROWS = (
    *(
        Row("X16", f"{value} in {where}, {by}", poisoned(where, value, kernel), outcome)
        for by, kernel in (("C++ kernel", ""), ("ATen", "aten"))
        for where, value, outcome in (
            ("q", torch.nan, "not finite: token 17"),
            ("q", torch.inf, "not finite: token 17"),
            ("k", torch.nan, "not finite: all tokens of the head"),
            ("k", torch.inf, "not finite: the tokens that read it"),
            ("k", -torch.inf, "not finite: the tokens that read it"),
            ("v", torch.nan, "not finite: the tokens that read it"),
            ("v", torch.inf, "not finite: the tokens that read it"),
        )
    ),
    Row("X17", "an all-zero video", constant(0.0), "computed: 0.0 everywhere"),
    Row("X17", "a constant video", constant(3.0), "computed: 3.0 everywhere"),
    Row("X17", "a constant video, without a C++ compiler", constant(3.0, "aten"), "computed: 3.0 everywhere"),
    Row(
        "X18",
        "denormal q and k: all weights are equal",
        denormal(torch.float32, q=1e-39, k=1e-39),
        "computed: nothing is lost",
    ),
    Row("X18", "denormal float32 values", denormal(torch.float32, v=1e-39), "computed: nothing is lost"),
    Row("X18", "denormal float16 values", denormal(torch.float16, v=1e-5), "computed: nothing is lost"),
    Row(
        "X18",
        "denormal bfloat16 values in every other column",
        denormal_beside_normal,
        "computed: what is normal is right, what is denormal may become 0",
    ),
)
