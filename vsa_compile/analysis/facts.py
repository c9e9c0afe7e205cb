"""What is known of the values of a mask, or of the integers that masks are made from. Never looks at data.

A `Fact` holds claims about runs of one dimension, the keys for instance, for all positions in the others.
Kinds: `is` (every entry is this constant), `position` (entry i is i + value), `at least` (no entry is less).
`stop` None means the end of the dimension. Only proved claims are kept; nothing is known of entries without a
claim. `rows` says of what a mask between tokens was made: see `Rows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import sympy
import torch

from .sizes import Size, equal

Kind = Literal["is", "position", "at least"]


@dataclass(frozen=True)
class Claim:
    kind: Kind
    value: Any
    start: Size = 0
    stop: Size | None = None

    @property
    def everywhere(self) -> bool:
        return self.stop is None and equal(self.start, 0)

    def __str__(self) -> str:
        where = "" if self.everywhere else f" on [{self.start}, {'' if self.stop is None else self.stop})"
        return f"{self.kind} {self.value}{where}"


@dataclass(frozen=True)
class Rows:
    """A 4-D mask that repeats a key padding (B or 1, 1, 1, N) as rows, as columns, or both.

    `content` identifies the padding: its node, and how often its memory had been written to.
    """

    how: Literal["rows", "columns", "both"]
    content: tuple[Any, int]


@dataclass(frozen=True)
class Fact:
    """Claims along dimension `dim`, counted from the right: -1 is the last."""

    claims: tuple[Claim, ...] = ()
    dim: int = -1
    rows: Rows | None = None

    @property
    def everywhere(self) -> tuple[Claim, ...]:
        """What holds of every entry, in whatever order and shape. Of positions, that none is below the
        first: they are what they are along their dimension alone."""
        return tuple(
            replace(claim, kind="at least") if claim.kind == "position" else claim
            for claim in self.claims
            if claim.everywhere
        )

    def __str__(self) -> str:
        return "; ".join(map(str, self.claims)) + (f" of {self.rows.how}" if self.rows else "")


def constant(value: Any) -> Fact:
    """Every entry is `value`."""
    return Fact((Claim("is", value),))


class Proofs:
    """Comparisons of sizes by algebra and by the graph's present guards; adds no guard.

    `respelled` rewrites data-dependent sizes so that those known to be equal are one symbol.
    """

    def __init__(
        self, known_at_least: Callable[[Size, Size], bool], respelled: Callable[[Size], Size]
    ) -> None:
        self._known, self.respelled = known_at_least, respelled

    def at_least(self, a: Size, b: Size) -> bool:
        """Whether a >= b for all values of the symbols."""
        difference = self.respelled(a - b)
        if isinstance(difference, (bool, int, float)):
            return difference >= 0
        return bool(difference.is_nonnegative) or equal(difference, 0) or self._known(a, b)

    def all_are(self, fact: Fact | None, value: Any, start: Size, stop: Size) -> bool:
        """Whether every entry of [start, stop) is `value`, by a chain of adjacent claims."""
        left = [claim for claim in fact.claims if claim.kind == "is" and claim.value == value] if fact else []
        reached = start
        while not self.at_least(reached, stop):
            step = next((claim for claim in left if self.at_least(reached, claim.start)), None)
            if step is None:
                return False
            left.remove(step)
            if step.stop is None:
                return True
            if self.at_least(step.stop, reached):
                reached = step.stop
        return True

    def lower_bound(self, fact: Fact | None) -> Size | None:
        """A size that no entry is below."""
        for claim in fact.everywhere if fact else ():
            if not isinstance(claim.value, (bool, float)):
                return claim.value
        return None

    def overlap(self, a: Claim, b: Claim) -> tuple[Size, Size | None] | None:
        """The run that two claims share; None if there is none or the order of their ends is unknown."""
        start = self._one(a.start, b.start, highest=True)
        ends = [claim.stop for claim in (a, b) if claim.stop is not None]
        stop = None if not ends else ends[0] if len(ends) == 1 else self._one(ends[0], ends[1], highest=False)
        if start is None or (ends and stop is None) or (stop is not None and self.at_least(start, stop)):
            return None
        return start, stop

    def _one(self, a: Size, b: Size, *, highest: bool) -> Size | None:
        if self.at_least(a, b):
            return a if highest else b
        if self.at_least(b, a):
            return b if highest else a
        return None

    def pairwise(
        self, facts: Sequence[Fact], result: Callable[[Claim, Claim], tuple[Kind, Any] | None]
    ) -> Iterable[Claim]:
        """The claims that `result` makes of each overlapping pair of one claim from either fact."""
        found: dict[Claim, None] = {}
        for a in facts[0].claims:
            for b in facts[1].claims:
                made = result(a, b)
                if made is not None and (run := self.overlap(a, b)) is not None:
                    found[Claim(*made, *run)] = None
        return found


def fitting(fact: Fact | None, dtype: torch.dtype) -> Fact | None:
    """The claims that hold after a cast to `dtype`: bounds and positions in integers too wide to wrap
    at such sizes, constants that the dtype can represent."""
    if fact is None:
        return None
    claims = []
    for claim in fact.claims:
        if claim.kind == "is":
            cast = _cast(claim.value, dtype)
            claims += [] if cast is None else [replace(claim, value=cast)]
        elif dtype in (torch.int32, torch.int64):
            claims += [claim] if _far_from_wrapping(claim.value, dtype) else []
        elif dtype == torch.bool and claim.kind == "at least" and _positive(claim.value):
            claims.append(replace(claim, kind="is", value=True))
    return replace(fact, claims=tuple(claims)) if claims or fact.rows else None


def _far_from_wrapping(value: Any, dtype: torch.dtype) -> bool:
    """Whether numbers of tokens can be added to a bound without leaving the type; sizes are small enough."""
    return not isinstance(value, int) or 2 * abs(value) <= torch.iinfo(dtype).max


def _positive(value: Any) -> bool:
    return value > 0 if isinstance(value, (int, float)) else bool(value.is_positive)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, sympy.Basic):
        return value if dtype in (torch.int32, torch.int64) else None
    if dtype == torch.bool:
        return bool(value)
    if dtype.is_floating_point:
        return float(value) if _representable(float(value), torch.finfo(dtype)) else None
    if dtype.is_complex or not math.isfinite(value):
        return None
    limits = torch.iinfo(dtype)
    return int(value) if limits.min <= value <= limits.max else None


def _representable(value: float, limits: torch.finfo) -> bool:
    """Whether a type holds a number as it is, without rounding."""
    if value == 0 or math.isinf(value):
        return True
    mantissa, _ = math.frexp(value)  # from 0.5 to 1
    return limits.tiny <= abs(value) <= limits.max and (2 * mantissa / limits.eps).is_integer()


def shifted(fact: Fact | None, before: Size, size: Size, proofs: Proofs) -> list[Claim]:
    """The claims of a piece, moved by the `before` entries that precede it in a concatenation."""
    claims = []
    for claim in fact.claims if fact else ():
        run = proofs.overlap(claim, Claim("is", None, 0, size))
        if run is not None and run[1] is not None:
            value = claim.value - before if claim.kind == "position" else claim.value
            claims.append(Claim(claim.kind, value, before + run[0], before + run[1]))
    return claims


def cut_out(fact: Fact, start: Size, stop: Size, proofs: Proofs) -> Fact:
    """The fact of x[start:stop]."""
    claims = []
    for claim in fact.claims:
        overlap = proofs.overlap(claim, Claim(claim.kind, claim.value, start, stop))
        if overlap is None:
            continue
        first, last = overlap
        value = claim.value + start if claim.kind == "position" else claim.value
        to_the_end = last is not None and equal(last, stop)
        claims.append(
            Claim(claim.kind, value, first - start, None if to_the_end or last is None else last - start)
        )
    return Fact(tuple(claims), fact.dim)


def both(a: Fact | None, b: Fact | None, proofs: Proofs) -> Fact | None:
    """What holds if every entry comes from one of two values, it is not known from which."""
    if a is None or b is None or (a.dim != b.dim and not (a.everywhere and b.everywhere)):
        return None
    facts = [a, b] if a.dim == b.dim else [Fact(a.everywhere), Fact(b.everywhere)]
    claims = proofs.pairwise(
        facts, lambda x, y: (x.kind, x.value) if (x.kind, x.value) == (y.kind, y.value) else None
    )
    return Fact(tuple(claims), facts[0].dim)


def patched(
    before: Fact | None,
    inside: Fact | None,
    run: tuple[Size, Size],
    *,
    all_rows: bool,
    proofs: Proofs,
) -> Fact | None:
    """What holds after `inside` was written into a run of the last dimension.

    Claims outside of the run stay, those inside are replaced; if only some rows were written, only claims
    that hold of both contents remain.
    """
    start, stop = run
    claims: list[Claim] = []
    for claim in before.claims if before else ():
        for first, last in ((0, start), (stop, None)):
            overlap = proofs.overlap(claim, Claim("is", None, first, last))
            if overlap is not None:
                claims.append(Claim(claim.kind, claim.value, *overlap))
    new = shifted(inside, start, stop - start, proofs)
    if not all_rows:
        alike = proofs.pairwise(
            [before or Fact(), Fact(tuple(new))],
            lambda a, b: (b.kind, b.value) if (a.kind, a.value) == (b.kind, b.value) else None,
        )
        new = list(alike)
    return Fact((*claims, *new))
