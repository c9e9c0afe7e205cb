"""Operators that make values from nothing, or from another value's size alone: nobody's tokens."""

from __future__ import annotations

import torch

from ..algebra import Axis, unit
from ..facts import Claim, Fact, constant, fitting
from ..sizes import equal
from ..values import Layout, OpCall, Result
from .table import FactRule, op


def fresh_axes(call: OpCall) -> list[Axis]:
    return [unit() if equal(size, 1) else Axis(size) for size in call.sizes]


def _filled(value: object) -> FactRule:
    return lambda call, _: fitting(constant(value), call.example.dtype)


def _filled_by(position: int, name: str) -> FactRule:
    def rule(call: OpCall, _: Layout) -> Fact | None:
        fact = call.fact(call.arg(position, name))
        return fact and fitting(Fact(fact.everywhere), call.example.dtype)

    return rule


for _name, _value in (("ones", True), ("new_ones", True), ("zeros", False), ("new_zeros", False)):
    op(_name, fact=_filled(_value), table=True)(fresh_axes)
op(
    "empty", "new_empty", "rand", "randn", "randint", "randperm", "empty_strided", "eye", "linspace",
    "logspace", "new_empty_strided", "tril_indices", "triu_indices", table=True,
)(fresh_axes)  # fmt: skip
op("full", fact=_filled_by(1, "fill_value"), table=True)(fresh_axes)
op("new_full", fact=_filled_by(2, "fill_value"), table=True)(fresh_axes)
op("tensor", "scalar_tensor", fact=_filled_by(0, "data"), table=True)(fresh_axes)


@op("arange", fact=lambda call, _: _positions(call), table=True)
def _arange(call: OpCall) -> Result:
    return fresh_axes(call)


def _positions(call: OpCall) -> Fact | None:
    """arange(stop) or arange(start, stop), with step 1 and integer dtype."""
    args, kwargs = call.node.args, call.node.kwargs
    start = call.literal(kwargs.get("start", args[0] if len(args) > 1 or ("end" in kwargs and args) else 0))
    step = call.literal(kwargs.get("step", args[2] if len(args) > 2 else 1))
    if step != 1 or isinstance(start, float) or call.example.dtype not in (torch.int32, torch.int64):
        return None
    return Fact((Claim("position", start),))


def _like(call: OpCall) -> Result:
    """The size of another value, but nothing of its content."""
    return call.input


op("ones_like", fact=_filled(True), table=True)(_like)
op("zeros_like", fact=_filled(False), table=True)(_like)
op("full_like", fact=_filled_by(1, "fill_value"), table=True)(_like)
op("empty_like", "rand_like", "randn_like", "randint_like", table=True)(_like)
