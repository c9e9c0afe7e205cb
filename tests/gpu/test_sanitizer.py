"""No kernel reads or writes outside of its tensors, nor races: the small cases under compute-sanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from attend_cases import needs_gpu

from gpu import small_cases

TESTS = Path(__file__).parents[1]
SANITIZER = shutil.which("compute-sanitizer")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.skipif(SANITIZER is None, reason="needs compute-sanitizer, of the CUDA toolkit")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_the_small_cases_are_clean(tool: str):
    # Every tensor in an allocation of its own: else a stray access lands in the allocator's next block.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [
        str(SANITIZER),
        "--tool",
        tool,
        "--error-exitcode",
        "1",
        "--target-processes",
        "application-only",
    ]
    done = subprocess.run(
        [*command, sys.executable, "-m", "gpu.small_cases"], cwd=TESTS, env=environment, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    assert done.stdout.count("ran seed") == small_cases.PROGRAMS


def test_the_small_cases_run_on_cpu(capsys):
    small_cases.main("cpu")
    assert capsys.readouterr().out.count("ran seed") == small_cases.PROGRAMS
