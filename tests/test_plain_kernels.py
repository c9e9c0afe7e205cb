"""The kernels without Inductor: what they compute, compile to, and when they run. Without a GPU."""

import contextlib
import inspect
import json
import linecache
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from compare import assert_same_output
from once import shared_folder
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")

from gpu_offline.cases import Case
from gpu_offline.comparison import verdict
from gpu_offline.offline import Build, load_builds
from gpu_offline.plain import FAULTS, LAUNCHED, RUN, TRACED, plain_leaves
from gpu_offline.program import Program, kind_of
from gpu_offline.selections import SELECTIONS, Selection
from gpu_offline.steps import run_once
from gpu_offline.tables import ALL

from vsa_compile.errors import ArgumentError
from vsa_compile.ops import aten
from vsa_compile.ops.args import AttendArgs, SelectArgs
from vsa_compile.ops.gpu import call, eager, launch, render, selection

pytest_plugins = ["gpu_offline.fixtures"]

BY_NAME: dict[str, Any] = {case.name: case for case in (*ALL, *SELECTIONS)}
each_run = pytest.mark.parametrize("case", RUN, ids=lambda case: case.name)
each_traced = pytest.mark.parametrize("case", TRACED, ids=lambda case: case.name)


@pytest.fixture(scope="session")
def plain_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what the plain kernels were rendered to, computed and compiled to."""
    folder = shared_folder(tmp_path_factory.getbasetemp(), "gpu_offline_plain")

    def interpret() -> None:
        run_once(folder, "plain", "render")
        run_once(folder, "plain", "interpret", TRITON_INTERPRET="1")

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(interpret), pool.submit(run_once, folder, "plain", "compile")]:
            done.result()
    return folder


def wrong(case: Case | Selection, outputs: Any) -> str | None:
    """What is wrong with the outputs; None if nothing is."""
    return case.verdict(outputs) if isinstance(case, Selection) else verdict(case, outputs)


# --- what is computed -------------------------------------------------------------------------


@each_run
def test_a_plain_kernel_computes_what_the_reference_says(case: Case | Selection, plain_results: Path):
    assert wrong(case, torch.load(plain_results / f"plain_{case.name}.pt")) is None


@each_run
def test_a_plain_kernel_and_inductors_give_the_same_bits(
    case: Case | Selection, plain_results: Path, outcome: Callable
):
    plain_outputs, rendered = torch.load(plain_results / f"plain_{case.name}.pt"), outcome(case.name)
    assert len(plain_outputs) == len(rendered)
    assert all(map(torch.equal, plain_outputs, rendered))


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_is_noticed(name: str, plain_results: Path):
    assert wrong(BY_NAME[FAULTS[name].noticed_by], torch.load(plain_results / f"{name}.pt")) is not None


def test_gradients_flow_through_eager_calls(plain_results: Path):
    """The same as by the kernels of the CPU."""
    got, wanted, launched = torch.load(plain_results / "eager_training.pt")
    assert launched == ["select", "attend_fwd", "attend_dq", "transpose_lists", "rank_columns", "attend_dkdv"]
    for x, y in zip(got, wanted, strict=True):
        assert_same_output(x, y)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_run
def test_an_eager_call_on_a_real_gpu_computes_what_the_reference_says(case: Case | Selection):
    function, integers, tensors = case.call()
    leaf = "select" if isinstance(case, Selection) else "attend_backward" if case.backward else "attend"
    with torch.no_grad():
        outputs = function(*integers, *(x.cuda() for x in tensors))
    assert leaf not in eager._broken
    assert wrong(case, [x.cpu() for x in outputs]) is None


# --- what torch.compile sees --------------------------------------------------------------------


@each_traced
def test_torch_compile_sees_the_kernels_of_a_triton_op(case: Case, plain_results: Path):
    program = Program.load(plain_results / f"traced_{case.name}.json")
    assert [kind_of(source) for source in program.kernels.values()] == ["attend_fwd"]
    assert "torch.ops" not in program.calls
    assert wrong(case, torch.load(plain_results / f"traced_{case.name}.pt")) is None


@pytest.mark.parametrize("why", ["missing", "failing"])
def test_without_templates_a_graph_calls_the_operator_after_one_warning(why: str, plain_results: Path):
    """Two compilations each; nothing else is said."""
    told = json.loads((plain_results / f"fallback_{why}.json").read_text())
    assert told["registered"] == (why == "failing")
    assert "torch.ops.vsa_compile.attend.default(" in told["calls"]
    assert told["kernels"] == []
    (said,) = told["said"]
    assert said.startswith("WARNING: ")
    assert "plain Triton kernels" in said


@pytest.mark.parametrize("leaf", ["select", "attend", "attend_backward"])
def test_a_triton_op_has_the_shapes_of_its_leaf(leaf: str):
    name = {"select": "select_by_threshold", "attend": "text_of_different_lengths_bf16"}.get(
        leaf, "backward_text_of_different_lengths_bf16"
    )
    function, integers, tensors = BY_NAME[name].call()
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in tensors]
        wanted = function(*integers, *fakes)
        with plain_leaves():
            got = function(*integers, *fakes)
    for x, y in zip(got, wanted, strict=True):
        assert (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride())


def test_a_triton_op_writes_no_input_and_returns_none(plain_results: Path):
    """torch's own check of the schema."""
    assert json.loads((plain_results / "schemas.json").read_text()) == ["attend", "attend_backward", "select"]


