"""The C++ kernel's threads, offsets, choice of calls and loader. Its numbers: test_attend.py."""

from __future__ import annotations

import ctypes
import logging
from dataclasses import replace

import pytest
import torch
from attend_cases import CPP, Case, assert_same_bits, make_case, needs_avx512
from attend_judge import assert_right

from vsa_compile import torch_compat
from vsa_compile.grid import Grid
from vsa_compile.ops import aten, cpu, reference
from vsa_compile.ops.cpu import loader

pytestmark = needs_avx512
run = CPP[0].run


# --- Threads and offsets --------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for heads in (1, 2, 3):
            case = make_case(heads, heads=heads, before=3, after=70)
            assert_right(case, run(case))
    finally:
        torch.set_num_threads(before)


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


# --- Which calls the kernel takes -----------------------------------------------------------------


def aten_calls(monkeypatch, case: Case) -> int:
    calls = []
    monkeypatch.setattr(aten, "attend", lambda *_: calls.append(1) or reference.attend(*case.arguments()))
    torch.ops.vsa_compile.attend(*case.arguments())
    return len(calls)


@pytest.mark.parametrize(
    "changes",
    [{"width": 24}, {"width": 272}, {"tile": (5, 8, 8), "grid": (5, 8, 9)}, {"dtype": torch.float64}],
    ids=["width 24", "width 272", "tile of 320", "fp64"],
)
def test_aten_takes_the_rest(monkeypatch, changes):
    assert aten_calls(monkeypatch, make_case(**changes)) == 1


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
