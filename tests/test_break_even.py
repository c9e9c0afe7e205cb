"""Where the kernel at hand loses to dense attention a call stays dense, and says so, with a way out that works."""

from __future__ import annotations

import json
import logging
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from converting import attend, converting, latents

import vsa_compile
from vsa_compile import backend
from vsa_compile.convert.judge import Site
from vsa_compile.ops import break_even
from vsa_compile.ops.break_even_table import CPU
from vsa_compile.ops.cpu import loader
from vsa_compile.tools import doctor

pytestmark = pytest.mark.quick

GRID = (4, 5, 6)  # 120 tokens
MEASURED = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "break_even.py"), run_name="read")
CPU_DEVICE = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch):
    monkeypatch.setattr(backend, "_said", set())


def kernel_that_wins_from(least: int | None, monkeypatch: pytest.MonkeyPatch, variant: str = "aten") -> str:
    """The kernel at hand is `variant`, and wins from there on; its name."""
    monkeypatch.setenv(loader.VARIABLE, variant)
    monkeypatch.setitem(CPU, variant, dict.fromkeys(CPU["aten"], least))
    return break_even.kernel_at_hand(CPU_DEVICE, torch.float32, (2, 2, 2), 16).name


def decided(grid: tuple[int, int, int] = GRID, **options: Any) -> list:
    graphs: list[list] = []
    torch._dynamo.reset()
    torch.compile(attend, backend=converting(graphs, **{"min_tokens": None} | options))(latents(grid))
    ((decision,),) = graphs
    return decision


def test_the_table_is_what_was_measured():
    known = json.loads(MEASURED["RESULTS"].read_text())
    assert MEASURED["TABLE"].read_text() == MEASURED["table"](known["ratios"])


def test_every_variant_and_type_has_its_line():
    for variant in ({*loader.variants(), "avx512", "avx2", "plain"}) - {"neon"}:
        assert {*CPU[variant]} == {torch.float32, torch.bfloat16, torch.float16}
    assert {*CPU["aten"]} == {torch.float32, torch.bfloat16, torch.float16, torch.float64}


@pytest.mark.parametrize(
    ("ratios", "least"),
    [
        ({"512 a": 0.9, "1024 a": 1.2, "1024 b": 1.1, "2048 a": 3.0}, 1024),
        ({"512 a": 0.9, "1024 a": 1.2, "1024 b": 1.0, "2048 a": 3.0}, 2048),
        ({"512 a": 1.3, "1024 a": 1.0, "2048 a": 3.0}, 2048),  # one that is lost counts against all below
        ({"512 a": 1.3, "1024 a": 1.3, "2048 a": 1.0}, None),
    ],
)
def test_the_break_even_is_where_all_from_there_on_is_won(ratios, least):
    assert MEASURED["break_even"](ratios) == least


@pytest.mark.parametrize("variant", loader.variants())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_variant_of_the_cpp_kernel_is_at_hand(variant: str, dtype: torch.dtype, monkeypatch):
    monkeypatch.setenv(loader.VARIABLE, variant)
    name = str(dtype).removeprefix("torch.")
    kernel = break_even.kernel_at_hand(CPU_DEVICE, dtype, (4, 4, 4), 64)
    assert kernel.name == f"the C++ kernel for {variant} in {name}"
    assert kernel.least == CPU[variant if variant in CPU else "plain"][dtype]


def test_aten_is_at_hand_where_the_cpp_kernel_does_not_serve(monkeypatch):
    at_hand = break_even.kernel_at_hand
    for dtype, tile in ((torch.float64, (4, 4, 4)), (torch.float32, (8, 8, 8))):
        assert at_hand(CPU_DEVICE, dtype, tile, 64).name.startswith("chunked ATen")
    monkeypatch.setattr(loader, "kernel", lambda variant: None)
    kernel = at_hand(CPU_DEVICE, torch.float32, (4, 4, 4), 64)
    assert kernel == ("chunked ATen in float32", CPU["aten"][torch.float32], kernel.faster)
    assert "install a C++ compiler" in kernel.faster