# --- what it compiles to ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target", "kind"),
    [(*made, kind) for made, kinds in LAUNCHED.items() for kind in kinds],
    ids=lambda part: part,
)
def test_machine_code_spills_nothing(name: str, target: str, kind: str, plain_results: Path):
    item: Build = load_builds(plain_results, "plain_machine_code.json")[name, target, kind]
    assert item.spills == 0, item
    if kind in ("attend_fwd", "attend_dq", "attend_dkdv"):
        assert item.instructions.get({"sm_90": "HGMMA", "sm_80": "HMMA"}[target]), item


# --- rendering ----------------------------------------------------------------------------------

(SELECT,) = selection.TEMPLATES
OPEN = {"BLOCK": 32, "WHOLE": True, "ROWS": 1, "HAS_THRESHOLD": False, "HAS_COUNT": False}


@pytest.mark.quick
def test_a_name_that_a_template_needs_must_be_given():
    with pytest.raises(jinja2.UndefinedError, match="HAS_COUNT"):
        render.render(SELECT, {name: x for name, x in OPEN.items() if name != "HAS_COUNT"}, (4, 4), False)


@pytest.mark.quick
def test_a_template_names_the_tensors_that_it_is_not_given():
    with pytest.raises(TypeError, match="SCORES, TILES; it is given 3"):
        render.render(SELECT, OPEN, (4, 4, 3), False)


@pytest.mark.quick
def test_equal_text_is_one_kernel_and_triton_can_read_it():
    kernels = [render.load(render.render(SELECT, OPEN, (4, 4), False)) for _ in range(2)]
    assert kernels[0] is kernels[1]
    linecache.checkcache()
    assert "def vsa_select(" in inspect.getsource(kernels[0].fn)
    other = render.load(render.render(SELECT, OPEN, (4, 4), True))
    assert other.cache_key != kernels[0].cache_key


@pytest.mark.quick
@pytest.mark.parametrize(("length", "wide"), [(2**31, False), (2**31 + 1, True)])
def test_offsets_past_32_bits_are_64_bits_wide(length: int, wide: bool):
    sources: list[render.Source] = []

    with FakeTensorMode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "load", sources.append)
        patch.setattr(launch, "wrap_triton", lambda _: {(1, 1, 1): lambda **_: None})
        scores = torch.empty(1, 1, 1, length, device="meta")
        selection.lower(launch, launch.as_ir(SelectArgs(scores, 4)))
    assert ("INDEX_DTYPE: tl.constexpr = tl.int64" in sources[0].text) == wide


