"""What the GPU kernels compute: rendered and interpreted without a GPU, and run where there is one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from gpu_offline.cases import Case
from gpu_offline.comparison import on_gpu, verdict
from gpu_offline.faults import CASE_FAULTS, FAULTS
from gpu_offline.program import Program
from gpu_offline.tables import ALL

pytest_plugins = ["gpu_offline.fixtures"]

BY_NAME = {case.name: case for case in ALL}
each_case = pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)


@each_case
def test_the_rendered_kernels_compute_what_the_reference_says(case: Case, outcome: Callable):
    assert verdict(case, outcome(case.name)) is None


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_has_its_place(name: str, finished: Path):
    """`make slow` puts it there."""
    FAULTS[name].put_into_program(Program.load(finished / f"{FAULTS[name].noticed_by}.json"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASE_FAULTS)
def test_a_seeded_fault_is_noticed(name: str, faulty_outcome: Callable):
    assert verdict(BY_NAME[CASE_FAULTS[name].noticed_by], faulty_outcome(name)) is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_case
def test_a_real_gpu_computes_what_the_reference_says_twice_alike(case: Case):
    assert verdict(case, on_gpu(case)) is None
