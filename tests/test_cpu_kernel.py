"""The C++ kernel of vsa::attend and vsa::select against the specification, bit stability, and its loader."""

from __future__ import annotations

import ctypes
import logging
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
    through_autograd,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vsa_compile import aten, cpu, reference, torch_compat
from vsa_compile.cpu import loader
from vsa_compile.grid import Grid, TileGrid

pytestmark = pytest.mark.skipif(
    "AVX512" not in torch.backends.cpu.get_cpu_capability(), reason="the C++ kernel needs AVX-512"
)

FP32, BF16, FP16 = 1e-5, 4 * 2.0**-8, 4 * 2.0**-11  # row error: rule C; 4 eps of rule A
WIDTHS = (16, 32, 48, 64, 128)


@pytest.fixture(autouse=True)
def _only_the_kernel(monkeypatch):
    """A call that slips into ATen would test the wrong thing."""
    for dtype in loader.DTYPES:
        assert loader.kernel(dtype) is not None

    def refuse(*_):
        pytest.fail("ATen was called")

    for name in ("attend", "attend_backward", "select"):
        monkeypatch.setattr(aten, name, refuse)


def check(case: Case) -> None:
    got, wanted = run(case), gold(case)
    if case.q.dtype == torch.float32:
        assert_rows(got, wanted, case, FP32)
        assert_lse(got["lse"], wanted["lse"], FP32)
    elif case.q.dtype == torch.bfloat16:
        assert_rows(got, wanted, case, BF16, eager_bf16(case))
        assert_lse(got["lse"], wanted["lse"], 1e-3)
    else:
        assert_rows(got, wanted, case, FP16)
        assert_lse(got["lse"], wanted["lse"], FP32)


# --- Against the specification -------------------------------------------------------------------


@settings(max_examples=20)
@given(case=cases(WIDTHS, torch.float32))
def test_fp32_equals_the_specification(case):
    check(case)


@settings(max_examples=12)
@given(case=cases(WIDTHS, torch.bfloat16))
def test_bf16_equals_the_specification(case):
    check(case)


@settings(max_examples=6)
@given(case=cases(WIDTHS, torch.float16))
def test_fp16_equals_the_specification(case):
    check(case)


NAMED = {
    "several softmax steps": {"grid": (8, 8, 20), "tile": (4, 4, 4), "listed": 20, "width": 64},
    "ragged on every axis": {"grid": (5, 6, 7), "tile": (4, 4, 4), "listed": 5, "width": 64},
    "tiles of one token": {"grid": (2, 3, 4), "tile": (1, 1, 1), "listed": 5},
    "the largest tile": {"grid": (4, 8, 9), "tile": (4, 8, 8), "listed": 2, "width": 256},
    "one tile": {"grid": (2, 3, 4), "tile": (4, 4, 4), "listed": 1, "ragged": False},
    "one token": {"grid": (1, 1, 1), "tile": (1, 1, 1), "listed": 1, "ragged": False},
    "text before and after": {"before": 66, "after": 130, "listed": 2},
    "text among keys only": {"kv_before": 5, "kv_after": 9},
    "text among queries only": {"before": 5, "after": 9, "kv_before": 0, "kv_after": 0},
    "padding per batch": {"batch": 2, "before": 7, "after": 9, "padding": 2},
    "padding for all batches": {"batch": 2, "before": 7, "after": 9, "padding": 1},
    "grouped queries": {"heads": 6, "kv_heads": 2, "batch": 2},
    "one key head": {"heads": 3, "kv_heads": 1},
    "negative scale": {"scale": -0.3},
    "scale 0": {"scale": 0.0},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMED)
def test_named_case(name, dtype):
    check(make_case(1, dtype=dtype, **NAMED[name]))


@pytest.mark.parametrize("scale", [2.0, -2.0])
def test_sharp_weights_are_as_good_as_eager(scale):
    """Large scores lose digits in any fp32 dot product; the kernel loses no more."""
    case = make_case(10, scale=scale, before=3, after=70)
    assert_rows(run(case), gold(case), case, FP32, through_autograd(reference.attend, case))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout_gives_the_same_bits(layout):
    case = make_case(2, batch=2, layout="expanded", before=3, after=5, kv_heads=1)
    names = ("q", "k", "v", "grad_out")
    copies = {name: getattr(case, name).contiguous() for name in names}
    other = make_case(2, batch=2, layout=layout, before=3, after=5, kv_heads=1)
    same = {name: getattr(other, name).copy_(copies[name]) for name in names if layout != "expanded"}
    assert_same_bits(run(replace(case, **same)), run(replace(case, **copies)))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for heads in (1, 2, 3):
            check(make_case(heads, heads=heads, before=3, after=70))
    finally:
        torch.set_num_threads(before)


