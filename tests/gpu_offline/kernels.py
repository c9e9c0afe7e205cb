"""Loads a kernel of a rendered program as the bare function under Inductor's decorators."""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Kernel:
    """function: the triton.jit function. options: what Inductor's decorator was given.

    A kernel of a triton_op has its constants as further arguments, which a program does not pass.
    """

    function: Any
    options: dict[str, Any]

    @property
    def constants(self) -> dict[str, Any]:
        names = self.options.get("inductor_meta", {}).get("declared_constexpr_names", ())
        return {name: self.options["triton_meta"]["constants"][name] for name in names}


def load_kernel(name: str, source: str) -> Kernel:
    """Import the module of a kernel of ours, of a template or a triton_op; any other kernel is an error."""
    from torch._inductor.runtime import triton_helpers, triton_heuristics

    found: list[Kernel] = []

    def decorator(**options: Any) -> Any:
        def keep(function: Any) -> Any:
            found.append(Kernel(function, options))
            return function

        return keep

    # Triton reads a kernel's text from its file, so there must be one.
    path = Path(tempfile.mkdtemp()) / f"{name}_{hashlib.sha256(source.encode()).hexdigest()[:8]}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    with (
        mock.patch.object(triton_heuristics, "template", decorator),
        mock.patch.object(triton_heuristics, "user_autotune", decorator),
        mock.patch.object(triton_helpers, "set_driver_to_gpu"),
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    if len(found) != 1:
        raise AssertionError(f"{name} is not one kernel of ours; the program copies something:\n{source}")
    return found[0]
