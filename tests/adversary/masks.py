"""Edits of masks, each of which may hide video keys; and new masks for calls, true of the video or not."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F

from .sketch import Edit, Spot

EDITS: dict[str, Edit] = {}
FLAT: dict[str, Edit] = {}


def edit(function: Edit) -> Edit:
    EDITS[function.__name__] = function
    return function


def _part(s: Spot) -> slice:
    a = s.random.randrange(s.size)
    return slice(a, s.random.randrange(a, s.size) + 1)


def _cond(x: Any, s: Spot) -> Any:
    """Some positions, of the last dimension's size or of the whole shape."""
    steps, k = s.call(torch.arange, s.size), s.random.randrange(1, s.size + 1)
    cond = s.random.choice((steps < k, steps >= s.size - k, steps % 2 == 0))
    return cond.expand(s.shape) if s.dim == len(s.shape) - 1 and s.random.random() < 0.5 else _along(cond, s)


def _along(index: Any, s: Spot) -> Any:
    shape = [1] * len(s.shape)
    shape[s.dim] = s.size
    return index.view(shape)


# Writes into the mask itself.


@edit
def sets_false_(m: Any, s: Spot) -> None:
    s.put(m, s.at(_part(s)), False)


@edit
def sets_false_behind_an_ellipsis_(m: Any, s: Spot) -> None:
    s.put(m, (..., _part(s)) if s.dim == len(s.shape) - 1 else s.at(_part(s)), False)


@edit
def sets_false_in_a_row_(m: Any, s: Spot) -> None:
    s.put(m, (0, *s.at(_part(s))[1:]) if s.dim else s.at(_part(s)), False)


@edit
def sets_false_through_a_view_(m: Any, s: Spot) -> None:
    view = s.random.choice(
        (m[s.at(_part(s))], m.narrow(s.dim, 0, 1), m.select(s.dim, s.size - 1), m.detach(), m[...])
    )
    s.random.choice((view.zero_, lambda: view.fill_(False), lambda: view.logical_and_(~view)))()


@edit
def fills_where_(m: Any, s: Spot) -> None:
    m.masked_fill_(_cond(m, s), False)


@edit
def fills_by_index_(m: Any, s: Spot) -> None:
    m.index_fill_(s.dim, s.call(torch.arange, s.random.randrange(1, s.size + 1)), False)


@edit
def ands_(m: Any, s: Spot) -> None:
    cond = _cond(m, s)
    s.random.choice(
        (
            lambda: m.logical_and_(cond),
            lambda: m.logical_and_(other=cond),
            lambda: s.call(operator.iand, m, cond),
            lambda: m.bitwise_and_(cond),
            lambda: m.mul_(cond),
            lambda: s.call(torch.logical_and, m, cond, out=m),
            lambda: s.call(operator.ixor, m, cond),
        )
    )()


@edit
def negates_(m: Any, s: Spot) -> None:
    s.random.choice((m.logical_not_, m.bitwise_not_, lambda: s.call(torch.logical_not, m, out=m), m.zero_))()


@edit
def copies_over_the_mask_(m: Any, s: Spot) -> None:
    s.random.choice((lambda: m.copy_(m.flip(s.dim)), lambda: s.call(torch._foreach_zero_, [m])))()


@edit
def compares_in_place_(m: Any, s: Spot) -> None:
    s.random.choice(
        (
            lambda: m.lt_(1),
            lambda: m.eq_(False),
            lambda: m.sub_(1) if s.value.dtype != torch.bool else m.ne_(1),
        )
    )()


# New masks made of it.


@edit
def filled_where(m: Any, s: Spot) -> Any:
    return m.masked_fill(_cond(m, s), False)


@edit
def anded(m: Any, s: Spot) -> Any:
    cond = _cond(m, s)
    return s.random.choice(
        (m & cond, m.logical_and(other=cond), m * cond, s.call(torch.where, cond, m, False))
    )


@edit
def negated(m: Any, s: Spot) -> Any:
    return s.random.choice(
        (m.logical_not(), m == 0, m ^ True if s.value.dtype == torch.bool else m.neg(), m < 1)
    )


@edit
def replaced_by_nothing(m: Any, s: Spot) -> Any:
    return s.random.choice(
        (
            lambda: m.new_full(s.shape, False),
            lambda: s.call(torch.full_like, m, False),
            lambda: s.call(torch.full, s.shape, fill_value=False),
            lambda: m.new_zeros(s.shape),
            lambda: (
                m.new_ones(s.shape).sub(1)
                if s.value.dtype != torch.bool
                else m.new_ones(s.shape).logical_not()
            ),
        )
    )()


@edit
def narrowed_in_type(m: Any, s: Spot) -> Any:
    """A cast that wraps, and back."""
    if s.value.dtype == torch.bool:
        return m.to(torch.int8).sub(1).to(torch.bool)
    return s.random.choice((m.to(torch.int8), m.to(torch.uint8), m.bool().long(), (m * 100).to(torch.int8)))


@edit
def shifted(m: Any, s: Spot) -> Any:
    if s.value.dtype == torch.bool:
        return m.roll(1, s.dim)
    return s.random.choice((m + 1, m - 1, m * 2, m.clamp(max=3), m % 3, m.abs().neg()))


# Whole masks (B or 1, keys) for a call of `video` tokens behind `before` others, and `after` them.


def flat(function: Edit) -> Edit:
    FLAT[function.__name__] = function
    return function


