"""The target of a lowering without Inductor: plain Triton kernels run at once, on tensors.

`graph` offers the same functions on Inductor IR. A kernel runs in the first configuration of its row.
"""

from __future__ import annotations

import ast
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import wrap_triton

from ...grid import Size
from ...torch_compat import surely_true
from . import render
from .templates import Template

_OPTIONS = ("num_warps", "num_stages")  # of a configuration; its other entries are constants
_FARTHEST = 2**31 - 1  # the largest 32-bit offset


class TensorIR(NamedTuple):
    """A tensor with the methods of Inductor IR that lowerings use."""

    tensor: Tensor

    def get_size(self) -> torch.Size:
        return self.tensor.shape

    def get_dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def get_device(self) -> torch.device:
        return self.tensor.device


def as_ir(args: Any) -> Any:
    """The arguments of an operator (`args.AttendArgs` or the like), with tensors wrapped for a lowering."""
    return args.map(lambda x: TensorIR(x) if isinstance(x, Tensor) else x)


# --- The functions of a target --------------------------------------------------------------------


def template_buffer(template: Template, inputs: list[TensorIR], **facts: Any) -> TensorIR:
    """The contiguous output of a template, as in `torch_compat.template_buffer`, but without any timing.

    Raises ImportError without triton, and triton's own errors if it cannot compile the kernel.
    """
    ready = prepared(template, inputs, **facts)
    wrap_triton(render.load(ready.source))[ready.grid](**ready.arguments)
    return TensorIR(ready.arguments[render.OUTPUT])


def new_buffer(size: tuple, dtype: torch.dtype, device: torch.device) -> TensorIR:
    return TensorIR(torch.empty(size, dtype=dtype, device=device))


def shape_carrier(like: TensorIR, sizes: tuple) -> TensorIR:
    return TensorIR(like.tensor.as_strided(sizes, (0,) * len(sizes)))


def expanded(x: TensorIR, size: tuple) -> TensorIR:
    return TensorIR(x.tensor.expand(size))


def contiguous(x: TensorIR) -> TensorIR:
    return TensorIR(x.tensor.contiguous())


def is_static(size: Size) -> bool:
    return isinstance(size, int)


def static_size(size: Size) -> int:
    return int(size)


def ceil_div(size: Size, by: int) -> Size:
    return (size + by - 1) // by


def has_tensor_map(x: TensorIR) -> bool:
    """Never: kernels may make tensor maps only if the process has set an allocator for Triton, and that is
    not ours to set."""
    return False


def surely_equal(expression: Size, value: int) -> bool:
    return surely_true(expression == value)


# --- A launch -------------------------------------------------------------------------------------


class Launch(NamedTuple):
    """The launch of a kernel: kernel[grid](**arguments). Its output is one of the arguments."""

    source: render.Source
    grid: tuple
    arguments: dict[str, Any]


def prepared(
    template: Template,
    inputs: list[TensorIR],
    *,
    mutated: list[TensorIR],
    size: tuple,
    dtype: torch.dtype,
    device: torch.device,
    launch: tuple,
    constants: dict[str, object],
    configs: list[dict[str, int]],
    examples: object = None,
) -> Launch:
    """The launch for `template_buffer`, with the output allocated."""
    options = {name: configs[0][name] for name in _OPTIONS}
    blocks = {name: value for name, value in configs[0].items() if name not in options}
    constants = {name: _constant(x) for name, x in (constants | blocks).items()}
    tensors = [x.tensor for x in (*inputs, new_buffer(size, dtype, device))]
    wide = not all(surely_true(_reach(x) <= _FARTHEST) for x in tensors)
    source = _rendered(template, tuple(constants.items()), tuple(x.dim() for x in tensors[:-1]), wide)
    named = dict(zip((*source.inputs, render.OUTPUT), tensors, strict=True))
    numbers = {str(number): _measure(named, number) for number in source.numbers}
    grid = template.programs(*launch, meta=constants, cdiv=lambda a, b: (a + b - 1) // b)
    return Launch(source, grid, {**named, **numbers, **constants, **options})


# --- Arguments of a kernel ------------------------------------------------------------------------


@functools.cache
def _rendered(template: Template, constants: tuple, ranks: tuple[int, ...], wide: bool) -> render.Source:
    """Rendered once for all calls of one kind: rendering takes longer than a launch."""
    return render.render(template, dict(constants), ranks, wide)


def _constant(constant: object) -> object:
    """A constant as a kernel takes it; templates are given strings in quotes."""
    return ast.literal_eval(constant) if isinstance(constant, str) else constant


def _reach(x: Tensor) -> Size:
    """The largest offset of an element."""
    return sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))


def _measure(tensors: dict[str, Tensor], number: render.Number) -> Size:
    x = tensors[number.tensor]
    return x.shape[number.dim] if number.what == "size" else x.stride(number.dim)
