"""GPU kernels: Triton templates that Inductor renders, with our epilogues fused in.

Importing this loads neither triton nor Inductor; `register` does, right before a compilation.
May be imported by backend; imports ops, torch_compat, grid.
"""

from __future__ import annotations

import functools
import logging

_log = logging.getLogger(__name__)


@functools.cache
def register() -> bool:
    """Teach Inductor our leaf operators; call before every compilation, all calls but the first are free.

    False, after one warning, if this torch's template interface is not what we know: the operators
    then run through their eager implementation, which is correct and slower.
    """
    try:
        from .lowering import register_leaves

        register_leaves()
    except Exception:
        _log.warning(
            "Inductor's template interface of this torch is unknown to vsa_compile: the sparse kernels "
            "run through chunked ATen, which is slower. Please report the torch version and this trace.",
            exc_info=True,
        )
        return False
    return True


__all__ = ["register"]
