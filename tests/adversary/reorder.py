"""Edits that bring the positions of a dimension into another order, or mix whose they are.

One whose name ends in _ writes into the value itself; the others make a new one that is used instead.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F

from .sketch import Edit, Spot

EDITS: dict[str, Edit] = {}


def edit(function: Edit) -> Edit:
    EDITS[function.__name__] = function
    return function


# New values.


@edit
def indexed(x: Any, s: Spot) -> Any:
    return x[s.at(s.order())]


@edit
def index_selected(x: Any, s: Spot) -> Any:
    return s.call(torch.index_select, input=x, dim=s.dim, index=s.order())


@edit
def gathered(x: Any, s: Spot) -> Any:
    return x.gather(s.dim, s.spread(s.order()))


@edit
def taken_along(x: Any, s: Spot) -> Any:
    return s.call(torch.take_along_dim, x, s.spread(s.order()), s.dim)


@edit
def rolled(x: Any, s: Spot) -> Any:
    return s.call(torch.roll, x, shifts=s.random.randrange(1, s.size), dims=s.dim)


@edit
def flipped(x: Any, s: Spot) -> Any:
    return x.flip(s.dim)


@edit
def sorted_by_value(x: Any, s: Spot) -> Any:
    return s.call(torch.sort, x, s.dim)[0]


@edit
def argsorted(x: Any, s: Spot) -> Any:
    rows = x.abs().movedim(s.dim, 0).flatten(1) if len(s.shape) > 1 else x.abs()[:, None]
    return x.index_select(s.dim, rows.sum(1).argsort())


@edit
def cut_and_swapped(x: Any, s: Spot) -> Any:
    k = s.random.randrange(1, s.size)
    return s.call(torch.cat, [x.narrow(s.dim, k, s.size - k), x.narrow(s.dim, 0, k)], dim=s.dim)


@edit
def split_and_swapped(x: Any, s: Spot) -> Any:
    k = s.random.randrange(1, s.size)
    parts = x.split([k, s.size - k], dim=s.dim)
    return s.call(torch.cat, (parts[1], parts[0]), s.dim)


@edit
def padded_and_cut_askew(x: Any, s: Spot) -> Any:
    pads = [0, 0] * (len(s.shape) - 1 - s.dim) + [1, 1]
    return s.call(F.pad, x, pads).narrow(s.dim, s.random.choice((0, 2)), s.size)


@edit
def repeated_and_cut(x: Any, s: Spot) -> Any:
    times = [1] * len(s.shape)
    times[s.dim] = 2
    return x.repeat(times).narrow(s.dim, s.random.randrange(1, s.size), s.size)


@edit
def fft_shifted(x: Any, s: Spot) -> Any:
    return s.call(torch.fft.fftshift, x, dim=s.dim)


@edit
def permuted_by_product(x: Any, s: Spot) -> Any:
    """A permutation matrix from the left."""
    matrix = s.call(torch.eye, s.size, dtype=s.value.dtype).index_select(0, s.order())
    return (matrix @ x.movedim(s.dim, -2)).movedim(-2, s.dim) if len(s.shape) > 1 else matrix @ x


@edit
def permuted_by_einsum(x: Any, s: Spot) -> Any:
    matrix = s.call(torch.eye, s.size, dtype=s.value.dtype).flip(0)
    names = "abcdefgh"[: len(s.shape)]
    result = names.replace(names[s.dim], "z")
    return s.call(torch.einsum, f"{names},z{names[s.dim]}->{result}", x, matrix)


@edit
def memory_read_otherwise(x: Any, s: Spot) -> Any:
    """view where transpose is meant."""
    if len(s.shape) < 2:
        return x.flip(0)
    other = (s.dim + 1) % len(s.shape)
    shape = list(s.shape)
    shape[s.dim], shape[other] = shape[other], shape[s.dim]
    return x.reshape(shape).transpose(s.dim, other)


@edit
def grid_transposed(x: Any, s: Spot) -> Any:
    """Raster tokens in the order of other axes."""
    if s.size != s.plan.tokens:
        return x.flip(s.dim)
    frames, rows, cols = s.plan.grid
    grid = x.unflatten(s.dim, s.plan.grid)
    a, b = s.random.choice(((0, 1), (0, 2), (1, 2)))
    swapped = grid.transpose(s.dim + a, s.dim + b)
    if s.random.random() < 0.5:
        return swapped.flatten(s.dim, s.dim + 2)
    return swapped.reshape(*s.shape[: s.dim], frames * rows * cols, *s.shape[s.dim + 1 :])


@edit
def frames_turned(x: Any, s: Spot) -> Any:
    """One axis of the grid the other way round."""
    if s.size != s.plan.tokens:
        return x.roll(1, s.dim)
    grid = x.unflatten(s.dim, s.plan.grid)
    return grid.flip(s.dim + s.random.randrange(3)).flatten(s.dim, s.dim + 2)


@edit
def in_boxes(x: Any, s: Spot) -> Any:
    frames, rows, cols = s.plan.grid
    if s.size != s.plan.tokens or cols % 2:
        return x.flip(s.dim)
    boxes = x.unflatten(s.dim, (frames * rows, 2, cols // 2))
    return boxes.transpose(s.dim, s.dim + 1).flatten(s.dim, s.dim + 2)


@edit
def channels_shuffled(x: Any, s: Spot) -> Any:
    groups = next((g for g in range(2, s.size) if s.size % g == 0), 1)
    if len(s.shape) < 3:
        return x.flip(s.dim)
    return s.call(F.channel_shuffle, x.transpose(1, s.dim), groups).transpose(1, s.dim)


@edit
def chosen_by_where(x: Any, s: Spot) -> Any:
    """Every second position is another's."""
    shape = [1] * len(s.shape)
    shape[s.dim] = s.size
    second = (s.call(torch.arange, s.size) % 2 == 0).view(shape)
    return s.call(torch.where, second, x, x.flip(s.dim))


