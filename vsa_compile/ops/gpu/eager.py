"""The leaf operators on GPUs where Inductor lowers nothing: plain Triton kernels, else chunked ATen.

That is: eager calls, and compiled ones where Inductor's template interface is unknown or a template fails.
Each leaf's kernels are one torch.library.triton_op, made by the first call: making it loads triton.
Imported by gpu; imports aten, ops, launch and the three lowerings.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library

from ...errors import no_triton
from .. import aten
from ..schema import consistent
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
    q_grid: Sequence[int] | None = None, q_tile: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _launched(
        attend, q, k, v, tiles, counts, grid, tile, q_start, kv_start, key_padding, scale, q_grid, q_tile
    )


def _attend_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, tiles: Tensor,
    counts: Tensor, grid: Sequence[int], tile: Sequence[int], q_start: int, kv_start: int,
    key_padding: Tensor | None, scale: float, witness: Tensor, q_grid: Sequence[int] | None = None,
    q_tile: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _launched(
        backward, grad_out, q, k, v, out, lse, tiles, counts, grid, tile, q_start, kv_start, key_padding,
        scale, witness, q_grid, q_tile,
    )  # fmt: skip


def _launched(lowering: Any, *arguments: Any) -> Any:
    return tuple(x.tensor for x in lowering.lower(launch, *launch.values(arguments)))


# --- What fits together: kernels follow pointers, where ATen answers a wrong shape with a message ------


def _select_fits(
    scores: Tensor, at_most: int, threshold: Tensor | None = None, count: Tensor | None = None
) -> bool:
    return (
        scores.numel() > 0
        and 1 <= at_most <= scores.shape[-1]
        and (threshold is None or threshold.shape == scores.shape[:-1])
        and (count is None or count.numel() == 1)
    )


def _backward_fits(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any
) -> bool:
    batch, heads, tokens, width = q.shape
    return (
        grad_out.shape == out.shape == (batch, tokens, heads, width)
        and out.dtype == q.dtype
        and lse.shape == q.shape[:3]
        and lse.dtype == torch.float32
        and consistent(q, k, v, *rest[:8], *rest[9:])  # without the witness
    )


# --- The leaf -----------------------------------------------------------------------------------------


class Leaf(NamedTuple):
    """A leaf operator: its kernels as a function with its schema, their lowering, what runs instead of them,
    and whether arguments fit together."""

    kernels: Callable
    lowering: Any
    chunked: Callable
    fits: Callable[..., bool]


LEAVES = {
    "select": Leaf(_select, selection, aten.select, _select_fits),
    "attend": Leaf(_attend, attend, aten.attend, consistent),
    "attend_backward": Leaf(_attend_backward, backward, aten.attend_backward, _backward_fits),
}


@functools.cache
def operator(name: str) -> Callable:
    """vsa_compile::triton_<name>: the kernels of the leaf `name`.

    torch.compile and AOTInductor look into it and see the kernels. Torch (2.13) believes that these write a
    selection's scores and a backward's lists, for its analysis follows no result of a function that a kernel
    calls: where they are inputs of a graph, it becomes one that writes its inputs.
    Raises ImportError without triton.
    """
    import triton  # noqa: F401 - torch defines the operator without it too, and fails at its first call

    return torch.library.triton_op(f"vsa_compile::triton_{name}", LEAVES[name].kernels, mutates_args=())


def run(name: str, *arguments: Any) -> Any:
    """The leaf `name` on tensors of a GPU: by its Triton kernels where they serve, else by chunked ATen."""
    reason = _unsupported(LEAVES[name], arguments)
    if reason is not None:
        _say_once(name, reason)
    elif name not in _broken:
        try:
            with torch.accelerator.device_index(arguments[0].device.index):
                return operator(name)(*arguments)
        except torch.OutOfMemoryError:
            raise
        except ModuleNotFoundError as error:
            _broken.add(name)
            _log.warning(
                "vsa_compile::%s runs through chunked ATen, which is slower (%s). %s",
                name,
                error,
                no_triton(),
            )
        except Exception:
            _broken.add(name)
            _log.warning(
                "the Triton kernels of vsa_compile::%s do not run here: from now on it runs through chunked "
                "ATen, which is slower. Please report the versions of torch and triton and this trace.",
                name, exc_info=True,
            )  # fmt: skip
    return LEAVES[name].chunked(*arguments)


_broken: set[str] = set()  # leaves whose kernels failed in this process; another try would cost a compilation


def _unsupported(leaf: Leaf, arguments: tuple) -> str | None:
    """Why the kernels cannot serve this call; None if they can."""
    if len({x.device for x in arguments if isinstance(x, Tensor)}) > 1:
        return "its tensors are on several devices"
    if not leaf.fits(*arguments):
        return "its tensors are empty or do not fit together"
    return leaf.lowering.unsupported(launch, *launch.values(arguments))


@functools.cache
def _say_once(name: str, reason: str) -> None:
    _log.info("vsa_compile::%s runs through chunked ATen: %s", name, reason)


_KERNELS = Library("vsa_compile", "IMPL")
for _name in LEAVES:
    for _key in ("CUDA", "XPU"):
        _KERNELS.impl(_name, functools.partial(run, _name), _key)
