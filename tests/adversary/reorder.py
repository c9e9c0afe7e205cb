"""Edits that bring the positions of a dimension into another order, or mix whose they are.

One whose name ends in _ writes into the value itself; the others make a new one that is used instead.
"""

from __future__ import annotations

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
    if s.size in s.plan.grid:
        raise ValueError("frames, rows or cols that are moved along by one are the raster of a video still")
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
def chosen_by_method(x: Any, s: Spot) -> Any:
    """x.where(condition, y), whose arguments stand in another order than torch.where's."""
    shape = [1] * len(s.shape)
    shape[s.dim] = s.size
    first = (s.call(torch.arange, s.size) >= 0).view(shape)
    return s.call(torch.Tensor.where, x.flip(s.dim), first, x)


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


@edit
def weighed_with_nothing(x: Any, s: Spot) -> Any:
    y = x.flip(s.dim)
    return s.random.choice(
        (
            lambda: s.call(torch.add, y, x, alpha=0),
            lambda: y.sub(x, alpha=0),
            lambda: y.add_(x, alpha=0),
            lambda: s.call(torch.lerp, x, y, 1),
            lambda: y.lerp(x, 0.0),
            lambda: x * 0 + y,
        )
    )()
