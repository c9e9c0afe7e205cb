"""Whether the results of vsa_compile::attend are right by the rules of compare.py, and where they are not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from attend_cases import Case, Results, through_autograd
from compare import assert_mean, assert_rows, rule_a, rule_c
from torch import Tensor

from vsa_compile.grid import TileGrid
from vsa_compile.ops import reference

ROWS = ("out", "grad_q", "grad_k", "grad_v")


def gold(case: Case) -> Results:
    """The specification and its gradients in fp64."""
    return through_autograd(reference.attend, case.double())


def assert_right(case: Case, got: Results, wanted: Results | None = None) -> None:
    """Rule C for fp32 and fp64, rules A and D for narrow types, for all results that there are.

    `wanted` is `gold(case)` unless given. What is exactly 0 there must be exactly 0: dye depends on it.
    """
    wanted, terms, dtype = wanted or gold(case), magnitudes(case), case.q.dtype
    narrow = eager(case) if dtype.itemsize < 4 else None
    for name in (name for name in ROWS if name in got):
        parts = (got[name], wanted[name])
        assert got[name].dtype == dtype, name
        if narrow is None:
            allowed = rule_c(wanted[name], terms[name], dtype)
        else:
            allowed = rule_a(wanted[name], narrow[name], terms[name], dtype)
            assert_mean(name, *parts, narrow[name], terms[name])
        assert_rows(name, *parts, allowed, partial(where, case, name))
        if name in ("out", "grad_v"):
            leaked = (parts[1] == 0) & (parts[0] != 0)
            assert not leaked.any(), (
                f"{name} is not 0 at {where(case, name, tuple(leaked.nonzero()[0].tolist()))}"
            )
    if "lse" in got and "lse" in wanted:
        assert got["lse"].dtype == torch.promote_types(dtype, torch.float32)
        # The C++ kernel's exp is good to 7.5e-5 where weights are rounded to bf16.
        rounding = 1e-12 if dtype == torch.float64 else 1e-3 if dtype == torch.bfloat16 else 1e-5
        assert_lse(got["lse"], wanted["lse"], rounding)


def assert_lse(got: Tensor, wanted: Tensor, bound: float) -> None:
    """Natural logarithms agree absolutely; -inf exactly where nothing is seen."""
    assert torch.equal(got == -torch.inf, wanted == -torch.inf)
    seen = wanted != -torch.inf
    missed = (got.double() - wanted)[seen].abs() / wanted[seen].abs().clamp_min(1)
    assert bool((missed <= bound).all()), f"lse misses {float(missed.max()):.2e}, allowed {bound:.0e}"


def where(case: Case, name: str, index: tuple[int, ...]) -> str:
    """A row of out (B, N, H) or of a gradient (B, H, N) in words."""
    batch, head, token = (index[0], index[2], index[1]) if name == "out" else index
    keys = name in ("grad_k", "grad_v")
    at = f"batch {batch}, {'key ' * keys}head {head}, {'key' if keys else 'query'} {token}"
    grid, shape = (case.grid, case.tile) if keys or not case.packed else case.packed
    token -= case.kv_start if keys else case.q_start
    if not 0 <= token < grid.tokens:
        return f"{at} (not video)"
    place = (token // (grid.rows * grid.cols), token // grid.cols % grid.rows)
    tile, boxes = int(reference.tile_of_token(grid, shape)[token]), TileGrid(grid, shape)
    return (
        f"{at} (frame {place[0]}, row {place[1]}, col {token % grid.cols}; tile {tile}, "
        f"{boxes.real_tokens(tile)} of {boxes.tile_tokens} tokens real)"
    )


@dataclass(frozen=True)
class Dense:
    """The case with every score written out, for emulations; all (B, H, Nq, Nkv) or (B, H, N, D)."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    allowed: Tensor
    groups: int

    @classmethod
    def of(cls, case: Case, dtype: torch.dtype) -> Dense:
        groups = case.q.shape[1] // case.k.shape[1]
        q, k, v, grad = (x.to(dtype) for x in (case.q, case.k, case.v, case.grad_out.transpose(1, 2)))
        site = (case.grid, case.tile, case.q_start, case.kv_start, case.key_padding, *case.packed)
        allowed = reference.allowed_keys(case.q, case.k, case.tiles, case.counts, *site)
        return cls(q, *(x.repeat_interleave(groups, dim=1) for x in (k, v)), grad, allowed, groups)

    def weights(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        logits = scores.masked_fill(~self.allowed, -torch.inf)
        lse = logits.logsumexp(-1)
        return torch.exp(logits - lse.nan_to_num(neginf=0.0)[..., None]), lse

    def per_key_head(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.groups)).sum(2)


def eager(case: Case) -> Results:
    """What plain PyTorch makes of the case in its precision: products round operands and results to it."""
    dtype = case.q.dtype

    def rounded(x: Tensor) -> Tensor:
        return x.to(dtype).float()

    x = Dense.of(case, torch.float32)
    weights, lse = x.weights(rounded(x.q @ x.k.transpose(-1, -2)) * case.scale)
    weights = rounded(weights)
    out = rounded(weights @ x.v)
    delta = (x.grad * out).sum(-1, keepdim=True)
    scores = rounded(weights * (rounded(x.grad @ x.v.transpose(-1, -2)) - delta) * case.scale)
    return {
        "out": out.transpose(1, 2),
        "lse": lse,
        "grad_q": rounded(scores @ x.k),
        "grad_k": rounded(x.per_key_head(rounded(scores.transpose(-1, -2) @ x.q))),
        "grad_v": rounded(x.per_key_head(rounded(weights.transpose(-1, -2) @ x.grad))),
    }


def magnitudes(case: Case) -> Results:
    """How large the terms of every result are, cancellation aside: what rounding errors are relative to."""
    x = Dense.of(case, torch.float64)
    weights, _ = x.weights(x.q @ x.k.transpose(-1, -2) * case.scale)
    q, k, v, grad = (y.abs() for y in (x.q, x.k, x.v, x.grad))
    out = weights @ v
    delta = (grad * out).sum(-1, keepdim=True)
    scores = weights * (grad @ v.transpose(-1, -2) + delta) * abs(case.scale)
    return {
        "out": out.transpose(1, 2),
        "grad_q": scores @ k,
        "grad_k": x.per_key_head(scores.transpose(-1, -2) @ q),
        "grad_v": x.per_key_head(weights.transpose(-1, -2) @ grad),
    }
