"""Runs the harness's processes, each once for a whole test run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from once import once, uncovered

_TESTS = Path(__file__).parents[1]
_TRITON_ALONE = ("interpreter", "offline")  # they run what others rendered, and so nothing of the package


def run_once(folder: Path, step: str, *arguments: str, **environment: str) -> None:
    """`python -m gpu_offline.STEP FOLDER arguments`; raises AssertionError if it failed."""
    once(folder, "_".join((step, *arguments)), lambda: _run(folder, step, arguments, environment))


def _run(folder: Path, step: str, arguments: tuple[str, ...], environment: dict[str, str]) -> str:
    """What the process had to say if it failed, else ''. Its caches start empty and stay in the folder."""
    path = os.pathsep.join([str(_TESTS), str(_TESTS.parent)])
    caches = {"TRITON_CACHE_DIR": str(folder / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    done = subprocess.run(
        [sys.executable, "-m", f"gpu_offline.{step}", str(folder), *arguments],
        env=(uncovered() if step in _TRITON_ALONE else os.environ)
        | {"PYTHONPATH": path, **caches, **environment},
        capture_output=True,
        text=True,
    )
    return "" if done.returncode == 0 else f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
