"""Operators that choose between values entry by entry: where, masked_fill."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..facts import Claim, Fact, fitting
from ..values import Layout, OpCall, Result, in_order_of_all
from .compute import pointwise
from .masks import Pair, nobodys
from .table import op


def _chosen(call: OpCall, condition: object, yes: Fact | None, no: Fact | None) -> Fact | None:
    """`yes` where the condition is True, `no` where it is False, and their common claims everywhere."""
    asked = call.fact(condition) or Fact()
    known = [fact for fact in (asked, yes, no) if fact is not None]
    dims = {fact.dim for fact in known if fact.claims != fact.everywhere}
    if len(dims) > 1:
        return None
    claims: list[Claim] = []
    for taken, value in ((yes, True), (no, False)):
        if taken is not None:
            claims += call.proofs.pairwise([asked, taken], _where(value))
    if yes is not None and no is not None:
        claims += call.proofs.pairwise([yes, no], lambda a, b: (a.kind, a.value) if _alike(a, b) else None)
    return fitting(Fact(tuple(claims), next(iter(dims), -1)), call.example.dtype)


def _where(value: bool) -> Callable[[Claim, Claim], Pair]:
    return lambda asked, taken: (taken.kind, taken.value) if asked.value is value else None


def _alike(a: Claim, b: Claim) -> bool:
    return a.kind == b.kind and bool(a.value == b.value)


def _filled_at(call: OpCall) -> Result:
    """If everything is filled, nothing of the input is left."""
    mask, value = call.fact(call.arg(1, "mask")), call.fact(call.arg(2, "value"))
    if any(claim.value is True for claim in (mask.everywhere if mask else ())):
        return nobodys(call, value or Fact())
    return pointwise(call)


op("masked_fill", fact=lambda call, _: _chosen(
    call, call.arg(1, "mask"), call.fact(call.arg(2, "value")), call.fact(call.self_)
))(_filled_at)  # fmt: skip


def _either(call: OpCall) -> Result:
    """Each entry comes from one of two operands; if one of them is reordered, so is the result."""
    layout = pointwise(call)
    operands = [call.known(argument) for argument in _choices(call)[1:]]
    return layout and in_order_of_all(layout, [one for one in operands if one is not None])


def _choices(call: OpCall) -> tuple[object, object, object]:
    """The condition, and what is taken where it is True and False: torch.where(condition, x, y) or
    x.where(condition, y)."""
    method = call.node.op == "call_method" or call.node.target is torch.Tensor.where
    condition, yes = (1, 0) if method else (0, 1)
    return (
        call.arg(condition, "condition"),
        call.arg(yes, "input", call.arg(yes, "self")),
        call.arg(2, "other"),
    )


def _where_fact(call: OpCall, _: Layout) -> Fact | None:
    condition, yes, no = _choices(call)
    return _chosen(call, condition, call.fact(yes), call.fact(no))


op("where", fact=_where_fact)(_either)
