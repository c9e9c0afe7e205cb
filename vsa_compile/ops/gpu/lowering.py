"""Makes Inductor lower the leaf operators to templates on GPUs; everything else stays eager.

Imported by `gpu.register` only, for it needs Inductor.
May be imported by gpu; imports args, torch_compat and the three lowerings.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ... import torch_compat as compat
from ..args import AttendArgs, BackwardArgs, SelectArgs
from . import attend, backward, graph, selection
from .templates import Template

_log = logging.getLogger("vsa_compile.gpu")


class Leaf(NamedTuple):
    """How one operator is lowered; `unsupported` and `lower` take `graph` or `launch`, and its `kind` of
    arguments."""

    name: str
    kind: Any
    templates: tuple[Template, ...]
    unsupported: Callable[..., str | None]
    lower: Callable[..., Any]


LEAVES = tuple(
    Leaf(name, kind, module.TEMPLATES, module.unsupported, module.lower)
    for name, kind, module in (
        ("select", SelectArgs, selection),
        ("attend", AttendArgs, attend),
        ("attend_backward", BackwardArgs, backward),
    )
)


def register_leaves() -> None:
    """Make Inductor lower all leaves; raises, before it changes any, where its template interface differs."""
    for template in (template for leaf in LEAVES for template in leaf.templates):
        graph.inductor_template(template)
    for leaf in LEAVES:
        operator = getattr(torch.ops.vsa_compile, leaf.name).default
        eager = compat.eager_lowering(operator)
        compat.register_lowering(operator, functools.partial(lower, leaf, eager))


def lower(leaf: Leaf, eager: Callable, *arguments: Any, **more: Any) -> Any:
    """The results of the operator as Inductor IR: by templates where they serve, else eagerly.

    more: arguments with a default, by name. Inductor spells them out once it has compiled the operator
    without us.
    """
    if arguments[0].get_device().type not in ("cuda", "xpu"):
        return eager(*arguments, **more)
    args = leaf.kind.of(*arguments, **more)
    reason = leaf.unsupported(graph, args)
    if reason is None:
        try:
            return leaf.lower(graph, args)
        except Exception:
            _warn_once(leaf.name)
    else:
        _log.info("vsa_compile::%s runs through chunked ATen: %s", leaf.name, reason)
    return eager(*arguments, **more)


@functools.cache
def _warn_once(name: str) -> None:
    _log.warning(
        "the templates of vsa_compile::%s do not lower on this torch: it runs as plain Triton kernels, as in "
        "eager mode, with nothing fused into them", name, exc_info=True,
    )  # fmt: skip
