"""What views and copies keep of a fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..algebra import Axis, same
from ..facts import Claim, Fact, Proofs, Rows, both, cut_out, fitting, shifted
from ..graph_facts import example_of, sizes_of
from ..sizes import Size, equal
from ..values import OpCall


def cast(call: OpCall, _: Sequence[Axis]) -> Fact | None:
    """The same entries in the result's dtype and shape. Numbers of truth values are not below 0."""
    fact, source = call.fact(call.self_), example_of(call.self_)
    kept = fitting(fact, call.example.dtype) if fact else None
    if isinstance(source, torch.Tensor) and source.dtype == torch.bool:
        counted = fitting(Fact((Claim("at least", 0),)), call.example.dtype)
        kept = replace(kept, claims=kept.claims + counted.claims) if kept and counted else kept or counted
    return kept


def moved(call: OpCall, layout: Sequence[Axis]) -> Fact | None:
    """The fact after dimensions were moved or regrouped: along its axis, if that is still a dimension."""
    known = call.known(call.self_)
    fact = call.fact(call.self_)
    if known is None or fact is None:
        return None
    carried = Fact(fact.everywhere) if fact.everywhere else None
    if fact.everywhere != fact.claims:
        axis = known.axes[fact.dim]
        there = [position for position, one in enumerate(layout) if same(one, axis)]
        if len(there) == 1 and sum(same(one, axis) for one in known.axes) == 1:
            carried = Fact(fact.claims, there[0] - len(layout))
    return carried


def stretched(call: OpCall, layout: Sequence[Axis]) -> Fact | None:
    """The fact after expanding or repeating other dimensions than its own."""
    known, fact = call.known(call.self_), call.fact(call.self_)
    result = None
    if known is not None and fact is not None:
        kept = len(known.axes) >= -fact.dim and layout[fact.dim] is known.axes[fact.dim]
        result = Fact(fact.claims if kept else fact.everywhere, fact.dim if kept else -1)
    rows = _padding_rows(call, fact)
    return replace(result or Fact(), rows=rows) if rows else result


def _padding_rows(call: OpCall, fact: Fact | None) -> Rows | None:
    """Whether a key padding (B or 1, 1, 1, N) is repeated for every head or query, at once or in steps."""
    sizes = [sizes_of(example) or [] for example in (example_of(call.self_), call.example)]
    if not len(sizes[0]) == len(sizes[1]) == 4 or not equal(sizes[0][3], sizes[1][3]):
        return None
    alike = equal(sizes[0][0], sizes[1][0])
    if fact is not None and fact.rows is not None and fact.rows.how == "rows":
        return fact.rows if alike else None
    flat = equal(sizes[0][1], 1) and equal(sizes[0][2], 1)
    if not flat or not (alike or equal(sizes[0][0], 1)):  # repeated for other samples
        return None
    return Rows("rows", (call.self_, call.stamp(call.self_)))


def turned(call: OpCall, layout: Sequence[Axis]) -> Fact | None:
    """The fact of a transpose: the rows of a mask become its columns."""
    fact = moved(call, layout)
    rows, known = rows_of(call, call.self_), call.known(call.self_)
    if rows is None or known is None or len(layout) != 4 or rows.how != "rows":
        return fact
    sizes = sizes_of(example_of(call.self_)) or [], call.sizes
    kept = [position for position in range(4) if layout[position] is known.axes[position]]
    if kept == [0, 1] and equal(sizes[0][3], sizes[1][2]) and equal(sizes[0][2], sizes[1][3]):
        return replace(fact or Fact(), rows=Rows("columns", rows.content))
    return fact


def rows_of(call: OpCall, argument: object) -> Rows | None:
    """What a 4-D mask was made of; a key padding (B or 1, 1, 1, N) counts as made of itself."""
    known = call.known(argument)
    if known is None:
        return None
    if known.fact is not None and known.fact.rows is not None:
        return known.fact.rows
    sizes = sizes_of(example_of(argument)) or []
    if len(sizes) == 4 and equal(sizes[1], 1) and equal(sizes[2], 1):
        return Rows("rows", (argument, call.stamp(argument)))
    return None


def copied(call: OpCall, layout: Sequence[Axis]) -> Fact | None:
    """The fact of a copy in any dtype, with what a mask was made of."""
    fact, before = cast(call, layout), call.fact(call.self_)
    rows = before.rows if before is not None else None
    return replace(fact or Fact(), rows=rows) if rows and call.example.dtype == torch.bool else fact


def cut(fact: Fact | None, dim: int, start: Size, stop: Size, proofs: Proofs) -> Fact | None:
    """The fact of a piece that was cut along `dim`, counted from the right."""
    if fact is None:
        return None
    return cut_out(fact, start, stop, proofs) if fact.dim == dim else Fact(fact.claims, fact.dim)


def concatenated(
    facts: Sequence[Fact | None], dim: int, sizes: Sequence[Size], proofs: Proofs
) -> Fact | None:
    """The fact of a concatenation along `dim`, counted from the right."""
    if all(
        fact is not None and (fact.dim == dim or fact.everywhere == fact.claims) for fact in facts if fact
    ):
        claims: list[Claim] = []
        before: Size = 0
        for fact, size in zip(facts, sizes, strict=True):
            claims += shifted(fact, before, size, proofs)
            before = before + size
        return Fact(tuple(_merged(claims, before)), dim)
    result = facts[0]
    for fact in facts[1:]:
        result = both(result, fact, proofs)
    return result


def _merged(claims: Sequence[Claim], size: Size) -> list[Claim]:
    """Merge adjacent claims of one constant; a claim from end to end holds everywhere."""
    result: list[Claim] = []
    for claim in claims:
        last = result[-1] if result else None
        alike = last is not None and (last.kind, last.value) == (claim.kind, claim.value)
        if last is not None and alike and last.stop is not None and equal(last.stop, claim.start):
            result[-1] = replace(last, stop=claim.stop)
        else:
            result.append(claim)
    return [
        replace(claim, stop=None) if claim.stop is not None and equal(claim.stop, size) else claim
        for claim in result
    ]
