"""The GPU kernels of vsa_compile::attend_backward, without a GPU. Machine code: test_attend_template.py."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from gpu_offline.cases import Case
from gpu_offline.program import Program, kind_of
from gpu_offline.tables import BACKWARD

from vsa_compile.ops import gpu

pytest_plugins = ["gpu_offline.fixtures"]

BY_NAME = {case.name: case for case in BACKWARD}
each_case = pytest.mark.parametrize("case", BACKWARD, ids=lambda case: case.name)


def test_on_cpu_the_operator_keeps_its_eager_kernel():
    assert gpu.register()
    function, integers, tensors = BY_NAME["backward_text_queries_alone"].call()
    with torch.no_grad():
        outputs = torch.compile(function, fullgraph=True)(*integers, *tensors)
        assert all(map(torch.equal, outputs, function(*integers, *tensors)))


@each_case
def test_a_call_is_four_kernels_without_atomics_and_nothing_else(case: Case, finished: Path):
    program = Program.load(finished / f"{case.name}.json")
    kinds = [kind_of(source) for source in program.template_kernels.values()]
    assert sorted(kinds) == ["attend_dkdv", "attend_dq", "rank_columns", "transpose_lists"]
    assert len(program.kernels) == 4
    assert "extern_kernels" not in program.calls
    assert "torch.ops" not in program.calls
    assert not re.search(r"\batomic_\w+\(", program.source)


@each_case
def test_no_buffer_has_a_row_and_a_column_for_every_tile(case: Case, finished: Path):
    """Delta, the two further gradients and the lists, which are as long as those of the forward."""
    program = Program.load(finished / f"{case.name}.json")
    buffers = re.findall(r"= empty_strided_cuda\((.*)\)", program.calls)
    assert len(buffers) == 7, "delta, starts, columns, order, and three gradients"


def test_what_the_templates_do_not_serve_runs_eagerly(finished: Path):
    program = Program.load(finished / "backward_fp64.json")
    assert "torch.ops.vsa_compile.attend_backward.default(" in program.calls
    assert not program.kernels
