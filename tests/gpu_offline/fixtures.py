"""Fixtures of the template tests: what was rendered, interpreted and compiled, once for all test files.

Two chains run side by side, which is what two cores can do: cases are rendered and interpreted, and what
has golden machine code for Hopper is rendered and compiled. `make slow` compiles for the other targets.
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
        for chain in [pool.submit(interpret), pool.submit(_compile_golden, folder, "sm_90")]:
            chain.result()
    return folder


def _compile_golden(folder: Path, target: str) -> dict[tuple[str, str, str], Build]:
    run_once(folder, "rendering", "golden", target)
    run_once(folder, "offline", target)
    return load_builds(folder, f"machine_code_{target}.json")


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
    """Target -> what the kernels of GOLDEN for it compiled to."""
    return lambda target: _compile_golden(finished, target)
