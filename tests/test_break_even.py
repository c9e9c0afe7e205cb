"""Where the kernel at hand loses to dense attention a call stays dense: said, and with ways out that work."""

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
from vsa_compile.convert.judge import Conversion
from vsa_compile.ops import break_even
from vsa_compile.ops.break_even_table import CPU
from vsa_compile.ops.cpu import loader
from vsa_compile.ops.functional import DTYPES
from vsa_compile.report import announce
from vsa_compile.tools import doctor

pytestmark = [pytest.mark.quick, pytest.mark.no_cover]

GRID = (4, 5, 6)  # 120 tokens
MEASURED = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "break_even.py"), run_name="read")
CPU_DEVICE = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch):
    monkeypatch.setattr(announce, "_said", set())


def kernel_that_wins_from(least: int | None, monkeypatch: pytest.MonkeyPatch, variant: str = "aten") -> str:
    """The kernel at hand is `variant`, and wins from there on; its name."""
    monkeypatch.setenv(loader.VARIABLE, variant)
    monkeypatch.setitem(CPU, variant, dict.fromkeys(DTYPES, least))
    return break_even.kernel_at_hand(CPU_DEVICE, torch.float32, (2, 2, 2), 16).name


def decided(grid: tuple[int, int, int] = GRID, **options: Any) -> list:
    graphs: list[list] = []
    torch._dynamo.reset()
    torch.compile(attend, backend=converting(graphs, **{"min_tokens": None} | options))(latents(grid))
    ((decision,),) = graphs
    return decision


def test_the_table_is_what_was_measured():
    known = json.loads(MEASURED["RESULTS"].read_text())
    assert MEASURED["TABLE"].read_text() == MEASURED["table"](known)


def test_a_kernel_has_the_worst_of_its_runs():
    def run(**won: float) -> dict:
        return {dtype: {"ratios": {"512 a": 1.0, "1024 a": ratio}} for dtype, ratio in won.items()}

    known = {"aten avx512": run(float32=2.0, float64=1.0, float16=2.0), "aten avx2": run(float32=1.0)}
    shown = MEASURED["table"](known | {"avx2": run(float32=1.1)})
    assert '"aten": {torch.float32: None, torch.float64: None, torch.float16: 1024},' in shown
    assert '"avx2": {torch.float32: 1024},' in shown


@pytest.mark.parametrize("table", [{}, {"plain": {torch.bfloat16: 512}}])
def test_what_was_not_measured_stays_dense(table, monkeypatch):
    """As on ARM, which nobody had."""
    monkeypatch.setenv(loader.VARIABLE, "plain")
    monkeypatch.setattr(break_even, "CPU", table)
    assert decided().reason.slug == "slower"


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
    assert kernel.least == CPU.get(variant, {}).get(dtype)


def test_aten_is_at_hand_where_the_cpp_kernel_does_not_serve(monkeypatch):
    at_hand = break_even.kernel_at_hand
    for dtype, tile in ((torch.float64, (4, 4, 4)), (torch.float32, (8, 8, 8))):
        assert at_hand(CPU_DEVICE, dtype, tile, 64).name.startswith("chunked ATen")
    monkeypatch.setattr(loader, "kernel", lambda variant: None)
    kernel = at_hand(CPU_DEVICE, torch.float32, (4, 4, 4), 64)
    assert kernel[:3] == ("chunked ATen in float32", CPU["aten"].get(torch.float32), True)
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
    assert kernel.measured == (least is None)
    assert (kernel.name == "the Triton kernel") == (device == "cuda" and least is not None)


def test_below_the_break_even_a_call_stays_dense_and_the_way_out_works(monkeypatch):
    name = kernel_that_wins_from(121, monkeypatch)
    refusal = decided()
    assert refusal.reason.slug == "few-tokens"
    said = f"120 video tokens are too few: {name} beats dense attention from 121 on; "
    assert refusal.reason.text == said + 'options={"min_tokens": 0} makes it sparse anyway'
    assert isinstance(decided(min_tokens=0), Conversion)
    kernel_that_wins_from(120, monkeypatch)
    assert isinstance(decided(), Conversion)


def test_a_kernel_that_never_wins_leaves_all_dense_and_both_ways_out_work(monkeypatch):
    name = kernel_that_wins_from(None, monkeypatch)
    refusal = decided()
    assert (refusal.reason.slug, refusal.reason.asked) == ("slower", True)
    assert refusal.reason.text.startswith(
        f"{name} is not known to beat dense attention at any size; unset VSA_COMP"
    )
    assert isinstance(decided(min_tokens=0), Conversion)
    monkeypatch.delenv(loader.VARIABLE)
    monkeypatch.setitem(CPU, loader.variants()[0], dict.fromkeys(DTYPES, 100))
    assert isinstance(decided(), Conversion)