@edit
def stacked_backwards(x: Any, s: Spot) -> Any:
    parts = x.unbind(s.dim)
    return s.call(torch.stack, [parts[i] for i in reversed(range(s.size))], dim=s.dim)


@edit
def strided_anew(x: Any, s: Spot) -> Any:
    """as_strided of a copy whose two dimensions change places in memory."""
    if len(s.shape) < 2:
        return x.flip(0)
    other = (s.dim + 1) % len(s.shape)
    shape = list(s.shape)
    shape[s.dim], shape[other] = shape[other], shape[s.dim]
    strides = list(torch.empty(shape, device="meta").stride())
    strides[s.dim], strides[other] = strides[other], strides[s.dim]
    return s.call(torch.as_strided, x.contiguous(), s.shape, strides)


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


@edit
def set_through_a_view(x: Any, s: Spot) -> Any:
    y = x.clone()
    view = s.random.choice((lambda: y.movedim(s.dim, 0), lambda: y[s.at(slice(None))], lambda: y.detach()))()
    view.copy_(x.movedim(s.dim, 0).flip(0) if view.node.target == "movedim" else x.flip(s.dim))
    return y


@edit
def filled_by_position(x: Any, s: Spot) -> Any:
    """A buffer whose positions are filled one by one, backwards."""
    y = s.like()
    for i in range(s.size):
        y.select(s.dim, i).copy_(x.select(s.dim, s.size - 1 - i))
    return y


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
def masked_scatters_(x: Any, s: Spot) -> None:
    x.masked_scatter_(s.call(torch.ones, s.shape, dtype=torch.bool), x.flip(s.dim))


@edit
def puts_(x: Any, s: Spot) -> None:
    x.put_(s.call(torch.arange, s.value.numel()), x.flip(s.dim).reshape(-1))


@edit
def writes_by_aten_(x: Any, s: Spot) -> None:
    s.call(torch.ops.aten.copy_.default, x, x.flip(s.dim))
