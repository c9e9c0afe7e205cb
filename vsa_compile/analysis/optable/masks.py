"""Operators that masks are made of: comparisons, logic, choices, integer sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..facts import Claim, Fact, Kind, Rows, constant, fitting
from ..graph_facts import example_of
from ..values import Known, Layout, OpCall, Result, broadcast
from . import carry
from .compute import pointwise, reduced
from .factories import fresh_axes
from .table import FactRule, op, own

Pair = tuple[Kind, Any] | None


# --- Entry by entry -------------------------------------------------------------------------------


def _operands(call: OpCall, *arguments: object) -> list[Fact] | None:
    """The facts of two operands along one dimension; None if they run along different dimensions."""
    facts = [_computed(call, call.fact(argument) or Fact()) for argument in arguments]
    dims = {fact.dim for fact in facts if fact.claims != fact.everywhere}
    return None if len(dims) > 1 else [replace(fact, dim=next(iter(dims), -1)) for fact in facts]


def _computed(call: OpCall, fact: Fact) -> Fact:
    """The claims of an operand that hold in the type in which torch computes: fractions may be rounded there,
    large numbers wrap, and a number takes the type of the tensor beside it."""
    if not fact.claims:
        return fact
    kinds = [torch.result_type(*map(_typed, (call.self_, call.other)))]
    kinds += [x.dtype for x in map(example_of, (call.self_, call.other))
              if isinstance(x, torch.Tensor) and x.dtype.is_floating_point]  # fmt: skip
    claims = set.intersection(*({*(fitting(fact, dtype) or Fact()).claims} for dtype in kinds))
    return replace(fact, claims=tuple(claim for claim in fact.claims if claim in claims))


def _typed(argument: object) -> Any:
    """A tensor or number of the type of an argument."""
    value = example_of(argument)
    if isinstance(value, torch.Tensor):
        return value
    return 1.0 if isinstance(value, (float, torch.SymFloat)) else 1 if not isinstance(value, bool) else value


def _entrywise(made: Callable[[Claim, Claim], Pair]) -> FactRule:
    def rule(call: OpCall, _: Layout) -> Fact | None:
        if call.fact(call.self_) is None or call.fact(call.other) is None:
            return None  # most additions: of tokens nothing is known
        if len(call.node.args) > 2:
            return None  # torch.add(x, alpha, y), an older spelling
        facts = _operands(call, call.self_, call.other)
        if facts is None or call.node.kwargs.get("alpha", 1) != 1:
            return None
        claims = tuple(call.proofs.pairwise(facts, made))
        return fitting(Fact(claims, facts[0].dim), call.example.dtype)

    return rule


def _is_number(value: object) -> bool:
    return not isinstance(value, float)


def _sum(a: Claim, b: Claim) -> Pair:
    if a.kind == b.kind == "is":
        return "is", a.value + b.value
    if a.kind == b.kind == "position" or not (_is_number(a.value) and _is_number(b.value)):
        return None
    return "position" if {a.kind, b.kind} == {"position", "is"} else "at least", a.value + b.value


def _difference(a: Claim, b: Claim) -> Pair:
    if b.kind != "is" or not (_is_number(a.value) and _is_number(b.value)):
        return None
    return a.kind, a.value - b.value


def _product(a: Claim, b: Claim) -> Pair:
    if a.kind == b.kind == "is":
        return "is", a.value * b.value
    return None


def _added(call: OpCall) -> Result:
    """An operand with alpha=0 leaves nothing in the sum, and x - x is 0. Of sizes nothing is claimed here."""
    if len(call.node.args) > 2:  # torch.add(x, alpha, y), an older spelling
        return pointwise(call)
    if call.literal(call.node.kwargs.get("alpha", 1)) == 0:
        return broadcast([known for known in [call.known(call.self_)] if known], call.sizes)
    itself = (
        call.name.startswith("sub") and call.self_ is call.other and isinstance(call.example, torch.Tensor)
    )
    if itself and call.literal(call.node.kwargs.get("alpha", 1)) == 1:
        return nobodys(call, constant(0))
    return pointwise(call)


def _multiplied(call: OpCall) -> Result:
    """Nothing is left of a value that is multiplied by 0 everywhere."""
    facts = [call.fact(argument) for argument in (call.self_, call.other)]
    if any(claim.kind == "is" and claim.value == 0 for fact in facts if fact for claim in fact.everywhere):
        return nobodys(call, constant(0))
    return pointwise(call)


def nobodys(call: OpCall, fact: Fact) -> Known:
    """A result in which nothing is left of its operands. Of infinite ones, x - x and x * 0 are no numbers."""
    if call.example.dtype.is_floating_point and call.name != "masked_fill":
        fact = Fact()
    return Known(pointwise(call) or fresh_axes(call), fitting(fact, call.example.dtype), table=True)


op("add", fact=_entrywise(_sum))(_added)
op("sub", "subtract", fact=_entrywise(_difference))(_added)
op("mul", "multiply", fact=_entrywise(_product))(_multiplied)


@op("lerp")
def _lerp(call: OpCall) -> Result:
    """Exactly its start at weight 0, exactly its end at weight 1."""
    ends, weight = (call.self_, call.arg(1, "end")), call.literal(call.arg(2, "weight"))
    end = call.known(ends[int(weight)]) if isinstance(weight, (int, float)) and weight in (0, 1) else None
    return broadcast([end], call.sizes) if end is not None else pointwise(call)


def _negated(call: OpCall, _: Layout) -> Fact | None:
    fact = call.fact(call.self_)
    if fact is None or call.example.dtype != torch.bool:
        return None
    source = example_of(call.self_)
    if isinstance(source, torch.Tensor) and source.dtype != torch.bool and call.name != "logical_not":
        return None
    claims = [replace(claim, value=not claim.value) for claim in fact.claims if claim.kind == "is"]
    return Fact(tuple(claims), fact.dim)


op("logical_not", "bitwise_not", "invert", fact=_negated)(pointwise)


def _logic(absorbing: bool) -> FactRule:
    """`and` is False where either operand is, and True where both are; `or` the other way round."""

    def rule(call: OpCall, _: Layout) -> Fact | None:
        if call.example.dtype != torch.bool:
            return None
        facts = [fitting(call.fact(argument), torch.bool) or Fact() for argument in (call.self_, call.other)]
        dims = {fact.dim for fact in facts if fact.claims != fact.everywhere}
        dim = next(iter(dims), -1)
        absorbed = [claim for fact in facts for claim in fact.claims
                    if claim.value is absorbing and (claim.everywhere or fact.dim == dim)]  # fmt: skip
        shared = [] if len(dims) > 1 else call.proofs.pairwise(facts, lambda a, b: _kept(a, b, not absorbing))
        rows = _both_ways(call) if not absorbing else None
        return Fact((*absorbed, *shared), dim, rows)

    return rule


def _kept(a: Claim, b: Claim, value: bool) -> Pair:
    return ("is", value) if a.value is value and b.value is value else None


def _both_ways(call: OpCall) -> Rows | None:
    """The mask p & p.transpose(2, 3): padding neither sees nor is seen."""
    rows = [carry.rows_of(call, argument) for argument in (call.self_, call.other)]
    if not all(rows) or {one.how for one in rows if one} != {"rows", "columns"}:
        return None
    contents = {one.content for one in rows if one}
    return Rows("both", contents.pop()) if len(contents) == 1 else None


op("logical_and", "bitwise_and", "and_", "__and__", fact=_logic(absorbing=False))(pointwise)
op("logical_or", "bitwise_or", "or_", "__or__", fact=_logic(absorbing=True))(pointwise)
own("aten::__iand__", fact=_logic(absorbing=False), in_place=True)(pointwise)
own("aten::__ior__", fact=_logic(absorbing=True), in_place=True)(pointwise)
# `absorbing` is the value that decides alone: False for `and`, True for `or`.


def _compared(lower: bool, equal_too: bool) -> FactRule:
    """left < right (`lower`) or left > right: a position and a bound in either order, or constants."""

    def rule(call: OpCall, _: Layout) -> Fact | None:
        facts = _operands(call, call.self_, call.other)
        if facts is None:
            return None
        small, large = facts if lower else facts[::-1]
        above = _below(call, large, small, not equal_too)
        claims = _below(call, small, large, equal_too) + [replace(claim, value=False) for claim in above]
        return Fact(tuple(claims), facts[0].dim)

    return rule


def _below(call: OpCall, small: Fact, large: Fact, equal_too: bool) -> list[Claim]:
    """Where entries of one value are always below (or equal to) those of another, as claims of True."""
    found: list[Claim] = []
    for a in small.claims:
        for b in large.everywhere:
            if a.kind == "position" and _is_number(b.value) and a.everywhere:
                stop = b.value - a.value + (1 if equal_too else 0)  # i + a < b up to here
                found.append(Claim("is", True, 0, stop))
        for b in large.claims:
            if a.kind == "is" and b.kind != "position" and _is_less(call, a.value, b.value, equal_too):
                run = call.proofs.overlap(a, b)
                found += [Claim("is", True, *run)] if run else []
    return found


def _is_less(call: OpCall, a: Any, b: Any, equal_too: bool) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a <= b if equal_too else a < b
    whole = _is_number(a) and _is_number(b)
    return whole and call.proofs.at_least(b, a + (0 if equal_too else 1))


op("lt", "less", fact=_compared(lower=True, equal_too=False))(pointwise)
op("le", "less_equal", fact=_compared(lower=True, equal_too=True))(pointwise)
op("gt", "greater", fact=_compared(lower=False, equal_too=False))(pointwise)
op("ge", "greater_equal", fact=_compared(lower=False, equal_too=True))(pointwise)


def _equality(value: bool) -> FactRule:
    def made(a: Claim, b: Claim) -> Pair:
        known = (
            a.kind == b.kind == "is"
            and not hasattr(a.value, "free_symbols")
            and not hasattr(b.value, "free_symbols")
        )
        return ("is", (a.value == b.value) is value) if known else None

    return _entrywise(made)


op("eq", fact=_equality(True))(pointwise)
op("ne", "not_equal", fact=_equality(False))(pointwise)


# --- Bounds ---------------------------------------------------------------------------------------


def _counted(call: OpCall, _: Layout) -> Fact | None:
    """A sum of non-negative entries is not negative: it counts a mask.

    One thing is assumed, not proved: an input of the graph that is summed in integers is a mask of zeros and
    ones. (HunyuanVideo's text mask is float, summed with dtype=torch.int.)
    """
    known, source = call.known(call.self_), example_of(call.self_)
    if (
        known is None
        or not isinstance(source, torch.Tensor)
        or call.example.dtype not in (torch.int32, torch.int64)
    ):
        return None
    least = call.proofs.lower_bound(known.fact)
    nonnegative = least is not None and call.proofs.at_least(least, 0)
    if known.given or source.dtype == torch.bool or nonnegative:
        return Fact((Claim("at least", 0),))
    return None


op("sum", "count_nonzero", fact=_counted)(reduced)


def _bounded(call: OpCall, _: Layout) -> Fact | None:
    """No entry is below the lower bound, nor below what none was before, unless the upper bound is."""
    least = call.proofs.lower_bound(call.fact(call.self_))
    low = call.literal(call.arg(1, "min")) if call.name != "clamp_max" else None
    high = call.literal(call.arg(1 if call.name == "clamp_max" else 2, "max"))
    if any(isinstance(bound, (float, torch.Tensor)) for bound in (low, high)):
        return None
    if low is not None and (least is None or call.proofs.at_least(low, least)):
        least = low
    if least is not None and high is not None and not call.proofs.at_least(high, least):
        least = high if call.proofs.at_least(least, high) else None
    return None if least is None else fitting(Fact((Claim("at least", least),)), call.example.dtype)


op("clamp", "clip", "clamp_min", "clamp_max", fact=_bounded)(pointwise)
