"""Makes Inductor lower the leaf operators to templates on GPUs; everything else stays eager.

Imported by `gpu.register` alone, since it needs Inductor.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from ... import torch_compat as compat
from . import graph
from .eager import LEAVES

_log = logging.getLogger("vsa_compile.gpu")


def register_leaves() -> None:
    """Register the lowerings of all leaves; raises, before any change, if the template interface differs."""
    for template in (template for leaf in LEAVES.values() for template in leaf.lowering.TEMPLATES):
        graph.inductor_template(template)
    for name in LEAVES:
        operator = getattr(torch.ops.vsa_compile, name).default
        eager = compat.eager_lowering(operator)
        compat.register_lowering(operator, functools.partial(lower, name, eager))


def lower(name: str, eager: Callable, *arguments: Any, **more: Any) -> Any:
    """The results of the operator as Inductor IR: from templates if they can serve it, else eagerly.

    more: arguments with a default, by name; Inductor passes them so after it has compiled the operator
    without us.
    """
    if arguments[0].get_device().type not in ("cuda", "xpu"):
        return eager(*arguments, **more)
    leaf = LEAVES[name]
    args = leaf.kind.of(*arguments, **more)
    reason = leaf.lowering.unsupported(graph, args)
    if reason is None:
        try:
            return leaf.lowering.lower(graph, args)
        except Exception:
            _warn_once(name)
    else:
        _log.info("vsa_compile::%s runs through chunked ATen: %s", name, reason)
    return eager(*arguments, **more)


@functools.cache
def _warn_once(name: str) -> None:
    _log.warning(
        "the templates of vsa_compile::%s do not lower on this torch: it runs as plain Triton kernels, as in "
        "eager mode, with nothing fused into them", name, exc_info=True,
    )  # fmt: skip
