"""Decides whether the outputs of a case are right, by the rules that all kernels are held to."""

from __future__ import annotations

import itertools

import attend_cases
import torch
from attend_judge import assert_right, eager, gold, magnitudes
from compare import assert_rows, rule_a, rule_c
from torch import Tensor

from gpu_offline.cases import Case, Inputs, make_inputs
from vsa_compile.grid import Grid
from vsa_compile.ops import gpu


def verdict(case: Case, outputs: list[Tensor] | str) -> str | None:
    """What is wrong with the outcome of a case; None if nothing is."""
    if isinstance(outputs, str):
        return outputs
    inputs = make_inputs(case)
    call = _call(case, inputs)
    like = (call.q, call.k, call.v) if case.backward else (call.q,)
    for out, x in zip(outputs, like, strict=False):
        batch, heads, tokens, width = x.shape
        if out.dtype != x.dtype or out.shape != (batch, tokens, heads, width) or not out.is_contiguous():
            return f"a result is {out.dtype} {tuple(out.shape)} with strides {out.stride()}"
    try:
        if case.gated:
            _assert_gated(call, inputs, outputs[0])
        elif case.backward:
            names = ("grad_q", "grad_k", "grad_v")
            assert_right(call, {name: x.transpose(1, 2) for name, x in zip(names, outputs, strict=False)})
            if len(outputs) > 3:  # a GPU does not show its lists
                _assert_transposed(inputs, *outputs[3:])
        else:
            assert_right(call, {"out": outputs[0], "lse": outputs[1]})
    except AssertionError as error:
        return str(error)
    return None


def on_gpu(case: Case) -> list[Tensor]:
    """The outputs of the compiled case on a real GPU; twice, with the same bits."""
    assert gpu.register()
    function, integers, tensors = case.call()
    with torch.no_grad():
        compiled = torch.compile(function, fullgraph=True, dynamic=case.dynamic)
        outputs, again = (_tuple(compiled(*integers, *(x.cuda() for x in tensors))) for _ in range(2))
    assert all(map(torch.equal, outputs, again))
    return [x.cpu() for x in outputs]


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _call(case: Case, inputs: Inputs) -> attend_cases.Case:
    """The case as all kernels' tests know it. A forward call has the gradient 0."""
    return attend_cases.Case(
        made=repr(case), q=inputs.q, k=inputs.clean_k, v=inputs.clean_v,
        grad_out=inputs.grad_out if case.backward else torch.zeros_like(inputs.grad_out),
        tiles=inputs.tiles, counts=inputs.counts,
        grid=Grid(*case.grid), tile=case.tile, q_start=case.q_other[0], kv_start=case.kv_other[0],
        key_padding=inputs.padding, scale=case.width**-0.5, packed=case.packed,
    )  # fmt: skip


def _assert_transposed(inputs: Inputs, starts: Tensor, columns: Tensor, order: Tensor) -> None:
    """The query tiles of every key tile; the key tiles by how often the heads of a group list them."""
    batch, heads, rows = inputs.counts.shape
    kv_heads, total = inputs.k.shape[1], order.shape[-1]
    often = torch.zeros(batch, kv_heads, total, dtype=torch.int64)
    for b, h in itertools.product(range(batch), range(heads)):
        lists = [inputs.tiles[b, h, m, : inputs.counts[b, h, m]].tolist() for m in range(rows)]
        for j in range(total):
            wanted = [m for m in range(rows) if j in lists[m]]
            got = columns[b, h, starts[b, h, j] : starts[b, h, j + 1]].tolist()
            assert got == wanted, f"batch {b}, head {h}: key tile {j} is listed by {wanted}, not {got}"
            often[b, h // (heads // kv_heads), j] += len(wanted)
    wanted_order = torch.sort(often, dim=-1, descending=True, stable=True).indices
    assert torch.equal(order.long(), wanted_order), (
        f"the order is {order.tolist()}, not {wanted_order.tolist()}"
    )


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
