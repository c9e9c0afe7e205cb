"""When two computations of the same thing agree, and what to say when they do not.

Every numerical test uses these rules. No single one notices every fault:

    A  every row misses by at most twice what eager misses, and rounding      low precision
    B  tracer dye: the output is the weight of every tile (dye.py)            any precision, no tolerance
    C  every row of the fp32 path is within 1e-5 of fp64                      fp32
    D  the mean error is at most 1.25 times eager's                           low precision

A row is a tensor's last dimension. `terms` is how large the terms of a row are, cancellation aside: where
they cancel (a query that sees one key has no gradient) their rounding is all there is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RULE_C = 1e-5


def row_norms(x: Tensor) -> Tensor:
    return x.double().norm(dim=-1)


def row_errors(got: Tensor, wanted: Tensor) -> Tensor:
    return row_norms(got.double() - wanted.double())


def rule_a(wanted: Tensor, eager: Tensor, terms: Tensor, dtype: torch.dtype) -> Tensor:
    """What a row in `dtype` may miss: twice eager's error, 4 roundings of the row, 2 of its terms."""
    rounding = torch.finfo(dtype).eps / 2
    return 2 * row_errors(eager, wanted) + rounding * (4 * row_norms(wanted) + 2 * row_norms(terms))


def rounding(dtype: torch.dtype) -> float:
    """What a value in `dtype` may miss, relative to it: rule C's share, or 4 roundings of a narrow type."""
    eps = torch.finfo(dtype).eps
    return max(2 * eps, RULE_C) if dtype.itemsize < 8 else RULE_C / torch.finfo(torch.float32).eps * eps


def rule_c(wanted: Tensor, terms: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a row of the fp32 (or fp64) path may miss: sums of a few hundred terms in any order.

    A term is a product of up to four numbers, each of them rounded.
    """
    return rounding(dtype) * row_norms(wanted) + 4 * torch.finfo(dtype).eps * row_norms(terms)


def assert_rows(
    name: str, got: Tensor, wanted: Tensor, allowed: Tensor, where: Callable[[tuple[int, ...]], str] = str
) -> None:
    """No row misses by more than it may. `where` puts the index of a row in words."""
    assert got.shape == wanted.shape, f"{name} is {tuple(got.shape)}, not {tuple(wanted.shape)}"
    missed = row_errors(got, wanted)
    bad = ~(missed <= allowed)  # so that NaN fails
    if not bad.any():
        return
    excess = (missed / allowed.clamp_min(1e-300)).nan_to_num(torch.inf).where(bad, -1.0)
    worst = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    raise AssertionError(
        f"{name}: {int(bad.sum())} of {bad.numel()} rows are wrong; worst at {where(worst)}: "
        f"misses {float(missed[worst]):.2e}, allowed {float(allowed[worst]):.2e}"
    )


def assert_mean(name: str, got: Tensor, wanted: Tensor, eager: Tensor, terms: Tensor) -> None:
    """Rule D. A rounding of the terms is free, for outputs that are exact in eager."""
    missed, eager_missed = (float(row_errors(x, wanted).mean()) for x in (got, eager))
    free = torch.finfo(got.dtype).eps / 2 * float(row_norms(terms).mean())
    allowed = 1.25 * eager_missed + 0.05 * free
    assert missed <= allowed, f"{name}: rows miss {missed:.2e} on average, allowed {allowed:.2e}"


# --- Whole models: rule C for tensors, and for gradients by parameter ------------------------------


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """L2 norm of the difference over the L2 norm of what was wanted."""
    got, wanted = got.detach().double(), wanted.detach().double()
    return float((got - wanted).norm() / wanted.norm().clamp_min(1e-30))


def assert_same_output(got: Tensor, wanted: Tensor, bound: float = RULE_C) -> None:
    """Equal within fp32 rounding: a sum of a few hundred terms, a few layers deep, stays far below 1e-5."""
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    assert got.isfinite().all()
    error = relative_error(got, wanted)
    assert error <= bound, f"relative error {error:.2e} > {bound:.0e}"


def assert_same_gradients(got: dict[str, Tensor], wanted: dict[str, Tensor], bound: float = 1e-4) -> None:
    """Every parameter's gradient within rounding of its own norm, or of 1 % of the largest gradient.

    The second clause is for gradients that are zero in exact arithmetic (a key bias has none), of which
    rounding is all there is.
    """
    assert got.keys() == wanted.keys()
    largest = max(float(grad.norm()) for grad in wanted.values())
    for name, grad in wanted.items():
        error = float((got[name] - grad).norm())
        allowed = bound * max(float(grad.norm()), 0.01 * largest)
        assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e}"


def output_and_gradients(model, *args, **kwargs) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and every parameter's gradient under a fixed, position-dependent loss."""
    model.zero_grad()
    out = model(*args, **kwargs)
    out = out[0] if isinstance(out, tuple) else out
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    (out * weights).sum().backward()
    # torch.compile's wrapper prefixes the names.
    grads = {
        name.removeprefix("_orig_mod."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()
    return out.detach(), grads
