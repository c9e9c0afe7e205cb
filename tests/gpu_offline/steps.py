"""Runs the harness's processes, each once for a whole test run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from once import once, uncovered

_TESTS = Path(__file__).parents[1]
# Steps whose coverage is measured: it doubles their time, and the others run hardly a line that these do not.
_COVERED = ("rendering_golden_first", "plain_render")


def run_once(folder: Path, step: str, *arguments: str, **environment: str) -> None:
    """`python -m gpu_offline.STEP FOLDER arguments`; raises AssertionError if it failed."""
    name = "_".join((step, *arguments))
    covered = os.environ if name in _COVERED else uncovered()
    once(folder, name, lambda: _run(folder, [step, str(folder), *arguments], covered | environment))


def _run(folder: Path, command: list[str], environment: dict[str, str]) -> str:
    """What the process had to say if it failed, else ''. Its caches start empty and stay in the folder."""
    path = os.pathsep.join([str(_TESTS), str(_TESTS.parent)])
    caches = {"TRITON_CACHE_DIR": str(folder / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    done = subprocess.run(
        [sys.executable, "-m", f"gpu_offline.{command[0]}", *command[1:]],
        env=environment | {"PYTHONPATH": path, **caches},
        capture_output=True,
        text=True,
    )
    return "" if done.returncode == 0 else f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
