"""Edits that change nothing of what a graph means, only how it is written: no conversion may be lost.

New values that are the old ones, and other spellings of the nodes that are there.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from .sketch import Edit, Spot

EDITS: dict[str, Edit] = {}


def edit(function: Edit) -> Edit:
    EDITS[function.__name__] = function
    return function


@edit
def aliased(x: Any, s: Spot) -> Any:
    return s.random.choice(
        (
            lambda: x[...],
            lambda: x[:],
            lambda: x.detach(),
            lambda: x.view(s.shape) if s.value.is_contiguous() else x.detach(),
            lambda: s.call(torch.ops.aten.alias.default, x),
            lambda: x.view_as(x),
            lambda: x.expand(s.shape),
            lambda: x.expand_as(x),
        )
    )()


@edit
def cloned(x: Any, s: Spot) -> Any:
    return s.random.choice((x.clone, x.contiguous, lambda: s.call(torch.clone, input=x)))()


@edit
def converted_and_back(x: Any, s: Spot) -> Any:
    if s.value.dtype != torch.float32:
        return x.clone()
    return s.random.choice(
        (x.double().float(), x.to(torch.float64).to(torch.float32), x.to(dtype=torch.float32))
    )


@edit
def added_nothing(x: Any, s: Spot) -> Any:
    if s.value.dtype == torch.bool:
        return x.logical_and(True) if False else s.call(torch.logical_and, x, x)
    return s.random.choice(
        (
            lambda: x + 0,
            lambda: 0 + x,
            lambda: s.call(torch.add, x, other=0),
            lambda: s.call(torch.add, input=x, other=0, alpha=2),
            lambda: x.mul(other=1),
            lambda: s.call(torch.sub, other=0, input=x),
            lambda: s.call(torch.true_divide, x, other=1),
            lambda: x.neg().neg(),
            lambda: s.call(torch.lerp, x, x, 0.5),
        )
    )()


@edit
def written_in_place(x: Any, s: Spot) -> Any:
    """A pointwise write into a copy."""
    y = x.clone()
    if s.value.dtype == torch.bool:
        return s.random.choice((y.logical_and_(x), y.logical_or_(x)))
    returned = s.random.choice(
        (
            lambda: y.add_(0),
            lambda: y.mul_(other=1),
            lambda: y.div_(1).sub_(0),
            lambda: s.call(operator.iadd, y, 0),
            lambda: s.call(operator.imul, y, 1),
            lambda: y.neg_().neg_(),
        )
    )()
    return s.random.choice((y, returned))


@edit
def transposed_and_back(x: Any, s: Spot) -> Any:
    if len(s.shape) < 2:
        return x[None][0]
    a, b = s.random.sample(range(len(s.shape)), 2)
    return s.random.choice(
        (
            lambda: x.transpose(a, b).transpose(a, b),
            lambda: s.call(torch.transpose, input=x, dim0=a, dim1=b).contiguous().transpose(b, a),
            lambda: x.swapaxes(a, b).swapdims(b, a),
            lambda: x.movedim(a, b).movedim(b, a),
        )
    )()


@edit
def permuted_and_back(x: Any, s: Spot) -> Any:
    order = list(range(len(s.shape)))
    s.random.shuffle(order)
    back = [order.index(i) for i in range(len(order))]
    return s.random.choice(
        (x.permute(order).permute(*back), s.call(torch.permute, x.permute(*order), dims=back))
    )


@edit
def squeezed(x: Any, s: Spot) -> Any:
    d = s.random.randrange(len(s.shape) + 1)
    return s.random.choice(
        (x.unsqueeze(d).squeeze(d), x[None][0], s.call(torch.unsqueeze, x, dim=0).squeeze(0))
    )


@edit
def as_grid_and_back(x: Any, s: Spot) -> Any:
    if s.size != s.plan.tokens:
        return x.clone()
    d = s.dim
    return s.random.choice(
        (
            lambda: x.unflatten(d, s.plan.grid).flatten(d, d + 2),
            lambda: x.reshape(*s.shape[:d], *s.plan.grid, *s.shape[d + 1 :]).reshape(s.shape),
            lambda: s.call(torch.flatten, x.unflatten(d, s.plan.grid), start_dim=d, end_dim=d + 2),
        )
    )()


@edit
def split_and_joined(x: Any, s: Spot) -> Any:
    """Cut in two and put together as it was."""
    k = s.random.randrange(1, s.size)
    return s.random.choice(
        (
            lambda: s.call(torch.cat, [x[s.at(slice(None, k))], x[s.at(slice(k, None))]], dim=s.dim),
            lambda: s.call(torch.cat, [x.narrow(s.dim, 0, k), x.narrow(s.dim, k, s.size - k)], s.dim),
            lambda: s.call(
                torch.cat, [(parts := x.split([k, s.size - k], dim=s.dim))[0], parts[1]], dim=s.dim
            ),
        )
    )()


@edit
def padded_and_cut(x: Any, s: Spot) -> Any:
    if s.value.dtype == torch.bool:
        return x.clone()
    before = s.random.choice((0, 2))
    pads = [0, 0] * (len(s.shape) - 1 - s.dim) + [before, 1]
    return s.call(F.pad, x, pads).narrow(s.dim, before, s.size)


@edit
def stacked_and_taken(x: Any, s: Spot) -> Any:
    if not s.value.dtype.is_floating_point:
        return x.clone()
    return s.random.choice(
        (
            s.call(torch.stack, [x, x])[1],
            s.call(torch.stack, (x, x), dim=0).unbind(0)[0],
            s.call(torch.cat, [x]),
        )
    )


@edit
def filled_in_order(x: Any, s: Spot) -> Any:
    """A buffer whose positions are filled with those of the value, in whatever sequence."""
    if not s.value.dtype.is_floating_point:  # of masks nothing is known position by position
        return x.clone()
    return s.filled(x, range(s.size))


@edit
def weighed_with_something(x: Any, s: Spot) -> Any:
    if not s.value.dtype.is_floating_point:
        return x.clone()
    other = x.roll(1, s.dim)
    return s.random.choice(
        (
            lambda: s.call(torch.add, x, other, alpha=0),
            lambda: s.call(torch.lerp, other, x, 1.0),
            lambda: x + other * 0,
            lambda: (other - other) + x,
        )
    )()


@edit
def unused_writes(x: Any, s: Spot) -> Any:
    """A copy of it is written into, and nobody looks."""
    y = x.clone()
    y.zero_()
    s.put(x.flip(s.dim), slice(None), y)


@edit
def unused_mean_of_a_shift(x: Any, s: Spot) -> Any:
    """A comparison of tokens with their neighbours makes them no others."""
    if not s.value.dtype.is_floating_point:
        return None
    return x + (x - x.roll(1, s.dim)).mean() * 0 if s.random.random() < 0.5 else None


# Other spellings of one node.

_NAMES = "transpose permute flatten reshape unsqueeze squeeze chunk split narrow unflatten unbind"
_FUNCTIONS = {name: getattr(torch, name) for name in _NAMES.split()}
_NAMED = {operator.add: torch.add, operator.mul: torch.mul, operator.sub: torch.sub, operator.lt: torch.lt}
_METHODS = {operator.and_: "__and__", operator.truediv: "true_divide"}


def respell(node: Node) -> bool:
    """Another spelling of the same call; False where none is known."""
    target, first = node.target, node.args[0] if node.args else None
    if node.op == "call_method" and target in _FUNCTIONS and not (target == "split" and node.kwargs):
        sizes = node.args[1:]
        if target in ("permute", "reshape") and sizes and not isinstance(sizes[0], (tuple, list)):
            sizes = (tuple(sizes),)
        node.op, node.target, node.args = "call_function", _FUNCTIONS[str(target)], (first, *sizes)
        return True
    if target is torch.cat:
        node.target = torch.concatenate if len(node.args) == 2 else torch.concat
        return True
    if not isinstance(first, Node) or not isinstance(first.meta.get("example_value"), Tensor):
        return False
    if target in _NAMED and len(node.args) == 2:
        node.target, node.args, node.kwargs = _NAMED[target], (), {"input": first, "other": node.args[1]}
        return True
    if target in _METHODS:
        node.op, node.target = "call_method", _METHODS[target]
        return True
    return False
