"""Decides whether the outputs of a case are right, row by row, against the fp64 specification."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu_offline.cases import Case, expected, make_inputs

# fp32 sums of a few hundred terms; the matrix products are exact fp32 ("ieee").
_FP32_ROW_ERROR = 1e-5
_LSE_ERROR = 1e-5


def verdict(case: Case, outputs: list[Tensor] | str) -> str | None:
    """What is wrong with the outcome of a case; None if nothing is."""
    if isinstance(outputs, str):
        return outputs
    inputs = make_inputs(case)
    out, lse = expected(case, inputs)
    if outputs[0].dtype != case.dtype or outputs[0].shape != out.shape or not outputs[0].is_contiguous():
        return f"out is {outputs[0].dtype} {tuple(outputs[0].shape)} with strides {outputs[0].stride()}"
    reason = _rows_differ(outputs[0], out, _allowed(case, out))
    if reason is None and not case.gated:
        reason = _lse_differs(outputs[1], lse)
    return reason


def _allowed(case: Case, out: Tensor) -> Tensor:
    """Error that a row may have: a share of its norm, and none where the row is 0."""
    norm = out.norm(dim=-1)
    if case.dtype == torch.float32:
        return _FP32_ROW_ERROR * norm
    # Rounding the weights, and the output once more: twice what the specification rounded to the
    # dtype has, and 4 units in the last place.
    rounded = (out.to(case.dtype).double() - out).norm(dim=-1)
    return 2 * rounded + 4 * torch.finfo(case.dtype).eps * norm


def _rows_differ(got: Tensor, out: Tensor, allowed: Tensor) -> str | None:
    error = (got.double() - out).norm(dim=-1)
    bad = ~(error <= allowed)  # NaN is bad
    if not bad.any():
        return None
    batch, token, head = bad.nonzero()[0].tolist()
    return (
        f"{int(bad.sum())} of {bad.numel()} rows of out differ, first batch {batch} token {token} "
        f"head {head}: error {error[batch, token, head]:.2e}, allowed {allowed[batch, token, head]:.2e}"
    )


def _lse_differs(got: Tensor, lse: Tensor) -> str | None:
    if got.dtype != torch.float32:
        return f"lse is {got.dtype}"
    same = (got.double() == lse) | ((got.double() - lse).abs() <= _LSE_ERROR)  # -inf equals -inf
    return None if bool(same.all()) else f"{int((~same).sum())} of {same.numel()} values of lse differ"
