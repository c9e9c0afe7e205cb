"""The C++ kernel's threads, offsets, checks, choice of calls and loader. Its numbers: test_attend.py."""

from __future__ import annotations

import logging
import platform
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attend_cases import CPP, SLOWER, Case, assert_same_bits, make_case
from attend_judge import assert_right

from vsa_compile import OptionError, torch_compat
from vsa_compile.grid import Grid
from vsa_compile.ops import aten, cpu, reference
from vsa_compile.ops.cpu import loader

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
    "changes", [{"tile": (5, 8, 8), "grid": (5, 8, 9)}, {"dtype": torch.float64}], ids=["tile of 320", "fp64"]
)
def test_aten_takes_the_rest(monkeypatch, changes):
    assert aten_calls(monkeypatch, make_case(**changes)) == 1


@pytest.mark.parametrize("width", [1, 24, 200, 272])
def test_any_head_width_is_the_kernels(width: int):
    case = make_case(width=width, before=3, after=5)
    assert_right(case, run(case))


def test_the_environment_picks_a_variant(monkeypatch):
    """By name; and a name that is none is an error that says which are."""
    case = make_case()
    assert aten_calls(monkeypatch, case) == 0
    monkeypatch.setenv("VSA_COMPILE_CPU", "aten")
    assert aten_calls(monkeypatch, case) == 1
    for name in loader.variants():
        monkeypatch.setenv("VSA_COMPILE_CPU", name)
        asked = []
        monkeypatch.setattr(loader, "kernel", lambda variant, asked=asked: asked.append(variant))
        assert aten_calls(monkeypatch, case) == 1
        assert asked == [name]
    monkeypatch.setenv("VSA_COMPILE_CPU", "avx3")
    with pytest.raises(OptionError, match=r"VSA_COMPILE_CPU is 'avx3'.* plain and aten .*Unset it"):
        aten_calls(monkeypatch, case)


@pytest.mark.parametrize(
    ("capability", "machine", "wanted"),
    [
        ("AVX512", "x86_64", ("avx512", "avx2", "plain")),
        ("AVX2", "AMD64", ("avx2", "plain")),
        ("DEFAULT", "x86_64", ("plain",)),
        ("DEFAULT", "arm64", ("neon", "plain")),
        ("SVE256", "aarch64", ("neon", "plain")),
        ("Z VECTOR", "s390x", ("plain",)),
    ],
)
def test_what_a_processor_runs(monkeypatch, capability: str, machine: str, wanted: tuple[str, ...]):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.delenv("VSA_COMPILE_CPU", raising=False)
    assert loader.variants() == wanted
    assert loader.asked() == wanted[0]


# --- What is checked before a pointer is followed ---------------------------------------------------


def kernel_arguments(case: Case) -> tuple[list, list, list, list]:
    """What the C++ takes: q, k and v; lists and place; results of the forward; gradients."""
    q_grid, q_tile = case.packed or (case.grid, case.tile)
    site = [*case.site[:8], list(q_grid), list(q_tile)]

    def by_token(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(x.transpose(1, 2).shape, dtype=x.dtype)

    results = [by_token(case.q), torch.zeros(case.q.shape[:3])]
    return [case.q, case.k, case.v], site, results, [by_token(x) for x in (case.q, case.k, case.v)]


NUMBERS = ("grid", "tile", "q_grid", "q_tile")
SITE = ("tiles", "counts", "grid", "tile", "q_start", "kv_start", "key_padding", "scale", "q_grid", "q_tile")
WRONG = {
    "shape": lambda x: x[:, :-1].clone(),
    "batch": lambda x: torch.cat([x, x]),
    "dimensions": lambda x: x[None],
    "type": lambda x: x.double(),
    "strides": lambda x: x.unsqueeze(-1).repeat_interleave(2, -1)[..., 0],
    "device": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("variant", loader.variants())
@pytest.mark.parametrize("wrong", WRONG)
def test_every_tensor_is_checked(variant: str, wrong: str):
    """Each of the operators' tensors in turn has a shape, type or memory that it must not have."""
    kernel = loader.kernel(variant)
    case = make_case(batch=3, kv_heads=1, before=1, after=2, padding=3)
    inputs, site, results, grads = kernel_arguments(case)
    backward = [torch.zeros_like(results[0]), *inputs, *results, *site, *grads]
    for operator, good in ((kernel.attend, [*inputs, *site, *results]), (kernel.attend_backward, backward)):
        operator(*good)
        tensors = [i for i, x in enumerate(good) if isinstance(x, torch.Tensor)]
        assert len(tensors) == (8 if operator is kernel.attend else 12)
        for i in tensors:
            bad = [*good[:i], WRONG[wrong](good[i]), *good[i + 1 :]]
            with pytest.raises((RuntimeError, NotImplementedError)):
                operator(*bad)


@pytest.mark.parametrize("variant", loader.variants())
def test_every_number_is_checked(variant: str):
    kernel = loader.kernel(variant)
    case = make_case(before=1, after=2)
    inputs, site, results, grads = kernel_arguments(case)
    place = dict(zip(SITE, site, strict=True))
    wrong = [{name: [2, 3]} for name in NUMBERS]
    wrong += [{name: [*place[name][:2], value]} for name in NUMBERS for value in (0, -1, 1 << 40)]
    wrong += [{name: value} for name in ("q_start", "kv_start") for value in (-1, 4, 1 << 62)]
    wrong += [{"grid": [5, 6, 8]}, {"q_grid": [5, 6, 8]}, {"tile": [8, 8, 8]}, {"q_tile": [8, 8, 8]}]
    wrong += [{"tile": [1, 1, 1], "q_tile": [1, 1, 1]}, {"q_grid": [3, 6, 7]}]
    for change in wrong:
        changed = list((place | change).values())
        with pytest.raises(RuntimeError, match="vsa_compile CPU kernel"):
            kernel.attend(*inputs, *changed, *results)
        with pytest.raises(RuntimeError, match="vsa_compile CPU kernel"):
            kernel.attend_backward(results[0], *inputs, *results, *changed, *grads)


@pytest.mark.parametrize("variant", loader.variants())
def test_selection_is_checked(variant: str):
    select = loader.kernel(variant).select
    scores, selected = torch.randn(3, 9), torch.zeros(3, 4, dtype=torch.int32)
    select(scores, selected)
    wrong = [
        (scores[:2], selected),
        (scores.double(), selected),
        (scores, selected.long()),
        (scores[0], selected),
    ]
    wrong += [
        (scores[:, :3].contiguous(), selected),
        (scores, selected[:, :0]),
        (scores.mT.contiguous().mT, selected),
    ]
    for given in wrong:
        with pytest.raises(RuntimeError, match="vsa_compile CPU kernel"):
            select(*given)


# --- oneDNN -----------------------------------------------------------------------------------------


def test_the_kernel_goes_on_where_onednn_is_switched_off():
    for kernel in (*CPP[:2], *SLOWER[:1]):
        case = make_case(3, dtype=kernel.dtype, width=40, grid=(8, 8, 9), tile=(4, 4, 4), before=3, after=5)
        with torch.backends.mkldnn.flags(enabled=False):
            assert_right(case, kernel.run(case))


# --- The loader -----------------------------------------------------------------------------------


@pytest.fixture
def fresh_loader():
    """A loader that has not built anything yet."""
    loader.kernel.cache_clear()
    yield
    loader.kernel.cache_clear()


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "vsa_compile.cpu"]


def test_without_a_compiler_the_log_says_so_once(monkeypatch, fresh_loader, caplog):
    def no_compiler(*_):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch_compat, "load_cpp", no_compiler)
    case = make_case()
    assert aten_calls(monkeypatch, case) == 1
    assert aten_calls(monkeypatch, replace(case, scale=1.0)) == 1
    (message,) = warnings(caplog)
    assert "no C++ compiler" in message


