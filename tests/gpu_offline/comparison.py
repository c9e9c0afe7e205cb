"""Decides whether the outputs of a case are right, by the rules that all kernels are held to."""

from __future__ import annotations

import attend_cases
import torch
from attend_judge import assert_right, eager, gold, magnitudes
from compare import assert_rows, rule_a, rule_c
from torch import Tensor

from gpu_offline.cases import Case, Inputs, make_inputs
from vsa_compile.grid import Grid


def verdict(case: Case, outputs: list[Tensor] | str) -> str | None:
    """What is wrong with the outcome of a case; None if nothing is."""
    if isinstance(outputs, str):
        return outputs
    out, inputs = outputs[0], make_inputs(case)
    call = _call(case, inputs)
    if out.dtype != case.dtype or out.shape != call.grad_out.shape or not out.is_contiguous():
        return f"out is {out.dtype} {tuple(out.shape)} with strides {out.stride()}"
    try:
        if case.gated:
            _assert_gated(call, inputs, out)
        else:
            assert_right(call, {"out": out, "lse": outputs[1]})
    except AssertionError as error:
        return str(error)
    return None


def _call(case: Case, inputs: Inputs) -> attend_cases.Case:
    """The case as all kernels' tests know it. There is no backward template: its gradient is 0."""
    batch, heads, tokens, width = inputs.q.shape
    return attend_cases.Case(
        made=repr(case), q=inputs.q, k=inputs.clean_k, v=inputs.clean_v,
        grad_out=inputs.q.new_zeros(batch, tokens, heads, width), tiles=inputs.tiles, counts=inputs.counts,
        grid=Grid(*case.grid), tile=case.tile, q_start=case.q_other[0], kv_start=case.kv_other[0],
        key_padding=inputs.padding, scale=case.width**-0.5,
    )  # fmt: skip


def _assert_gated(call: attend_cases.Case, inputs: Inputs, out: Tensor) -> None:
    """out + gate * coarse, by the same rules."""
    assert inputs.gate is not None
    assert inputs.coarse is not None
    product = inputs.gate.double() * inputs.coarse.double()
    wanted, terms = gold(call)["out"] + product, magnitudes(call)["out"] + product.abs()
    if call.q.dtype == torch.float32:
        allowed = rule_c(wanted, terms)
    else:
        plain = eager(call)["out"].to(call.q.dtype) + inputs.gate * inputs.coarse
        allowed = rule_a(wanted, plain, terms, call.q.dtype)
    assert_rows("out + gate * coarse", out, wanted, allowed)
