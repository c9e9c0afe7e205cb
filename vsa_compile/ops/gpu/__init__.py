"""GPU kernels: Triton templates that Inductor renders, with our epilogues fused in.

    attend, backward, selection   what a leaf operator launches: templates, inputs, constants, sizes
    graph, lowering   under Inductor: kernels as graph nodes; registration of the lowerings
    launch, eager, render   without Inductor: kernels on tensors; the operators; rendering as plain Triton

Importing this loads neither triton nor Inductor; `register` loads both, right before a compilation, and
`eager` loads triton at its first call.
"""

from __future__ import annotations

import functools
import logging
import threading

from . import eager  # noqa: F401 - its kernels register themselves

_log = logging.getLogger("vsa_compile.gpu")


_registering = threading.Lock()  # Inductor refuses two templates of one name


def register() -> bool:
    """Teach Inductor our leaf operators. Call before every compilation; only the first call costs time.

    Returns False, after one warning, if this torch's template interface is not what we know: the operators
    then run as they do in eager mode, the same kernels with nothing fused into them.
    """
    with _registering:
        return _register()


@functools.cache
def _register() -> bool:
    try:
        from .lowering import register_leaves

        register_leaves()
    except Exception:
        _log.warning(
            "Inductor's template interface of this torch is unknown to vsa_compile: the sparse kernels "
            "run as plain Triton kernels, as in eager mode, with nothing fused into them. Please report the "
            "torch version and this trace.",
            exc_info=True,
        )
        return False
    return True


__all__ = ["register"]
