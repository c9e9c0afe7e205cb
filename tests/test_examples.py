"""The examples run, say what they found, and write plain text where there is no terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

EXAMPLES = Path(__file__).parent.parent / "examples"
SAID = {
    "quickstart.py": [
        "blocks.1.attn1  sparse  9x14x22",
        "2 of 4 attention calls sparse",
        "Relative difference to dense: 0.0",
    ],
    "own_method.py": [
        "vsa        moves the output of dense attention by 0.7",
        "own_frames moves the output of dense attention by 0.2",
    ],
    "demo.py --quick": [
        "blocks.0.attn1  sparse  9x14x22",
        "largest difference",
        "compile dense Inductor",
        'compile backend="vsa"',
        "1 of 2 attention calls, 9 of 72 tiles",
        "one step, loss",
    ],
}


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=pytest.mark.slow if c.startswith("demo") else ()) for c in SAID]
)
def test_example_says_what_it_found(command: str):
    """Compiles some dozens of C++ kernels: up to a minute, seconds where Inductor has them in its cache."""
    script, *flags = command.split()
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # conftest's choice
    run = subprocess.run(
        [sys.executable, EXAMPLES / script, *flags],
        capture_output=True, text=True, timeout=600, check=False, env=os.environ | threads,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    for line in SAID[command]:
        assert line in run.stdout
    assert not set("\r\033") & set(run.stdout)