class Keys:
    """A call's keys."""

    def __init__(self, s: Spot, batch: int, before: int, video: int, after: int):
        self.s, self.batch, self.before, self.video, self.after = s, batch, before, video, after
        self.others, self.all = before + after, before + video + after

    def padding(self, q: Any) -> Any:
        """(B, others) bool that is data: what of the others is real."""
        data = q.flatten(1)[:, : self.others]
        return data > self.s.random.choice((0.0, -100.0, 100.0))

    def counts(self, q: Any) -> Any:
        """(B,) int64, 0 to `others`, spelled in many ways, some of which are not."""
        s, real = self.s, self.padding(q)
        return s.random.choice(
            (
                lambda: real.sum(-1),
                lambda: real.int().sum(dim=1),
                lambda: real.long().sum(1).clamp(min=0),
                lambda: s.call(torch.sum, real, dim=-1),
                lambda: s.call(torch.count_nonzero, real, dim=1),
                lambda: (real.logical_not().int() - 1).sum(-1),
                lambda: real.sum(-1).neg(),
                lambda: real.sum(-1) - 1,
                lambda: real.sum(-1).sub(other=self.others),
                lambda: real.sum(-1) * s.random.choice((-1, 1, 2)),
                lambda: real.float().sum(-1).sub(0.5).long(),
                lambda: real.to(torch.int8).neg().sum(-1),
                lambda: (real.sum(-1) + 200).to(torch.int8).long(),
                lambda: (real.sum(-1) - 3).abs(),
                lambda: s.call(torch.add, real.sum(-1), 2, alpha=-1),
                lambda: real.long().cumsum(-1)[:, -1] if self.others else real.sum(-1),
                lambda: real.long().argmax(-1) if self.others else real.sum(-1),
                lambda: s.call(operator.isub, real.sum(-1), 1),
            )
        )()


@flat
def joined(q: Any, k: Keys) -> Any:
    real = k.padding(q)
    ones = k.s.random.choice(
        (real.new_ones, real.new_zeros) if k.s.random.random() < 0.3 else (real.new_ones,)
    )((k.batch, k.video))
    parts = [real[:, : k.before], ones, real[:, k.before :]]
    if k.s.random.random() < 0.3:
        parts = [parts[1], parts[0], parts[2]]
    return k.s.call(torch.cat, parts, dim=k.s.random.choice((1, -1)))


@flat
def counted(q: Any, k: Keys) -> Any:
    steps = k.s.call(torch.arange, k.all)
    bound = k.counts(q) + k.before + k.video - k.s.random.choice((0, 0, 0, 1))
    rows = bound[:, None]
    return k.s.random.choice(
        (
            lambda: steps[None] < rows,
            lambda: k.s.call(torch.lt, steps, other=rows),
            lambda: steps.lt(other=rows),
            lambda: rows.gt(steps),
            lambda: steps <= rows - 1,
            lambda: k.s.call(torch.ge, rows, other=steps[None] + 1),
            lambda: (steps >= rows).logical_not(),
            lambda: ~k.s.call(operator.ge, steps, rows),
            lambda: steps[None] <= rows,
            lambda: steps.flip(0)[None] < rows,
            lambda: (steps + 1)[None] < rows,
            lambda: steps.to(torch.uint8)[None] < rows,
        )
    )()


@flat
def written(q: Any, k: Keys) -> Any:
    """Ones or zeros, then parts written."""
    s, shape = k.s, (k.batch, k.all)
    m = s.random.choice(
        (
            lambda: s.call(torch.ones, *shape, dtype=torch.bool),
            lambda: s.call(torch.zeros, shape, dtype=torch.bool),
            lambda: s.call(torch.full, shape, True),
        )
    )()
    for _ in range(s.random.randrange(4)):
        _write(m, k)
    return m


def _write(m: Any, k: Keys) -> None:
    s = k.s
    a = s.random.choice((0, k.before, k.before + k.video, s.random.randrange(k.all)))
    b = s.random.choice((k.before, k.before + k.video, k.all, s.random.randrange(k.all)))
    value, part = s.random.random() < 0.6, m[:, a:b]
    s.random.choice(
        (
            lambda: s.put(m, (slice(None), slice(a, b)), value),
            lambda: s.put(m, (0, slice(a, b)), value),
            lambda: s.put(m, (..., slice(a, b)), value),
            lambda: part.fill_(value),
            lambda: part.logical_not_(),
            lambda: part.masked_fill_(part, value),
            lambda: m.masked_fill_(s.call(torch.arange, k.all) >= b, value),
        )
    )()


@flat
def padded(q: Any, k: Keys) -> Any:
    real = k.padding(q)
    pads = k.s.random.choice(((k.video, 0), (0, k.video)))
    return k.s.call(F.pad, real, pads, value=k.s.random.choice((True, True, 1.0, False)))


@flat
def both(q: Any, k: Keys) -> Any:
    """Two masks together."""
    make = [k.s.random.choice([joined, counted, written, padded]) for _ in range(2)]
    a, b = (one(q, k) for one in make)
    return k.s.random.choice(
        (a & b, a | b, a.logical_or(other=b), k.s.call(torch.logical_and, input=a, other=b), a ^ b)
    )


def widened(m: Any, s: Spot) -> Any:
    """(B, keys) -> (B, 1, 1, keys)."""
    return s.random.choice(
        (
            m[:, None, None],
            m[:, None, None, :],
            m.unsqueeze(1).unsqueeze(1),
            m.unsqueeze(1).unsqueeze(2).contiguous(),
        )
    )