@pytest.mark.parametrize(
    ("device", "dtype", "old", "least"),
    [
        ("cuda", torch.bfloat16, None, break_even.TEMPLATES),
        ("cuda", torch.float64, None, None),
        ("cuda", torch.bfloat16, "too old", None),
        ("mps", torch.float32, None, None),
        ("meta", torch.float32, None, break_even.TEMPLATES),
    ],
)
def test_other_devices(device, dtype, old, least, monkeypatch):
    monkeypatch.setattr(break_even, "too_old", lambda _: old)
    kernel = break_even.kernel_at_hand(torch.device(device), dtype, (4, 4, 4), 64)
    assert kernel.least == least
    assert (kernel.name == "the Triton kernel") == (device == "cuda" and least is not None)


def test_below_the_break_even_a_call_stays_dense_and_the_way_out_works(monkeypatch):
    name = kernel_that_wins_from(121, monkeypatch)
    refusal = decided()
    assert refusal.reason.slug == "few-tokens"
    said = f'120 video tokens are too few: {name} beats dense attention from 121 on; options={{"min_tokens": 0}} '
    assert refusal.reason.text == f"{said}makes it sparse all the same"
    assert isinstance(decided(min_tokens=0), Site)
    kernel_that_wins_from(120, monkeypatch)
    assert isinstance(decided(), Site)


def test_a_kernel_that_never_wins_leaves_all_dense_and_both_ways_out_work(monkeypatch):
    name = kernel_that_wins_from(None, monkeypatch)
    refusal = decided()
    assert (refusal.reason.slug, refusal.reason.asked) == ("slower", True)
    assert refusal.reason.text.startswith(
        f"{name} is at no size known to beat dense attention; unset VSA_COMP"
    )
    assert isinstance(decided(min_tokens=0), Site)
    monkeypatch.delenv(loader.VARIABLE)
    monkeypatch.setitem(CPU, loader.variants()[0], dict.fromkeys(CPU["aten"], 100))
    assert isinstance(decided(), Site)


def test_symbolic_sizes_cross_the_break_even_with_a_guard(monkeypatch):
    kernel_that_wins_from(130, monkeypatch)
    graphs: list[list] = []
    run = torch.compile(attend, backend=converting(graphs, min_tokens=None), dynamic=True)
    for grid, count in ((GRID, 1), ((5, 5, 5), 1), ((4, 6, 6), 2), ((5, 6, 6), 2), (GRID, 2)):
        run(latents(grid))
        assert len(graphs) == count, grid
    assert [isinstance(decision, Site) for (decision,) in graphs] == [False, True]


@pytest.mark.parametrize(("least", "options"), [(121, {}), (None, {}), (0, {"min_tokens": 121})])
def test_it_is_said_once_in_the_log(least, options, monkeypatch, caplog):
    kernel_that_wins_from(least, monkeypatch)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            reason = decided(**options).reason
    assert [record.getMessage() for record in caplog.records] == [
        f"video attention stays dense: {reason.text}"
    ]


def test_what_is_no_video_is_not_spoken_of(monkeypatch, caplog):
    kernel_that_wins_from(None, monkeypatch)
    with caplog.at_level(logging.WARNING):
        torch.compile(
            lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x),
            backend=converting([], min_tokens=None),
        )(torch.randn(1, 2, 40, 16))
    assert not caplog.records


def test_explain_names_the_kernel(monkeypatch):
    name = kernel_that_wins_from(100, monkeypatch)
    report = vsa_compile.explain(attend, latents(), options={"tile": (2, 2, 2)})
    assert report.sites[0].kernel == name
    assert str(report).endswith(f"They run through {name}.")
    kernel_that_wins_from(None, monkeypatch)
    report = vsa_compile.explain(attend, latents(), options={"tile": (2, 2, 2)})
    assert report.sites[0].kernel == ""
    assert f"{name} is at no size known to beat dense attention" in str(report)


def test_doctor_shows_it(monkeypatch):
    kernel_that_wins_from(2048, monkeypatch)
    monkeypatch.setitem(CPU["aten"], torch.float64, None)
    findings = doctor._Findings()
    doctor._cpu(findings)
    shown = dict(findings.lines)["CPU, sparse from"]
    assert "2048 video tokens in float32, bfloat16, float16; " in f"{shown}; "
    assert "no known number of video tokens in float64" in shown
