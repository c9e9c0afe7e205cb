"""The GPU kernel of vsa_compile::select, without a GPU. Machine code: test_attend_template.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from gpu_offline.faults import SELECT_FAULTS
from gpu_offline.program import Program, kind_of
from gpu_offline.selections import SELECTIONS, Selection

from vsa_compile.ops import gpu

pytest_plugins = ["gpu_offline.fixtures"]

BY_NAME = {case.name: case for case in SELECTIONS}
each_selection = pytest.mark.parametrize("case", SELECTIONS, ids=lambda case: case.name)


@each_selection
def test_the_rendered_kernel_selects_what_the_reference_says(case: Selection, outcome: Callable):
    assert case.verdict(outcome(case.name)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", SELECT_FAULTS)
def test_a_seeded_fault_is_noticed(name: str, faulty_outcome: Callable):
    assert BY_NAME[SELECT_FAULTS[name].noticed_by].verdict(faulty_outcome(name)) is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_selection
def test_a_real_gpu_selects_what_the_reference_says(case: Selection):
    assert gpu.register()
    function, integers, tensors = case.call()
    with torch.no_grad():
        compiled = torch.compile(function, fullgraph=True, dynamic=case.dynamic)
        outputs = compiled(*integers, *(x.cuda() for x in tensors))
    assert case.verdict([x.cpu() for x in outputs]) is None


@each_selection
def test_a_call_is_one_kernel_and_nothing_else(case: Selection, finished: Path):
    program = Program.load(finished / f"{case.name}.json")
    assert [kind_of(source) for source in program.kernels.values()] == ["select"]
    assert "extern_kernels" not in program.calls
    assert "torch.ops" not in program.calls
