"""Selections of key tiles: rules that rank scores, and combinations of rules.

Notation: B batch, H heads, Mq query tiles, M key tiles, Kcap width of the lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError, bad_value, needs_scores
from ..grid import Size, ceil_div
from .prune import Queries


@dataclass(frozen=True)
class Selector:
    """Base of all selections. A subclass writes `mask`, and `width` if it always keeps few tiles.

    mask(scores, queries): (B, H, Mq, M) bool, or anything that broadcasts to it. scores: (B, H, Mq, M), or
        None if the method has no scorer.
    width(queries): the most tiles that a row may keep. It is the width of the lists in memory, so it must not
        depend on data; of more tiles the best are kept.

    `queries.site` knows `kept`, `count` and the key tiles, `queries.boxes` the query tiles. Every row keeps
    at least one tile. Nothing may be read on the host.
    """

    def mask(self, scores: Tensor | None, queries: Queries) -> Tensor:
        raise NotImplementedError

    def width(self, queries: Queries) -> Size:
        return queries.site.boxes.tiles

    def expected(self, queries: Queries) -> Size:
        """How many tiles a row keeps on average, as far as known beforehand: what reports show."""
        return self.width(queries)

    def lists(self, scores: Tensor | None, queries: Queries) -> tuple[Tensor, Tensor]:
        """tiles (B, H, Mq, Kcap) and counts (B, H, Mq), int32; see vsa_compile::select. B and H may be 1."""
        return _best_of(self.mask(scores, queries), scores, self.width(queries), queries)

    def __or__(self, other: Selector) -> Union:
        return Union((self, other))

    def __and__(self, other: Selector) -> Intersection:
        return Intersection((self, other))


def _scores(scores: Tensor | None, rule: Selector) -> Tensor:
    if scores is None:
        raise ArgumentError(needs_scores(type(rule).__name__))
    return scores


def _best_of(wanted: Tensor, scores: Tensor | None, width: Size, queries: Queries) -> tuple[Tensor, Tensor]:
    """Lists of the wanted tiles, or the best `width` of them; a row that wants none lists its first tile."""
    every = wanted.new_ones((1, 1, queries.boxes.tiles, queries.site.boxes.tiles))
    scores = (every & wanted).to(torch.float32) if scores is None else scores
    lowest = torch.finfo(scores.dtype).min
    ranked = scores.clamp(min=lowest).where(wanted, -torch.inf)
    return torch.ops.vsa_compile.select(ranked, width, torch.full_like(ranked[..., 0], lowest))


def as_mask(tiles: Tensor, counts: Tensor, total: Size) -> Tensor:
    """Lists (..., Kcap) and counts (...) -> (..., M) bool."""
    listed = torch.arange(tiles.shape[-1], device=tiles.device) < counts[..., None]
    ids = tiles.long().where(listed, total)  # entries past the count go into an extra column
    seen = torch.zeros((*counts.shape, total + 1), dtype=torch.bool, device=tiles.device)
    return seen.scatter(-1, ids, True)[..., :total]


# --- Rules that rank scores ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TopK(Selector):
    """The best tiles of every row, as many as the sparsity leaves. VSA (arXiv 2505.13389, section 2.2).

    share: keep this share of the tiles, whatever the sparsity; None: follow the sparsity.
    """

    share: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None:
            _check_share("share", self.share)

    def width(self, queries: Queries) -> Size:
        site = queries.site
        return site.kept if self.share is None else _share_of(site.boxes.tiles, self.share)

    def mask(self, scores: Tensor | None, queries: Queries) -> Tensor:
        return as_mask(*self.lists(scores, queries), queries.site.boxes.tiles)

    def lists(self, scores: Tensor | None, queries: Queries) -> tuple[Tensor, Tensor]:
        count = queries.site.count if self.share is None else None
        extra = () if count is None else (None, count)
        return torch.ops.vsa_compile.select(_scores(scores, self), self.width(queries), *extra)


@dataclass(frozen=True)
class TopP(Selector):
    """The smallest set of tiles with a softmax mass of at least `mass`, whatever the sparsity.

    FastVideo's version of BSA is AtLeast(TopP(0.9), 4). Costs a sort of every row. Flat rows keep nearly all
    tiles; combine it with AtMost, or the lists are as wide as there are tiles.
    """

    mass: float = 0.9

    def __post_init__(self) -> None:
        _check_share("mass", self.mass)

    def mask(self, scores: Tensor | None, queries: Queries) -> Tensor:
        scores = _scores(scores, self)
        return ~(scores < self._threshold(scores)[..., None])

    def lists(self, scores: Tensor | None, queries: Queries) -> tuple[Tensor, Tensor]:
        scores = _scores(scores, self)
        return torch.ops.vsa_compile.select(scores, self.width(queries), self._threshold(scores))

    def _threshold(self, scores: Tensor) -> Tensor:
        """(B, H, Mq): the lowest score in that set."""
        best = scores.sort(-1, descending=True).values
        weights = best.softmax(-1)
        before = F.pad(weights.cumsum(-1)[..., :-1], (1, 0))
        return best.where(before < self.mass, torch.inf).amin(-1)


@dataclass(frozen=True)
class GaussQuantile(Selector):
    """Tiles that score at least mean + std * PHI^-1(1 - kept / M): about `kept` per row, without a sort.

    BSA's "statistical dynamic threshold" (arXiv 2509.01085). The sentence "until the accumulated score
    reaches p", which is quoted beside it, cannot hold as well: together they would keep a single tile. As a
    threshold on the logits the formula keeps what the paper's ablation reports (sparsity 0.89 where a fixed
    number gives 0.86): rows of Gaussian scores keep `kept` tiles, rows with a few high scores keep fewer.

    overflow: the lists have room for this many times `kept` tiles; of more above the threshold the best are
        kept. Rows of Gaussian scores do not reach 1.5. By Cantelli's inequality a width of
        M / (1 + PHI^-1(1 - kept / M)^2) is always enough: 3.3 times `kept` at 0.14.
    """

    overflow: float = 1.5

    def __post_init__(self) -> None:
        if not self.overflow >= 1:
            raise ArgumentError(bad_value("overflow", self.overflow, "1 or more"))

    def width(self, queries: Queries) -> Size:
        return torch.sym_min(self._room(queries.site.kept), queries.site.boxes.tiles)

    def expected(self, queries: Queries) -> Size:
        return queries.site.kept

    def _room(self, kept: Size) -> Size:
        factor = Fraction(str(self.overflow))
        return ceil_div(kept * factor.numerator, factor.denominator)

    def mask(self, scores: Tensor | None, queries: Queries) -> Tensor:
        scores = _scores(scores, self)
        return ~(scores < self._threshold(scores, queries)[..., None])

    def lists(self, scores: Tensor | None, queries: Queries) -> tuple[Tensor, Tensor]:
        scores = _scores(scores, self)
        count = queries.site.count
        room = () if count is None else (self._room(count),)
        return torch.ops.vsa_compile.select(
            scores, self.width(queries), self._threshold(scores, queries), *room
        )

    def _threshold(self, scores: Tensor, queries: Queries) -> Tensor:
        """(B, H, Mq). Lowered by four roundings: rows of equal scores (black frames) keep their tiles."""
        site, total = queries.site, queries.site.boxes.tiles
        kept = site.count
        if kept is None:
            kept = torch.full((), site.kept, dtype=torch.float64, device=scores.device)
        # With kept = M the quantile is -inf, and -inf * 0 is NaN; no score is std * sqrt(M) from the mean.
        quantile = torch.special.ndtri(1 - kept.to(torch.float64) / total).clamp(min=-1e5)
        variance, mean = torch.var_mean(scores, -1, correction=0)
        rounding = 4 * torch.finfo(scores.dtype).eps * scores.abs().amax(-1)
        return mean + quantile.to(scores.dtype) * variance.sqrt() - rounding


# --- Combinations -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Union(Selector):
    """Tiles that any of the rules wants. A static rule among them names tiles that are always kept."""

    rules: tuple[Selector, ...]

    def mask(self, scores: Tensor | None, queries: Queries) -> Tensor:
        first, *others = (rule.mask(scores, queries) for rule in self.rules)
        for other in others:
            first = first | other
        return first

    def width(self, queries: Queries) -> Size:
        return torch.sym_min(sum(rule.width(queries) for rule in self.rules), queries.site.boxes.tiles)


@dataclass(frozen=True)
class Intersection(Selector):
    """Tiles that all rules want; if there are none, the first tile."""

    rules: tuple[Selector, ...]

    def mask(self, scores: Tensor | None, queries: Queries) -> Tensor:
        first, *others = (rule.mask(scores, queries) for rule in self.rules)
        for other in others:
            first = first & other
        return first

    def width(self, queries: Queries) -> Size:
        first, *others = (rule.width(queries) for rule in self.rules)
        for other in others:
            first = torch.sym_min(first, other)
        return first


@dataclass(frozen=True)
class AtLeast(Selector):
    """What a rule wants, and in any case the `tiles` best of every row."""

    rule: Selector
    tiles: int

    def _floor(self, queries: Queries) -> Size:
        return torch.sym_min(self.tiles, queries.site.boxes.tiles)

    def mask(self, scores: Tensor | None, queries: Queries) -> Tensor:
        tiles, counts = torch.ops.vsa_compile.select(_scores(scores, self), self._floor(queries))
        return self.rule.mask(scores, queries) | as_mask(tiles, counts, queries.site.boxes.tiles)

    def width(self, queries: Queries) -> Size:
        return torch.sym_min(self.rule.width(queries) + self._floor(queries), queries.site.boxes.tiles)

    def expected(self, queries: Queries) -> Size:
        return torch.sym_max(self.rule.expected(queries), self._floor(queries))


@dataclass(frozen=True)
class AtMost(Selector):
    """The best of what a rule wants, up to this share of all tiles."""

    rule: Selector
    share: float

    def __post_init__(self) -> None:
        _check_share("share", self.share)

    def mask(self, scores: Tensor | None, queries: Queries) -> Tensor:
        return as_mask(*self.lists(scores, queries), queries.site.boxes.tiles)

    def lists(self, scores: Tensor | None, queries: Queries) -> tuple[Tensor, Tensor]:
        return _best_of(self.rule.mask(scores, queries), scores, self.width(queries), queries)

    def width(self, queries: Queries) -> Size:
        return torch.sym_min(_share_of(queries.site.boxes.tiles, self.share), self.rule.width(queries))

    def expected(self, queries: Queries) -> Size:
        return torch.sym_min(_share_of(queries.site.boxes.tiles, self.share), self.rule.expected(queries))


def _check_share(name: str, share: object) -> None:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ArgumentError(bad_value(name, share, "a share above 0, at most 1"))


def _share_of(total: Size, share: float) -> Size:
    """`share` of `total`, rounded up and at least 1, in integer arithmetic."""
    part = Fraction(str(share))
    return torch.sym_max(1, ceil_div(part.numerator * total, part.denominator))
