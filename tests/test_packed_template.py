"""The GPU kernels of queries that are a raster of their own, as BSA packs them, without a GPU."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")

from gpu_offline.cases import Case
from gpu_offline.comparison import on_gpu, verdict
from gpu_offline.faults import PACKED_FAULTS
from gpu_offline.tables import PACKED

pytest_plugins = ["gpu_offline.fixtures"]

BY_NAME = {case.name: case for case in PACKED}
each_case = pytest.mark.parametrize("case", PACKED, ids=lambda case: case.name)


@each_case
def test_the_rendered_kernels_compute_what_the_reference_says(case: Case, outcome: Callable):
    assert verdict(case, outcome(case.name)) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_case
def test_a_real_gpu_computes_what_the_reference_says(case: Case):
    assert verdict(case, on_gpu(case)) is None


@pytest.mark.parametrize("name", PACKED_FAULTS)
def test_a_seeded_fault_is_noticed(name: str, outcome: Callable):
    assert verdict(BY_NAME[PACKED_FAULTS[name].noticed_by], outcome(name)) is not None
