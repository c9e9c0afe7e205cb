"""select, attend and attend_backward in ATen on any device, and what torch.library asks of the operators."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attend_cases import (
    LAYOUTS,
    Case,
    assert_lse,
    assert_rows,
    assert_same_bits,
    cases,
    eager_bf16,
    gold,
    make_case,
    run,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vsa_compile import aten, reference
from vsa_compile.grid import Grid, TileGrid

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])]
WIDTHS = (1, 8, 20, 32)
EVERY_TERM = {"batch": 2, "kv_heads": 1, "before": 3, "after": 70, "padding": 2, "width": 20}


@pytest.fixture(autouse=True)
def _only_aten(monkeypatch):
    monkeypatch.setenv("VSA_COMPILE_CPU", "aten")


def on(case: Case, device: str) -> Case:
    names = ("q", "k", "v", "grad_out", "tiles", "counts", "key_padding")
    return replace(case, **{n: x.to(device) for n in names if (x := getattr(case, n)) is not None})


# --- Against the specification -------------------------------------------------------------------


@settings(max_examples=20)
@given(case=cases(WIDTHS, torch.float64))
def test_fp64_equals_the_specification(case):
    got, wanted = run(case), gold(case)
    assert_rows(got, wanted, case, 1e-12)
    assert_lse(got["lse"], wanted["lse"], 1e-12)
    assert got["lse"].dtype == torch.float64


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)
def test_narrow_types_equal_the_specification(dtype, device):
    for seed in range(2):
        case = make_case(seed, dtype=dtype, **EVERY_TERM)
        got = {name: x.cpu() for name, x in run(on(case, device)).items()}
        bound = {torch.float32: 1e-5, torch.bfloat16: 4 * 2.0**-8, torch.float16: 4 * 2.0**-11}[dtype]
        assert_rows(got, gold(case), case, bound, eager_bf16(case) if dtype == torch.bfloat16 else None)
        assert_lse(got["lse"], gold(case)["lse"], 1e-5)
        assert got["out"].dtype == dtype
        assert got["lse"].dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout(layout):
    case = make_case(1, layout=layout, dtype=torch.float64, **EVERY_TERM)
    assert_rows(run(case), gold(case), case, 1e-12)


def test_results_are_contiguous_by_token():
    case = make_case(2, **EVERY_TERM)
    out, lse = torch.ops.vsa.attend(*case.arguments())
    grads = torch.ops.vsa.attend_backward(case.grad_out, *case.arguments()[:3], out, lse, *case.site)
    assert all(x.is_contiguous() for x in (out, lse, *grads))


@pytest.mark.parametrize("scratch", [40_000, 400_000])
def test_chunks_do_not_change_the_result(monkeypatch, scratch):
    case = make_case(3, dtype=torch.float64, **EVERY_TERM)
    whole = run(case)
    monkeypatch.setattr(aten, "SCRATCH_BYTES", scratch)
    assert_rows(run(case), whole, case, 1e-13)


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
        out, lse = aten.attend(*case.arguments())
        aten.attend_backward(case.grad_out, *case.arguments()[:3], out, lse, *case.site)
    gathered = case.counts.numel() * 16 * 64 * 64 * 4
    assert gathered >= 8 * (8 << 20)
    assert largest <= 8 << 20


# --- What must not matter ------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_five_runs_give_the_same_bits(device):
    case = on(make_case(5, **EVERY_TERM), device)
    first = run(case)
    for _ in range(4):
        assert_same_bits(run(case), first)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -1e30], ids=["nan", "inf", "huge"])
def test_unlisted_tiles_and_padding_change_no_bit(poison):
    case = make_case(6, before=5, after=8, padding=1, kv_heads=1, grid=(5, 5, 7))
    # Non-video queries would see every tile: leave them out.
    case = replace(case, q=case.q[:, :, 5:-8], grad_out=case.grad_out[:, 5:-8], q_start=0)
    untouched = 2  # tile 2 is in no list
    case = replace(case, tiles=case.tiles.where(case.tiles != untouched, 3))
    hidden = reference.tile_of_token(case.grid, case.tile) == untouched
    hidden = torch.cat([~case.key_padding[0, :5], hidden, ~case.key_padding[0, -8:]])

    def poisoned(x):
        return x.masked_fill(hidden[:, None], poison)

    got, wanted = run(replace(case, k=poisoned(case.k), v=poisoned(case.v))), run(case)
    assert_same_bits(got, wanted)
    assert not got["grad_k"][:, :, hidden].any()
    assert not got["grad_v"][:, :, hidden].any()


def test_poison_reaches_exactly_the_rows_that_list_it():
    case = make_case(7, grid=(4, 6, 8), tile=(2, 3, 4), listed=4, ragged=False)
    ids = reference.tile_of_token(case.grid, case.tile)
    clean = run(case)
    for name in ("k", "v"):
        bad = getattr(case, name).masked_fill((ids == 1)[:, None], torch.nan)
        got = run(replace(case, **{name: bad}))
        sees = case.listed()[..., 1][:, :, ids].transpose(1, 2)  # (B, N, H)
        assert got["out"][sees].isnan().all()
        assert torch.equal(got["out"][~sees], clean["out"][~sees])


def test_rows_that_see_nothing_are_zero_with_zero_gradients():
    case = make_case(9, before=3, after=4, padding=1)
    nothing = replace(
        case, counts=torch.zeros_like(case.counts), key_padding=torch.zeros_like(case.key_padding),
        q=case.q[:, :, 3:-4], grad_out=case.grad_out[:, 3:-4], q_start=0,
    )  # fmt: skip
    got = run(nothing)
    assert bool((got.pop("lse") == -torch.inf).all())
    assert not any(x.any() for x in got.values())


# --- select ---------------------------------------------------------------------------------------

values = st.sampled_from((0.0, -0.0, 1.0, 1.0, -1.0, 0.5, torch.inf, -torch.inf, torch.nan))


@settings(max_examples=60)
@given(
    row=st.lists(values, min_size=1, max_size=40),
    dtype=st.sampled_from((torch.float64, torch.float32, torch.bfloat16, torch.float16)),
    data=st.data(),
)
def test_select_keeps_the_highest_and_the_first(row, dtype, data):
    kept = data.draw(st.integers(1, len(row)))
    tiles, counts = torch.ops.vsa.select(torch.tensor(row, dtype=dtype).expand(2, 3, len(row)), kept)
    assert tiles.dtype == counts.dtype == torch.int32
    assert (counts == kept).all()
    # By hand: highest first, NaN before all, the lower id first where equal.
    order = sorted(range(len(row)), key=lambda i: (row[i] == row[i], -row[i] if row[i] == row[i] else 0, i))
    assert tiles.tolist() == [[sorted(order[:kept])] * 3] * 2


# --- The operators' contract ----------------------------------------------------------------------


def small_case(dtype: torch.dtype) -> Case:
    return make_case(11, grid=(2, 3, 3), tile=(2, 2, 2), before=1, after=2, padding=1, width=16, dtype=dtype)


@pytest.mark.parametrize("kernel", ["aten", "cpp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_opcheck(monkeypatch, kernel, dtype):
    """Schemas, fakes, autograd registration and tracing with dynamic sizes, for each operator."""
    monkeypatch.setenv("VSA_COMPILE_CPU", kernel)
    case = small_case(dtype)
    leaves = [x.detach().clone().requires_grad_() for x in (case.q, case.k, case.v)]
    out, lse = (x.detach() for x in torch.ops.vsa.attend(*case.arguments()))
    grid, tile = list(case.grid), list(case.tile)
    site = (case.tiles, case.counts, grid, tile, *case.site[4:])
    plain = (case.q, case.k, case.v)
    torch.library.opcheck(torch.ops.vsa.select.default, (torch.randn(2, 3, 7, 7), 3))
    torch.library.opcheck(torch.ops.vsa.attend.default, (*leaves, *site))
    torch.library.opcheck(torch.ops.vsa.attend_backward.default, (case.grad_out, *plain, out, lse, *site))
    call = (*leaves, None, grid, tile, case.q_start, case.kv_start, case.key_padding, None, 0.5, "vsa")
    # The operator decomposes: an autograd kernel of its own would hide its parts.
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.vsa.attention.default, call, test_utils=checks)


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
        return torch.ops.vsa.attention(q, k, v, gate, grid, tile, 1, 1, padding, None, 0.5, "vsa")

    assert torch.autograd.gradcheck(attention, (q, k, v, gate))


def test_attention_equals_its_specification():
    case = make_case(12, batch=2, kv_heads=1, before=3, after=4, padding=2, dtype=torch.float64)
    gate = torch.randn_like(case.q)
    arguments = (case.q, case.k, case.v)
    place = (case.q_start, case.kv_start, case.key_padding)
    got = torch.ops.vsa.attention(*arguments, gate, case.grid, case.tile, *place, None, 0.6, "vsa")
    wanted = reference.attention(
        *arguments, grid=case.grid, sparsity=0.6, tile=case.tile, gate=gate,
        q_start=place[0], kv_start=place[1], key_padding=place[2],
    )  # fmt: skip
    assert (got - wanted).abs().max() <= 1e-12
