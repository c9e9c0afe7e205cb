"""Fixtures of the template tests: what was rendered, interpreted and compiled, once for all test files.

Two chains run side by side, which is what two cores can do: cases are rendered and interpreted, and what
has golden machine code is rendered and compiled: the first few kernels; `make slow` compiles the others.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from once import shared_folder

from gpu_offline.offline import Build, load_builds
from gpu_offline.steps import run_once


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all results; the same one for all xdist workers."""
    folder = shared_folder(tmp_path_factory.getbasetemp(), "gpu_offline")

    def interpret() -> None:
        run_once(folder, "rendering", "cases")
        run_once(folder, "interpreter", TRITON_INTERPRET="1")

    with ThreadPoolExecutor(2) as pool:
        for chain in [pool.submit(interpret), pool.submit(_compile_golden, folder, "first")]:
            chain.result()
    return folder


def _compile_golden(folder: Path, group: str) -> dict[tuple[str, str, str], Build]:
    run_once(folder, "rendering", "golden", group)
    run_once(folder, "offline", group)
    return load_builds(folder, f"machine_code_{group}.json")


@pytest.fixture(scope="session")
def outcome(finished: Path) -> Callable:
    """Name of a case -> what its interpreted program returned."""
    return lambda name: torch.load(finished / f"{name}.pt")


@pytest.fixture(scope="session")
def faulty_outcome(finished: Path, outcome: Callable) -> Callable:
    """As `outcome`, of faults; `make slow` alone interprets them, which takes minutes."""
    run_once(finished, "interpreter", "faults", TRITON_INTERPRET="1")
    return outcome


@pytest.fixture(scope="session")
def builds(finished: Path) -> Callable[[str], dict[tuple[str, str, str], Build]]:
    """Group of GOLDEN -> what its kernels compiled to."""
    return lambda group: _compile_golden(finished, group)
