"""Does work once for a whole test run, however many xdist workers want what it leaves in a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

_PATIENCE_S = 600


def shared_folder(base: Path, name: str) -> Path:
    """A folder under pytest's base directory that is the same one for all xdist workers."""
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


def once(folder: Path, name: str, work: Callable[[], str]) -> None:
    """`work`, unless a process does or did it. It returns what went wrong, "" for nothing: that is raised."""
    log = folder / f"{name}.log"
    try:
        (folder / f"{name}.lock").mkdir()
    except FileExistsError:
        _wait_for(log)
    else:
        unfinished = folder / f"{name}.unfinished"
        unfinished.write_text(work())
        unfinished.rename(log)
    failure = log.read_text()
    if failure:
        raise AssertionError(f"{name} failed:\n{failure}")


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {file.name} after {_PATIENCE_S} s")
        time.sleep(0.1)


def uncovered(**changed: str) -> dict[str, str]:
    """An environment for processes whose coverage is not measured: that takes as long as what they do."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS_")}
    return kept | changed