def test_all_tiles_kept_is_dense_attention():
    case = make_case(
        3, grid=(4, 6, 10), tile=(2, 3, 4), listed=100, ragged=False, before=4, after=9, width=64
    )
    got = run(case)
    leaves = [x.detach().double().requires_grad_() for x in (case.q, case.k, case.v)]
    dense = torch.nn.functional.scaled_dot_product_attention(*leaves, scale=case.scale).transpose(1, 2)
    grads = torch.autograd.grad(dense, leaves, case.grad_out.double())
    wanted = dict(zip(("out", "grad_q", "grad_k", "grad_v"), (dense, *grads), strict=True))
    assert_rows(got, wanted, case, FP32)


def test_offsets_beyond_32_bits():
    """Two batches 2^31 elements apart; untouched pages of the gap cost no memory."""
    case = make_case(4, batch=2, heads=1)

    def far_apart(x):
        base = torch.empty(2**31 + x[0].numel(), dtype=x.dtype)
        return base.as_strided(x.shape, (2**31, *x[:1].contiguous().stride()[1:])).copy_(x)

    names = ("q", "k", "v", "grad_out")
    # One at a time: four gaps together may exceed what a small machine lets a process reserve.
    for name in names:
        assert_same_bits(run(replace(case, **{name: far_apart(getattr(case, name))})), run(case))


# --- What must not matter ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_ten_runs_give_the_same_bits(dtype):
    for heads in (1, 4):
        case = make_case(5, heads=heads, dtype=dtype, before=3, after=70, grid=(8, 8, 9), tile=(4, 4, 4))
        first = run(case)
        for _ in range(9):
            assert_same_bits(run(case), first)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -6e4], ids=["nan", "inf", "huge"])
def test_unlisted_tiles_and_padding_change_no_bit(dtype, poison):
    case = make_case(6, dtype=dtype, before=5, after=8, padding=1, kv_heads=1, grid=(5, 5, 7))
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


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)
def test_dye_shows_the_weight_of_every_tile(dtype):
    """V is one-hot in the tile id, with a column of ones: unlisted columns are 0, and weights sum to 1."""
    case = make_case(8, grid=(5, 6, 7), tile=(3, 3, 3), listed=4, width=48, dtype=dtype, layout="heads")
    tiles = TileGrid(case.grid, case.tile).tiles
    ids = reference.tile_of_token(case.grid, case.tile)
    v = torch.zeros_like(case.v)
    v[..., torch.arange(ids.numel()), ids] = 1
    v[..., -1] = 1
    out = run(replace(case, v=v))["out"].float()
    sees = case.listed()[:, :, ids].transpose(1, 2)  # (B, N, H, M)
    assert not out[..., :tiles][~sees].any()
    total, any_seen = out[..., -1], sees.any(-1)
    # A sum of rounded weights over a sum of exact ones: half a unit of the weights' type each.
    eps = 2**-7 if dtype == torch.bfloat16 else 2**-10 if dtype == torch.float16 else 2**-21
    assert bool(((total[any_seen] - 1).abs() <= eps).all())
    assert not total[~any_seen].any()
    assert torch.allclose(out[..., :tiles].sum(-1), total, atol=tiles * eps)


def test_rows_that_see_nothing_are_zero_with_zero_gradients():
    case = make_case(9, before=3, after=4, padding=1)
    nothing = replace(
        case, counts=torch.zeros_like(case.counts), key_padding=torch.zeros_like(case.key_padding),
        q=case.q[:, :, 3:-4], grad_out=case.grad_out[:, 3:-4], q_start=0,
    )  # fmt: skip
    got = run(nothing)
    assert bool((got.pop("lse") == -torch.inf).all())
    assert not any(x.any() for x in got.values())


@settings(max_examples=10)
@given(seed=st.integers(0, 999), scores=st.sampled_from((1e4, -3e4)))
def test_huge_scores_stay_finite(seed, scores):
    case = make_case(seed, width=16, grid=(4, 4, 4), tile=(2, 2, 2))
    case = replace(case, scale=scores / 16)
    assert all(x.isfinite().all() for name, x in run(case).items() if name != "lse")


# --- select ---------------------------------------------------------------------------------------

values = st.sampled_from((0.0, -0.0, 1.0, 1.0, -1.0, 0.5, 1e-40, -1e-40, torch.inf, -torch.inf, torch.nan))


@settings(max_examples=100)
@example(row=[-0.0, 0.0, 0.0, 1.0], kept=2)
@example(row=[0.0, -0.0, torch.nan, -torch.nan, torch.inf], kept=3)
@given(row=st.lists(values | st.floats(width=32), min_size=1, max_size=70), kept=st.integers(1, 70))
def test_select_is_a_stable_sort(row, kept):
    scores, kept = torch.tensor(row).expand(2, 3, len(row)), min(kept, len(row))
    got, wanted = torch.ops.vsa.select(scores, kept), reference.select(scores, kept)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, wanted, strict=True))


def test_select_takes_many_rows_and_any_strides():
    scores = torch.randn(2, 5, 90, 64).round(decimals=1).transpose(-1, -2)
    for got, wanted in zip(torch.ops.vsa.select(scores, 11), reference.select(scores, 11), strict=True):
        assert torch.equal(got, wanted)


