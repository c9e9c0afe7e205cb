"""The ATen kernels' memory, and what torch.library asks of the operators. Their numbers: test_attend.py."""

from __future__ import annotations

import pytest
import torch
from attend_cases import Case, Kernel, make_case
from attend_judge import assert_right

from vsa_compile.grid import Grid, TileGrid
from vsa_compile.ops import aten, reference
from vsa_compile.ops.args import AttendArgs, BackwardArgs

pytestmark = pytest.mark.no_cover

EVERY_TERM = {"batch": 2, "kv_heads": 1, "before": 3, "after": 70, "padding": 2, "width": 20}


@pytest.fixture(autouse=True)
def _only_aten(monkeypatch):
    monkeypatch.setenv("VSA_COMPILE_CPU", "aten")


# --- Memory ---------------------------------------------------------------------------------------


def test_results_are_contiguous_by_token():
    case = make_case(2, **EVERY_TERM)
    out, lse, witness = torch.ops.vsa_compile.attend(*case.arguments())
    grads = torch.ops.vsa_compile.attend_backward(case.grad_out, out, lse, witness, *case.arguments())
    assert all(x.is_contiguous() for x in (out, lse, *grads))


@pytest.mark.parametrize("scratch", [40_000, 400_000])
def test_chunks_do_not_change_the_result(monkeypatch, scratch):
    case = make_case(3, dtype=torch.float64, **EVERY_TERM)
    monkeypatch.setattr(aten, "SCRATCH_BYTES", scratch)
    assert_right(case, Kernel("aten", torch.float64).run(case))


def test_scratch_is_bounded():
    """The gathered keys of all query tiles at once would take 8 times the bound."""
    case = make_case(4, heads=8, grid=(8, 16, 16), tile=(4, 4, 4), listed=16, width=64)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple) else (result,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.untyped_storage().nbytes())
            return result

    with pytest.MonkeyPatch.context() as patch, Watch():
        patch.setattr(aten, "SCRATCH_BYTES", 8 << 20)
        args = AttendArgs(*case.arguments())
        aten.attend_backward(BackwardArgs(case.grad_out, *aten.attend(args), args))
    gathered = case.counts.numel() * 16 * 64 * 64 * 4
    assert gathered >= 8 * (8 << 20)
    assert largest <= 8 << 20


# --- The operators' contract ----------------------------------------------------------------------


def small_case(dtype: torch.dtype) -> Case:
    return make_case(11, grid=(2, 3, 3), tile=(2, 2, 2), before=1, after=2, padding=1, width=16, dtype=dtype)


@pytest.mark.parametrize("kernel", ["aten", ""], ids=["aten", "cpp"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=["fp32", "bf16"]
)
def test_opcheck(monkeypatch, kernel, dtype):
    """Schemas, fakes, autograd registration and tracing with dynamic sizes, for each operator."""
    monkeypatch.setenv("VSA_COMPILE_CPU", kernel)
    case = small_case(dtype)
    leaves = [x.detach().clone().requires_grad_() for x in (case.q, case.k, case.v)]
    out, lse, witness = (x.detach() for x in torch.ops.vsa_compile.attend(*case.arguments()))
    grid, tile = list(case.grid), list(case.tile)
    site = (case.tiles, case.counts, grid, tile, *case.site[4:])
    plain = (case.q, case.k, case.v)
    # Some operators decompose: an autograd kernel of their own would hide their parts.
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    scores = torch.randn(2, 3, 7, 7)
    torch.library.opcheck(torch.ops.vsa_compile.select.default, (scores, 3))
    torch.library.opcheck(torch.ops.vsa_compile.select.default, (scores, 5, scores.mean(-1), torch.tensor(4)))
    torch.library.opcheck(torch.ops.vsa_compile.attend.default, (*leaves, *site))
    given = (case.grad_out, out, lse, witness, *plain, *site)
    torch.library.opcheck(torch.ops.vsa_compile.attend_backward.default, given)
    padding = torch.rand(2, 1, 1, case.q.shape[2]) < 0.5
    torch.library.opcheck(torch.ops.vsa_compile.zero_padding.default, (leaves[0], padding[:1]))
    torch.library.opcheck(
        torch.ops.vsa_compile.hint.default, (leaves[0][:, 0, 3:13], [1, 2, 5]), test_utils=checks
    )
    call = (*leaves, None, grid, tile, case.q_start, case.kv_start, case.key_padding, None, 0.5, "vsa")
    torch.library.opcheck(torch.ops.vsa_compile.attention.default, call, test_utils=checks)


def test_gradcheck_with_a_gate():
    """Finite differences of the whole operator in fp64, through the fine and the coarse part.

    The scores that select are far apart, so that no perturbation changes a selection.
    """
    generator = torch.Generator().manual_seed(0)
    grid, tile = (2, 2, 3), (2, 2, 2)
    video = TileGrid(Grid(*grid), tile).grid.tokens
    shape = (1, 2, video + 2, 2)

    def leaf():
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    q, k, v, gate = leaf(), leaf(), leaf(), leaf()
    padding = torch.rand(1, video + 2, generator=generator) < 0.6

    def attention(q, k, v, gate):
        return torch.ops.vsa_compile.attention(q, k, v, gate, grid, tile, 1, 1, padding, None, 0.5, "vsa")

    assert torch.autograd.gradcheck(attention, (q, k, v, gate))


def test_attention_equals_its_specification():
    case = make_case(12, batch=2, kv_heads=1, before=3, after=4, padding=2, dtype=torch.float64)
    gate = torch.randn_like(case.q)
    arguments = (case.q, case.k, case.v)
    place = (case.q_start, case.kv_start, case.key_padding)
    got = torch.ops.vsa_compile.attention(*arguments, gate, case.grid, case.tile, *place, None, 0.6, "vsa")
    wanted = reference.attention(
        *arguments, grid=case.grid, sparsity=0.6, tile=case.tile, gate=gate,
        q_start=place[0], kv_start=place[1], key_padding=place[2],
    )  # fmt: skip
    assert (got - wanted).abs().max() <= 1e-12
