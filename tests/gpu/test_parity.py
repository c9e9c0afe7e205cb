"""The kernels of the GPU against the specification, by the rules of compare.py, in 10,000 cases."""

import pytest
import torch
from attend_cases import LAYOUTS, needs_gpu, through_autograd
from attend_judge import assert_right

from gpu.generator import CASES, DTYPES, PROGRAMS, Program, call, program
from gpu.small_cases import smallest
from vsa_compile import vsa
from vsa_compile.tools.bench.log import heard

PROGRAMS_DRAWN = [program(number) for number in range(PROGRAMS)]
# A case of each of these runs without a GPU: every dtype with every layout.
SHARE = PROGRAMS_DRAWN[: len(DTYPES) * len(LAYOUTS)]


def judge(drawn: Program, number: int, attend, device: str) -> None:
    case = drawn.case(number)
    results = through_autograd(call(attend), drawn.on(device, case))
    try:
        assert_right(case, {name: x.cpu() for name, x in results.items()})
    except AssertionError as error:
        raise AssertionError(f"program({drawn.number}).case({number}), {case!r}: {error}") from error


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("drawn", PROGRAMS_DRAWN, ids=str)
def test_the_templates_equal_the_specification(drawn: Program):
    with heard() as texts, torch._dynamo.config.patch(recompile_limit=64):
        attend = torch.compile(drawn.attend(), backend=vsa, fullgraph=True, dynamic=True)
        for number in range(CASES):
            judge(drawn, number, attend, "cuda")
    assert not texts, "another kernel than the templates ran"


@pytest.mark.parametrize("drawn", SHARE, ids=str)
def test_the_same_cases_on_cpu(drawn: Program):
    judge(drawn, smallest(drawn), drawn.attend(), "cpu")


def test_sizes_are_symbolic_so_that_the_cases_of_a_program_share_its_kernels():
    drawn, graphs = SHARE[0], []

    def count(module, _):
        graphs.append(module)
        return module.forward

    with torch._dynamo.config.patch(recompile_limit=64), torch.no_grad():
        attend = torch.compile(drawn.attend(), backend=count, fullgraph=True, dynamic=True)
        for number in range(12):
            case = drawn.case(number)
            call(attend)(case.q, case.k, case.v, *case.site)
    assert len(graphs) <= 4  # two sizes that happen to be equal at first are one symbol


@pytest.mark.quick
def test_every_axis_of_the_parity_suite_is_drawn():
    def drawn(name: str) -> set:
        return {getattr(one, name) for one in PROGRAMS_DRAWN}

    assert {(one.dtype, one.layout) for one in PROGRAMS_DRAWN} == {(d, x) for d in DTYPES for x in LAYOUTS}
    assert drawn("width") == {16, 32, 40, 64, 80, 96, 128, 256}
    assert drawn("text") == {"none", "before", "after", "both", "keys", "queries"}
    assert drawn("padding") == {0, 1, 2}
    assert drawn("ragged") == {True, False}
    assert drawn("flat") == {None, 0, 1, 2}
    assert len(drawn("tile")) == 6
    assert any(one.heads > one.kv_heads for one in PROGRAMS_DRAWN)
    assert len({str(one) for one in PROGRAMS_DRAWN}) == PROGRAMS


def test_a_case_is_the_same_every_time_and_keeps_its_layout():
    for drawn in SHARE[::3] + SHARE[1:2]:
        first, again = drawn.case(7), program(drawn.number).case(7)
        moved = drawn.on("cpu", first)
        for name in ("q", "k", "v", "tiles", "counts", "grad_out"):
            x = getattr(first, name)
            assert x.equal(getattr(again, name))
            assert x.equal(getattr(moved, name))
            assert name in ("tiles", "counts") or x.stride() == getattr(moved, name).stride()