# --- which kernel an eager call runs ------------------------------------------------------------


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.MonkeyPatch:
    """`eager.run` takes tensors of the CPU for those of a GPU of the Hopper family; nothing was said yet."""
    monkeypatch.setattr(call, "family", lambda _: "hopper")
    monkeypatch.setattr(torch.accelerator, "device_index", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(eager, "_broken", set())
    eager._say_once.cache_clear()
    caplog.set_level(logging.INFO, "vsa_compile.gpu")
    return monkeypatch


def attend_arguments(dtype: torch.dtype = torch.float32, **changed: Any) -> tuple:
    """Of vsa_compile::attend: two tiles, each sees itself."""
    q, k, v = torch.randn(3, 1, 2, 32, 16, dtype=dtype).unbind(0)
    tiles = torch.tensor([0, 1], dtype=torch.int32).expand(1, 2, 2)[..., None].contiguous()
    counts = torch.ones(1, 2, 2, dtype=torch.int32)
    named = {
        "q": q, "k": k, "v": v, "tiles": tiles, "counts": counts, "grid": (2, 4, 4), "tile": (2, 4, 2),
        "q_start": 0, "kv_start": 0, "key_padding": None, "scale": 0.25,
    }  # fmt: skip
    return tuple((named | changed).values())


def same(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    return all(map(torch.equal, got, wanted))


@pytest.mark.quick
def test_all_leaves_have_a_kernel_of_ours_for_gpus():
    for leaf in ("select", "attend", "attend_backward"):
        for key in ("CUDA", "XPU"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"vsa_compile::{leaf}", key)


@pytest.mark.quick
def test_a_served_call_runs_the_triton_kernels(on_a_gpu: pytest.MonkeyPatch, caplog):
    on_a_gpu.setattr(eager, "operator", lambda name: lambda *_: f"the kernels of {name}")
    assert eager.run("attend", *attend_arguments()) == "the kernels of attend"
    assert not caplog.records


@pytest.mark.quick
def test_an_unsupported_call_runs_aten_after_one_line(on_a_gpu: pytest.MonkeyPatch, caplog):
    on_a_gpu.setattr(eager, "operator", lambda _: lambda *_: "the kernels")
    arguments = attend_arguments(torch.float64)
    for _ in range(2):
        assert same(eager.run("attend", *arguments), aten.attend(AttendArgs(*arguments)))
    (record,) = caplog.records
    expected = "vsa_compile::attend runs through chunked ATen: torch.float64 has no tensor core path"
    assert (record.levelname, record.message) == ("INFO", expected)


@pytest.mark.quick
@pytest.mark.parametrize(
    "changed",
    [
        {"q_start": 1},
        {"tiles": torch.zeros(1, 2, 3, 1, dtype=torch.int32)},
        {"counts": torch.ones(1, 2, 2, dtype=torch.int64)},
        {"counts": torch.ones(1, 2, 2, dtype=torch.int32, device="meta")},
        {"k": torch.randn(1, 2, 32, 32)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_call_that_does_not_fit_together_reaches_no_kernel(changed: dict, on_a_gpu: pytest.MonkeyPatch):
    on_a_gpu.setattr(eager, "operator", lambda _: lambda *_: "the kernels")
    with pytest.raises(ArgumentError, match=next(iter(changed))):
        eager.run("attend", *attend_arguments(**changed))


@pytest.mark.quick
def test_kernels_that_do_not_compile_are_one_warning_and_one_try(on_a_gpu: pytest.MonkeyPatch, caplog):
    tries = []

    def fails(*_: object) -> None:
        tries.append(1)
        raise NotImplementedError

    on_a_gpu.setattr(eager, "operator", lambda _: fails)
    arguments = attend_arguments()
    for _ in range(2):
        assert same(eager.run("attend", *arguments), aten.attend(AttendArgs(*arguments)))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "chunked ATen" in record.message
    assert len(tries) == 1


@pytest.mark.quick
def test_without_triton_an_eager_call_runs_aten_after_one_warning(on_a_gpu: pytest.MonkeyPatch, caplog):
    on_a_gpu.setitem(sys.modules, "triton", None)
    on_a_gpu.setattr(eager, "operator", eager._operator.__wrapped__)
    arguments = attend_arguments()
    for _ in range(2):
        assert same(eager.run("attend", *arguments), aten.attend(AttendArgs(*arguments)))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "pip install 'vsa-compile[gpu]'" in record.message
    assert "chunked ATen" in record.message


@pytest.mark.quick
def test_a_lack_of_memory_is_not_taken_for_a_lack_of_kernels(on_a_gpu: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    on_a_gpu.setattr(eager, "operator", lambda _: full)
    with pytest.raises(torch.OutOfMemoryError):
        eager.run("attend", *attend_arguments())
    assert not eager._broken


@pytest.mark.quick
@pytest.mark.parametrize("threads", [2, 8])
def test_threads_that_come_at_once_make_one_operator(threads: int):
    """Torch lets no name be defined twice: of two threads, one would fail for good."""
    eager._operator.cache_clear()
    together = threading.Barrier(threads)

    def first() -> Callable:
        together.wait()
        return eager.operator("select")

    defined = torch.library.triton_op

    def slowly(*arguments: Any, **facts: Any) -> Callable:
        time.sleep(0.05)
        return defined(*arguments, **facts)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(threads) as pool:
        patch.setattr(torch.library, "triton_op", slowly)
        made = [done.result() for done in [pool.submit(first) for _ in range(threads)]]
    assert len(set(map(id, made))) == 1


@pytest.mark.quick
@pytest.mark.parametrize(
    ("more", "wrong"),
    [((3,), None), ((8,), "at_most"), ((0,), "at_most"), ((3, torch.randn(1, 2, 5)), None),
     ((3, torch.randn(1, 2, 4)), "threshold"), ((3, None, torch.ones(2, dtype=torch.int32)), "count"),
     ((3, None, torch.ones(())), "count")],
)  # fmt: skip
def test_a_selection_that_does_not_fit_reaches_no_kernel(
    more: tuple, wrong: str | None, on_a_gpu: pytest.MonkeyPatch
):
    on_a_gpu.setattr(eager, "operator", lambda _: lambda *_: "the kernels")
    if wrong is None:
        assert eager.run("select", torch.randn(1, 2, 5, 7), *more) == "the kernels"
    else:
        with pytest.raises(ArgumentError, match=wrong):
            eager.run("select", torch.randn(1, 2, 5, 7), *more)
