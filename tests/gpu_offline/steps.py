"""Runs the harness's processes, each once for a whole test run, however many xdist workers want it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

_TESTS = Path(__file__).parents[1]
_PATIENCE_S = 600


def shared_folder(base: Path, name: str) -> Path:
    """A folder under pytest's base directory that is the same one for all xdist workers."""
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


def run_once(folder: Path, step: str, *arguments: str, **environment: str) -> None:
    """`python -m gpu_offline.STEP FOLDER arguments`, unless a process does or did; raises if it failed."""
    run = "_".join((step, *arguments))
    log = folder / f"{run}.log"
    try:
        (folder / f"{run}.lock").mkdir()
    except FileExistsError:
        _wait_for(log)
    else:
        unfinished = folder / f"{run}.unfinished"
        unfinished.write_text(_run(folder, step, arguments, environment))
        unfinished.rename(log)
    failure = log.read_text()
    if failure:
        raise AssertionError(f"gpu_offline.{step} failed:\n{failure}")


def _run(folder: Path, step: str, arguments: tuple[str, ...], environment: dict[str, str]) -> str:
    """What the process had to say if it failed, else ''. Its caches start empty and stay in the folder."""
    path = os.pathsep.join([str(_TESTS), str(_TESTS.parent)])
    caches = {"TRITON_CACHE_DIR": str(folder / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    done = subprocess.run(
        [sys.executable, "-m", f"gpu_offline.{step}", str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": path, **caches, **environment},
        capture_output=True,
        text=True,
    )
    return "" if done.returncode == 0 else f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {file.name} after {_PATIENCE_S} s")
        time.sleep(0.1)
