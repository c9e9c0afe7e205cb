"""Edits that write positions of a dimension in another order, into a copy or into the value itself.

The name of one of the second kind ends in _: it writes some steps later.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

from .reorder import edit
from .sketch import Spot

# Copies that are written into.


@edit
def index_copied(x: Any, s: Spot) -> Any:
    y = x.clone()
    returned = y.index_copy_(s.dim, s.order(), x)
    return s.random.choice((y, returned))


@edit
def index_copied_functionally(x: Any, s: Spot) -> Any:
    return s.call(torch.index_copy, x, s.dim, s.order(), x)


@edit
def scattered(x: Any, s: Spot) -> Any:
    y = s.call(torch.zeros_like, x)
    returned = y.scatter_(s.dim, s.spread(s.order()), x)
    return s.random.choice((y, returned))


@edit
def scattered_functionally(x: Any, s: Spot) -> Any:
    return s.call(torch.scatter, x, dim=s.dim, index=s.spread(s.order()), src=x)


@edit
def index_added(x: Any, s: Spot) -> Any:
    y = s.call(torch.zeros_like, x)
    y.index_add_(s.dim, s.order(), x)
    return y


@edit
def index_put(x: Any, s: Spot) -> Any:
    y = x.clone()
    s.call(torch.Tensor.index_put_, y.movedim(s.dim, 0), (s.order(),), x.movedim(s.dim, 0))
    return y


@edit
def copied_over(x: Any, s: Spot) -> Any:
    y = x.clone()
    returned = y.copy_(x.flip(s.dim))
    return s.random.choice((y, returned))


@edit
def set_by_slice(x: Any, s: Spot) -> Any:
    y = x.clone()
    s.put(y, slice(None), x.roll(1, s.dim))
    return y


@edit
def set_by_index(x: Any, s: Spot) -> Any:
    y = s.call(torch.empty_like, x)
    s.put(y, s.at(s.order()), x)
    return y


@edit
def second_half_turned(x: Any, s: Spot) -> Any:
    y = x.clone()
    part = s.at(slice(1, None, 2) if s.random.random() < 0.5 else slice(s.size // 2, None))
    s.put(y, part, y[part].flip(s.dim))
    return y


def _beside(s: Spot) -> int | None:
    """Another dimension than the edited one, of several positions."""
    others = [dim for dim, size in enumerate(s.shape) if dim != s.dim and size > 1]
    return s.random.choice(others) if others else None


@edit
def set_at_places_of_another_dimension(x: Any, s: Spot) -> Any:
    """All of it is backwards, and an index says where each position of another dimension goes."""
    dim, y = _beside(s), s.call(torch.empty_like, x)
    if dim is None:
        return x.flip(s.dim)
    places = s.call(torch.arange, s.shape[dim]).flip(0)
    how = s.random.choice(("index_copy", "setitem"))
    if how == "index_copy":
        y.zero_()
        return y.index_copy_(dim, places, x.flip(s.dim))
    s.put(y, (slice(None),) * dim + (places,), x.flip(s.dim))
    return y


@edit
def set_beside_in_two_parts(x: Any, s: Spot) -> Any:
    """The first half of another dimension is backwards, the second is not."""
    dim, y = _beside(s), s.random.choice((lambda: s.call(torch.empty_like, x), x.clone))()
    if dim is None:
        return x.flip(s.dim)
    front = (slice(None),) * dim
    first, second = (*front, slice(None, s.shape[dim] // 2)), (*front, slice(s.shape[dim] // 2, None))
    s.put(y, first, x.flip(s.dim)[first])
    s.put(y, second, x[second])
    return y


@edit
def set_through_a_view(x: Any, s: Spot) -> Any:
    y = x.clone()
    view = s.random.choice((lambda: y.movedim(s.dim, 0), lambda: y[s.at(slice(None))], lambda: y.detach()))()
    view.copy_(x.movedim(s.dim, 0).flip(0) if view.node.target == "movedim" else x.flip(s.dim))
    return y


@edit
def filled_by_position(x: Any, s: Spot) -> Any:
    """A buffer whose positions are filled one by one, backwards or in any order."""
    order = list(range(s.size))[::-1]
    if s.random.random() < 0.5 and s.size > 2:
        s.random.shuffle(order)
    return s.filled(x, order)


@edit
def out_of_index_select(x: Any, s: Spot) -> Any:
    y = x.clone()
    s.call(torch.index_select, x, s.dim, s.order(), out=y)
    return y


@edit
def out_of_cat(x: Any, s: Spot) -> Any:
    y, k = x.clone(), s.random.randrange(1, s.size)
    s.call(torch.cat, [x.narrow(s.dim, k, s.size - k), x.narrow(s.dim, 0, k)], dim=s.dim, out=y)
    return y


@edit
def out_of_add(x: Any, s: Spot) -> Any:
    y = x.clone()
    returned = s.call(torch.add, x.flip(s.dim), 0, out=y)
    return s.random.choice((y, returned))


@edit
def out_through_an_alias(x: Any, s: Spot) -> Any:
    y = x.clone()
    s.call(torch.mul, x.flip(s.dim), 1, out=y[...])
    return y


# The value itself, later.


@edit
def copies_over_(x: Any, s: Spot) -> None:
    x.copy_(x.flip(s.dim))


@edit
def sets_(x: Any, s: Spot) -> None:
    s.put(x, slice(None), x.roll(1, s.dim))


@edit
def sets_ellipsis_(x: Any, s: Spot) -> None:
    s.put(x, ..., x[s.at(s.order())])


@edit
def turns_every_second_(x: Any, s: Spot) -> None:
    part = s.at(slice(1, None, 2))
    s.put(x, part, x[part].flip(s.dim))


@edit
def index_copies_(x: Any, s: Spot) -> None:
    x.index_copy_(s.dim, s.order(), x.clone())


@edit
def scatters_(x: Any, s: Spot) -> None:
    x.scatter_(s.dim, s.spread(s.order()), x.clone())


@edit
def writes_through_a_view_(x: Any, s: Spot) -> None:
    x.movedim(s.dim, 0).copy_(x.movedim(s.dim, 0).flip(0))


@edit
def writes_through_detach_(x: Any, s: Spot) -> None:
    x.detach().copy_(x.flip(s.dim))


@edit
def writes_out_(x: Any, s: Spot) -> None:
    s.call(torch.add, x.flip(s.dim), 0, out=x)


@edit
def selects_out_(x: Any, s: Spot) -> None:
    s.call(torch.index_select, x.clone(), s.dim, s.order(), out=x)


@edit
def copies_in_a_list_(x: Any, s: Spot) -> None:
    s.call(torch._foreach_copy_, [x], [x.flip(s.dim)])


@edit
def clears_and_adds_(x: Any, s: Spot) -> None:
    y = x.flip(s.dim)
    x.zero_()
    s.call(operator.iadd, x, y)


@edit
def erases_and_adds_(x: Any, s: Spot) -> None:
    """Nothing of it is left in what another is added to."""
    y = x.flip(s.dim)
    s.random.choice(
        (
            lambda: x.mul_(0),
            lambda: s.call(operator.imul, x, 0.0),
            lambda: x.mul_(s.call(torch.zeros, (1,), dtype=s.value.dtype)),
            lambda: x.sub_(x),
            lambda: x.masked_fill_(s.call(torch.ones, s.shape, dtype=torch.bool), 0),
        )
    )()
    x.add_(y)


@edit
def masked_scatters_(x: Any, s: Spot) -> None:
    x.masked_scatter_(s.call(torch.ones, s.shape, dtype=torch.bool), x.flip(s.dim))


@edit
def puts_(x: Any, s: Spot) -> None:
    x.put_(s.call(torch.arange, s.value.numel()), x.flip(s.dim).reshape(-1))


@edit
def writes_by_aten_(x: Any, s: Spot) -> None:
    s.call(torch.ops.aten.copy_.default, x, x.flip(s.dim))