def test_a_cached_library_loads_in_silence(fresh_loader, caplog):
    caplog.set_level(logging.DEBUG)
    assert loader.kernel(loader.variants()[0]) is not None
    assert warnings(caplog) == []


def test_waiting_for_the_compiler_is_announced(monkeypatch, fresh_loader):
    load = torch_compat.load_cpp

    def slow(*given):
        waited.wait(10)
        return load(*given)

    waited = loader.threading.Event()
    logged = []
    monkeypatch.setattr(loader, "_NOTICE_AFTER", 0.0)
    monkeypatch.setattr(loader.log, "warning", lambda *message: (logged.append(message), waited.set()))
    monkeypatch.setattr(torch_compat, "load_cpp", slow)
    assert loader.kernel(loader.variants()[0]) is not None
    assert len(logged) == 1
    assert "compiling" in logged[0][0]


def test_of_threads_that_come_at_once_one_builds_at_a_time(monkeypatch, fresh_loader):
    """Else two would write, and load, the same library."""
    together, met = threading.Barrier(2), []

    def build(*_):
        with suppress(threading.BrokenBarrierError):
            together.wait(0.5)
            met.append("two builds")

    monkeypatch.setattr(torch_compat, "load_cpp", build)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(loader.kernel, loader.variants()[:1] * 2))
    assert not met


def test_the_source_is_one_text_with_each_header_once():
    folder = Path(loader.__file__).parent
    for variant in loader.variants():
        text = loader.source(variant)
        assert '#include "' not in text
        assert "#pragma once" not in text
        for path in folder.glob("*.h"):
            assert text.count(path.read_text().splitlines()[0]) == 1, path.name
        assert f"kMostTokens = {cpu.MOST_TILE_TOKENS};" in text


# --- Other machines ---------------------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-g++"), reason="needs g++-aarch64-linux-gnu")
def test_it_builds_for_arm(tmp_path):
    """NEON's vectors, for which only the logic can be tested here: by the plain variant."""
    (tmp_path / "kernel.cpp").write_text(loader.source("neon"))
    include = Path(torch.__file__).parent / "include"
    command = [
        "aarch64-linux-gnu-g++",
        "-std=c++20",
        "-O0",
        "-fPIC",
        "-fopenmp",
        "-Wall",
        "-Wno-unknown-pragmas",
    ]
    command += [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", *loader.flags("neon")]
    objects = tmp_path / "kernel.o"
    subprocess.run([*command, "-c", tmp_path / "kernel.cpp", "-o", objects], check=True)
    assert b"AArch64" in subprocess.run(["readelf", "-h", objects], capture_output=True, check=True).stdout


def test_the_grid_of_a_case_covers_its_video():
    """The cases above would prove little if their video were not where they say."""
    case = make_case(before=3, after=5)
    assert case.q.shape[2] == Grid(*case.grid).tokens + 8