# --- Which calls the kernel takes -----------------------------------------------------------------


def aten_calls(monkeypatch, case: Case) -> int:
    calls = []
    monkeypatch.setattr(aten, "attend", lambda *_: calls.append(1) or reference.attend(*case.arguments()))
    torch.ops.vsa.attend(*case.arguments())
    return len(calls)


@pytest.mark.parametrize(
    "changes",
    [{"width": 24}, {"width": 272}, {"tile": (5, 8, 8), "grid": (5, 8, 9)}, {"dtype": torch.float64}],
    ids=["width 24", "width 272", "tile of 320", "fp64"],
)
def test_aten_takes_the_rest(monkeypatch, changes):
    assert aten_calls(monkeypatch, make_case(**changes)) == 1


def test_aten_takes_wrong_shapes(monkeypatch):
    case = make_case()
    assert aten_calls(monkeypatch, replace(case, counts=case.counts.long())) == 1
    monkeypatch.undo()
    for wrong in ({"tiles": case.tiles[:, :, 1:]}, {"q_start": 1}, {"kv_start": 1}):
        with pytest.raises((RuntimeError, IndexError)):
            torch.ops.vsa.attend(*replace(case, **wrong).arguments())


def test_the_environment_turns_the_kernel_off(monkeypatch):
    case = make_case()
    assert aten_calls(monkeypatch, case) == 0
    monkeypatch.setenv("VSA_COMPILE_CPU", "aten")
    assert aten_calls(monkeypatch, case) == 1


# --- The loader -----------------------------------------------------------------------------------


@pytest.fixture
def fresh_loader():
    """A loader that has not built anything yet."""

    def forget():
        loader._kernel.cache_clear()
        loader.kernel.cache_clear()

    forget()
    yield
    forget()


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "vsa_compile.cpu"]


def test_without_a_compiler_the_log_says_so_once(monkeypatch, fresh_loader, caplog):
    def no_compiler():
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch_compat, "cpp_loader", no_compiler)
    case = make_case()
    assert aten_calls(monkeypatch, case) == 1
    assert aten_calls(monkeypatch, replace(case, scale=1.0)) == 1
    (message,) = warnings(caplog)
    assert "no C++ compiler" in message


def test_without_avx512_the_log_says_so_once(monkeypatch, fresh_loader, caplog):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert aten_calls(monkeypatch, make_case()) == 1
    (message,) = warnings(caplog)
    assert "AVX2" in message


def test_a_processor_without_the_type_is_told_once(monkeypatch, fresh_loader, caplog):
    def no_bf16(self, dtype):
        if dtype == torch.bfloat16:
            raise loader.KernelError("no bf16")

    monkeypatch.setattr(loader.Kernel, "probe", no_bf16)
    for _ in range(2):
        assert loader.kernel(torch.float32) is not None
        assert loader.kernel(torch.bfloat16) is None
    assert ["no bf16" in message for message in warnings(caplog)] == [True]


def test_a_cached_library_loads_in_silence(fresh_loader, caplog):
    caplog.set_level(logging.DEBUG)
    assert loader.kernel(torch.float32) is not None
    assert warnings(caplog) == []


def test_waiting_for_the_compiler_is_announced(monkeypatch, fresh_loader, caplog):
    load = torch_compat.cpp_loader()

    def slow(text):
        waited.wait(10)
        return load(text)

    waited = loader.threading.Event()
    monkeypatch.setattr(loader, "_NOTICE_AFTER", 0.0)
    monkeypatch.setattr(loader.log, "warning", lambda *message: (logged.append(message), waited.set()))
    monkeypatch.setattr(torch_compat, "cpp_loader", lambda: slow)
    logged = []
    assert loader.kernel(torch.float32) is not None
    assert len(logged) == 1
    assert "compiling" in logged[0][0]


def test_a_failing_kernel_raises_its_reason():
    class Broken:
        @staticmethod
        def vsa_attend(_, message, size):
            ctypes.memmove(message, b"out of memory\0", 14)
            return 1

    with pytest.raises(loader.KernelError, match="out of memory"):
        loader.Kernel(Broken()).attend(loader.Call())


def test_the_source_is_one_text_with_each_header_once():
    text = loader.source()
    assert '#include "' not in text
    assert "#pragma once" not in text
    for header in ("call.h", "lanes.h", "threads.h", "forward.h", "backward.h"):
        first_line = (loader._FOLDER / header).read_text().splitlines()[0]
        assert text.count(first_line) == 1
    assert f"kMostTokens = {cpu.MOST_TILE_TOKENS};" in text


def test_the_grid_of_a_case_covers_its_video():
    """The cases above would prove little if their video were not where they say."""
    case = make_case(before=3, after=5)
    assert case.q.shape[2] == Grid(*case.grid).tokens + 8
