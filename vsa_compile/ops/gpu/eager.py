"""The leaf operators on GPUs where Inductor does not lower them: plain Triton kernels, else chunked ATen.

That is in eager calls, and in compiled ones if Inductor's template interface is unknown or a template fails.
The kernels of a leaf are one torch.library.triton_op, made at the first call, which loads triton.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library

from ...errors import no_triton
from .. import aten
from ..args import AttendArgs, BackwardArgs, SelectArgs, takes
from . import attend, backward, launch, selection
from .target import Lowering

_log = logging.getLogger("vsa_compile.gpu")


# --- The leaf -----------------------------------------------------------------------------------------


class Leaf(NamedTuple):
    """A leaf operator: its kind of arguments, the number of its results, the lowering to its kernels, and the
    fallback that runs instead of them."""

    kind: type[AttendArgs] | type[BackwardArgs] | type[SelectArgs]
    results: int
    lowering: Lowering
    chunked: Callable


LEAVES = {
    "select": Leaf(SelectArgs, 2, selection, aten.select),
    "attend": Leaf(AttendArgs, 3, attend, aten.attend),
    "attend_backward": Leaf(BackwardArgs, 3, backward, aten.attend_backward),
}


# Python annotations of the argument kinds: torch infers the schema of a triton_op from a signature.
_SPELLED = {
    "Tensor": Tensor,
    "Tensor?": Tensor | None,
    "SymInt": int,
    "SymInt[]": Sequence[int],
    "SymInt[]?": Sequence[int] | None,
    "float": float,
}


def _kernels(leaf: Leaf) -> Callable:
    """The kernels of a leaf as a function with the arguments of the leaf."""

    def launched(*arguments: Any, **more: Any) -> Any:
        args = launch.as_ir(leaf.kind.of(*arguments, **more))
        return tuple(x.tensor for x in leaf.lowering.lower(launch, args))

    Parameter = inspect.Parameter
    named = [
        Parameter(
            name, Parameter.POSITIONAL_OR_KEYWORD, annotation=_SPELLED[kind],
            default=Parameter.empty if default is MISSING else default,
        )
        for kind, name, default in leaf.kind.arguments()
    ]  # fmt: skip
    signature = inspect.Signature(named, return_annotation=tuple[(Tensor,) * leaf.results])
    launched.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    return launched


_making = threading.Lock()  # torch fails if two threads define one operator


def operator(name: str) -> Callable:
    """vsa_compile::triton_<name>; see `_operator`."""
    with _making:
        return _operator(name)


@functools.cache
def _operator(name: str) -> Callable:
    """vsa_compile::triton_<name>, the kernels of the leaf `name`; made at the first call.

    torch.compile and AOTInductor trace into it and see the kernels. torch (2.13) takes the scores of a
    selection and the lists of a backward for written, since its analysis follows no function that a kernel
    calls; a graph with such inputs counts as one that writes its inputs.
    Raises ImportError without triton.
    """
    import triton  # noqa: F401 - without it torch would define the operator and fail at its first call

    return torch.library.triton_op(f"vsa_compile::triton_{name}", _kernels(LEAVES[name]), mutates_args=())


def run(name: str, *arguments: Any, **more: Any) -> Any:
    """The leaf `name` on GPU tensors: its Triton kernels if they can serve the call, else chunked ATen."""
    return takes(LEAVES[name].kind, functools.partial(_run, name, arguments, more))(*arguments, **more)


def _run(name: str, arguments: tuple, more: dict[str, Any], args: Any) -> Any:
    reason = _unsupported(LEAVES[name], args)
    if reason is not None:
        _say_once(name, reason)
    elif name not in _broken:
        try:
            with torch.accelerator.device_index(args.device.index):
                return operator(name)(*arguments, **more)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            _broken.add(name)
            _warn(name, error)
    return LEAVES[name].chunked(args)


_broken: set[str] = set()  # leaves whose kernels failed in this process; retrying would compile again


def _warn(name: str, error: Exception) -> None:
    if isinstance(error, ModuleNotFoundError) and error.name == "triton":
        _log.warning("vsa_compile::%s runs through chunked ATen, which is slower. %s", name, no_triton())
        return
    _log.warning(
        "the Triton kernels of vsa_compile::%s do not run here: from now on it runs through chunked "
        "ATen, which is slower. Please report the versions of torch and triton and this trace.",
        name, exc_info=error,
    )  # fmt: skip


def _unsupported(leaf: Leaf, args: Any) -> str | None:
    """Why the kernels cannot serve this call; None if they can."""
    if args.empty:
        return "there is nothing to compute"
    return leaf.lowering.unsupported(launch, launch.as_ir(args))


@functools.cache
def _say_once(name: str, reason: str) -> None:
    _log.info("vsa_compile::%s runs through chunked ATen: %s", name, reason)


_KERNELS = Library("vsa_compile", "IMPL")
for _name in LEAVES:
    for _key in ("CUDA", "XPU"):
        _KERNELS.impl(_name, functools.partial(run, _name), _key)
