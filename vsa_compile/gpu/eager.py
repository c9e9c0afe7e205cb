"""The leaf operators on GPUs where Inductor lowers nothing: plain Triton kernels, else chunked ATen.

That is: eager calls, and compiled ones where Inductor's template interface is unknown or a template fails.
Each leaf's kernels are one torch.library.triton_op, made by the first call: making it loads triton.
Imported by gpu; imports aten, ops, launch and the three lowerings.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from .. import aten
from ..ops import consistent
from . import attend, backward, launch, selection

_log = logging.getLogger("vsa_compile.gpu")


# --- The kernels of a leaf, with its schema -------------------------------------------------------


def _select(
    scores: Tensor, at_most: int, threshold: Tensor | None = None, count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return _launched(selection, scores, at_most, threshold, count)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, tiles: Tensor, counts: Tensor, grid: Sequence[int], tile: Sequence[int],
    q_start: int, kv_start: int, key_padding: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _launched(attend, q, k, v, tiles, counts, grid, tile, q_start, kv_start, key_padding, scale)


def _attend_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tiles: Tensor,
    counts: Tensor, grid: Sequence[int], tile: Sequence[int], q_start: int, kv_start: int,
    key_padding: Tensor | None, scale: float, witness: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _launched(
        backward, grad_out, q, k, v, out, lse, tiles, counts, grid, tile, q_start, kv_start, key_padding,
        scale, witness,
    )  # fmt: skip


def _launched(lowering: Any, *arguments: Any) -> tuple[Tensor, ...]:
    made = lowering.lower(launch, *launch.values(arguments))
    return tuple(x.tensor for x in made)


_LEAVES = {
    "select": (_select, selection, aten.select),
    "attend": (_attend, attend, aten.attend),
    "attend_backward": (_attend_backward, backward, aten.attend_backward),
}


@functools.cache
def operator(name: str) -> Callable:
    """vsa::triton_<name>: the kernels of the leaf `name`, without queries that are packed.

    torch.compile and AOTInductor look into it and see the kernels. Torch (2.13) believes that these write a
    selection's scores and a backward's lists, for its analysis follows no result of a function that a kernel
    calls: where they are inputs of a graph, it becomes one that writes its inputs.
    Raises ImportError without triton.
    """
    import triton  # noqa: F401 - torch defines the operator without it too, and fails at its first call

    kernels, _, _ = _LEAVES[name]
    return torch.library.triton_op(f"vsa::triton_{name}", kernels, mutates_args=())


# --- The leaf -------------------------------------------------------------------------------------


def run(name: str, *arguments: Any) -> Any:
    """The leaf `name` on tensors of a GPU: by its Triton kernels where they serve, else by chunked ATen."""
    _, lowering, chunked = _LEAVES[name]
    reason = _mismatch(name, arguments) or lowering.unsupported(launch, *launch.values(arguments))
    if reason is not None:
        _say_once(name, reason)
    elif name not in _broken:
        try:
            with torch.accelerator.device_index(arguments[0].device.index):
                return operator(name)(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            _broken.add(name)
            _log.warning(
                "the Triton kernels of vsa::%s do not run here: from now on it runs through chunked ATen, "
                "which is slower. Please report the versions of torch and triton and this trace.",
                name, exc_info=True,
            )  # fmt: skip
    return chunked(*arguments)


_broken: set[str] = set()  # leaves whose kernels failed in this process; another try would cost a compilation


def _mismatch(name: str, arguments: tuple) -> str | None:
    """What does not fit together. Kernels follow pointers; ATen answers a wrong shape with a message."""
    if name == "select":
        scores, at_most, threshold, count = (*arguments, None, None)[:4]
        fits = scores.numel() > 0 and 1 <= at_most <= scores.shape[-1]
        fits = fits and (threshold is None or threshold.shape == scores.shape[:-1])
        fits = fits and (count is None or count.numel() == 1)
    elif name == "attend":
        fits = consistent(*arguments)
    else:
        grad_out, q, k, v, out, lse, *rest = arguments
        token_major = torch.Size((q.shape[0], q.shape[2], q.shape[1], q.shape[3]))
        fits = grad_out.shape == out.shape == token_major and lse.shape == q.shape[:3]
        fits = fits and lse.dtype == torch.float32 and out.dtype == q.dtype
        fits = fits and consistent(q, k, v, *rest[:8], *rest[9:])
    together = len({x.device for x in arguments if isinstance(x, Tensor)}) == 1
    return (
        None if fits and together else "its tensors are empty, do not fit together or are on several devices"
    )


@functools.cache
def _say_once(name: str, reason: str) -> None:
    _log.info("vsa::%s runs through chunked ATen: %s", name, reason)


_KERNELS = Library("vsa", "IMPL")
for _name in _LEAVES:
    for _key in ("CUDA", "XPU"):
        _KERNELS.impl(_name, functools.partial(run, _name), _key)