def test_a_guess_is_called_one(monkeypatch):
    monkeypatch.setattr(break_even, "TEMPLATES", 121)
    with torch.device("meta"):
        x = torch.empty(1, 32, *GRID)
    report = vsa_compile.explain(attend, x)
    assert "is assumed, not measured, to beat dense attention from 121 on" in report.sites[0].reason
    monkeypatch.setattr(break_even, "TEMPLATES", 120)
    (site,) = vsa_compile.explain(attend, x).sites
    assert site.converted
    assert site.kernel == ""


def test_under_autocast_it_is_the_kernel_of_the_type_that_is_computed_in(monkeypatch):
    monkeypatch.setenv(loader.VARIABLE, "aten")
    monkeypatch.setitem(CPU, "aten", {torch.float32: 0})

    def in_bf16(x):
        with torch.autocast("cpu", torch.bfloat16):
            return attend(x)

    (site,) = vsa_compile.explain(in_bf16, latents(GRID)).sites
    assert site.reason.startswith("chunked ATen in bfloat16 is not known")
    assert vsa_compile.explain(attend, latents(GRID)).converted == 1


@pytest.mark.seconds
def test_symbolic_sizes_cross_the_break_even_with_a_guard(monkeypatch):
    kernel_that_wins_from(130, monkeypatch)
    graphs: list[list] = []
    run = torch.compile(attend, backend=converting(graphs, min_tokens=None), dynamic=True)
    for grid, count in ((GRID, 1), ((5, 5, 5), 1), ((4, 6, 6), 2), ((5, 6, 6), 2), (GRID, 2)):
        run(latents(grid))
        assert len(graphs) == count, grid
    assert [isinstance(decision, Conversion) for (decision,) in graphs] == [False, True]


@pytest.mark.parametrize(("least", "options"), [(121, {}), (None, {}), (0, {"min_tokens": 121})])
def test_it_is_said_once_in_the_log(least, options, monkeypatch, caplog):
    """As a warning, which Python shows unless it is told otherwise; and another reason is said, too."""
    kernel_that_wins_from(least, monkeypatch)
    with caplog.at_level(logging.WARNING):
        for grid in (GRID, GRID, (3, 4, 5)):
            decided(grid, **options, tile=(2, 2, 2))
        reasons = [decided(**options).reason.text, decided((3, 4, 5), **options).reason.text]
    said = [f"video attention stays dense: {reason}" for reason in dict.fromkeys(reasons)]
    assert [record.getMessage() for record in caplog.records] == said
    assert len(said) == (1 if least is None else 2)


@pytest.mark.parametrize("tokens", [1024, 1023])
def test_what_may_be_a_video_and_cannot_be_read_is_said_once(tokens: int, caplog):
    x = torch.randn(1, 2, tokens, 16)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch._dynamo.reset()
            torch.compile(
                lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x), backend=converting([])
            )(x)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (tokens == 1024)
    assert all("vsa_compile.prepare" in text for text in said)


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
    report = vsa_compile.explain(attend, latents(GRID), options={"tile": (2, 2, 2)})
    assert report.sites[0].kernel == name
    assert str(report).endswith(f"They run through {name}.")
    kernel_that_wins_from(None, monkeypatch)
    report = vsa_compile.explain(attend, latents(GRID), options={"tile": (2, 2, 2)})
    assert report.sites[0].kernel == ""
    assert f"{name} is not known to beat dense attention at any size" in str(report)


def test_doctor_shows_it(monkeypatch):
    kernel_that_wins_from(2048, monkeypatch)
    monkeypatch.setitem(CPU["aten"], torch.float64, None)
    findings = doctor._Findings()
    doctor._cpu(findings)
    shown = dict(findings.lines)["CPU, sparse from"]
    assert "2048 video tokens in float32, bfloat16, float16; " in f"{shown}; "
    assert "no known number of video tokens in float64" in shown
    monkeypatch.setattr(break_even, "too_old", lambda _: None)
    on_gpu = doctor._sparse_from(torch.device("cuda"))
    unmeasured = f"{break_even.TEMPLATES} video tokens, which was not measured, in float32, bfloat16, float16"
    assert on_gpu == f"{unmeasured}; no known number of video tokens in float64"
