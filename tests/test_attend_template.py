"""The GPU kernel of vsa::attend, without a GPU: what is rendered, what it computes, what it compiles to."""

import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from gpu_offline.cases import CASES, Case, make_inputs, program, program_integers, program_tensors
from gpu_offline.comparison import verdict
from gpu_offline.faults import FAULTS
from gpu_offline.offline import Build, load_builds
from gpu_offline.program import Program
from gpu_offline.steps import run_once

from vsa_compile import gpu, torch_compat
from vsa_compile.gpu import configs, lowering, templates

BY_NAME = {case.name: case for case in CASES}

# (program, target) -> registers per thread, KiB of shared memory, spilled bytes at most, matrix instruction.
# 168 registers are 3 programs on an SM of Hopper, 255 are 2.
GOLDEN = {
    ("bf16_width_64_sm80", "sm_80"): ((140, 168), (24, 24), 0, "HMMA"),
    ("bf16_width_64_sm90", "sm_90"): ((95, 128), (40, 40), 0, "HGMMA"),
    ("bf16_width_128_sm80", "sm_80"): ((190, 230), (56, 56), 0, "HMMA"),
    ("bf16_width_128_sm90", "sm_90"): ((140, 168), (80, 80), 0, "HGMMA"),
    ("bf16_width_128_sm90", "sm_100"): ((150, 184), (80, 81), 0, "UTCHMMA"),
    ("bf16_width_128_sm90", "gfx942"): ((200, 320), (40, 40), 0, "v_mfma"),
    ("bf16_width_128_ragged_sm90", "sm_90"): ((140, 168), (80, 80), 0, "HGMMA"),
    # Two words outside of the loop over tiles.
    ("bf16_width_128_text_sm80", "sm_80"): ((220, 255), (56, 56), 8, "HMMA"),
    ("bf16_width_128_text_sm90", "sm_90"): ((140, 168), (80, 80), 0, "HGMMA"),
    ("bf16_width_256_sm80", "sm_80"): ((230, 255), (104, 104), 0, "HMMA"),
    ("bf16_width_256_sm90", "sm_90"): ((230, 255), (160, 160), 0, "HGMMA"),
    # Exact fp32 has no matrix instruction on NVIDIA.
    ("fp32_width_128_sm80", "sm_80"): ((80, 128), (72, 73), 0, None),
    ("fp32_width_128_sm90", "sm_90"): ((80, 128), (72, 73), 0, None),
    # A whole method with its gate in the epilogue; all sizes symbolic; 64-bit offsets; a tile in parts.
    ("method", "sm_90"): ((95, 150), (40, 40), 0, "HGMMA"),
    ("symbolic_sizes", "sm_90"): ((60, 128), (40, 41), 0, None),
    ("wide_offsets", "sm_90"): ((60, 128), (16, 17), 0, None),
    ("tile_of_several_blocks", "sm_90"): ((60, 128), (16, 17), 0, None),
}

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all rendered programs; the same one for all xdist workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "gpu_offline"
    folder.mkdir(exist_ok=True)
    run_once(folder, "rendering")
    return folder


@pytest.fixture(scope="session")
def finished(folder: Path) -> Path:
    """The folder once all kernels are interpreted and compiled, both at the same time."""
    jobs = [f"{name}:{target}" for name, target in GOLDEN]
    with ThreadPoolExecutor(2) as pool:
        steps = [
            pool.submit(run_once, folder, "offline", *jobs),
            pool.submit(run_once, folder, "interpreter", TRITON_INTERPRET="1"),
        ]
    for step in steps:
        step.result()
    return folder


@pytest.fixture(scope="session")
def outcome(finished: Path) -> Callable:
    """Name of a case or fault -> what its interpreted program returned."""
    return lambda name: torch.load(finished / f"{name}.pt")


@pytest.fixture(scope="session")
def builds(finished: Path) -> dict[tuple[str, str], Build]:
    return load_builds(finished)


# --- what is computed -------------------------------------------------------------------------


@each_case
def test_the_rendered_kernel_computes_what_the_reference_says(case: Case, outcome: Callable):
    assert verdict(case, outcome(case.name)) is None


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_is_noticed(name: str, outcome: Callable):
    assert verdict(BY_NAME[FAULTS[name].noticed_by], outcome(name)) is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_case
def test_a_real_gpu_computes_what_the_reference_says(case: Case):
    assert gpu.register()
    tensors = [x.cuda() for x in program_tensors(case, make_inputs(case))]
    with torch.no_grad():
        compiled = torch.compile(program(case), fullgraph=True, dynamic=case.dynamic)
        outputs = compiled(*program_integers(case), *tensors)
    outputs = [outputs] if case.gated else outputs
    assert verdict(case, [x.cpu() for x in outputs]) is None


def test_on_cpu_the_operator_keeps_its_eager_kernel():
    assert gpu.register()
    case = BY_NAME["text_keys_behind_a_masked_block"]
    tensors = program_tensors(case, make_inputs(case))
    with torch.no_grad():
        outputs = torch.compile(program(case), fullgraph=True)(*program_integers(case), *tensors)
    assert verdict(case, list(outputs)) is None


# --- what is rendered -------------------------------------------------------------------------


@each_case
def test_a_call_is_one_kernel_and_nothing_else(case: Case, folder: Path):
    program = Program.load(folder / f"{case.name}.json")
    assert len(program.template_kernels) == len(program.kernels) == 1
    assert "extern_kernels" not in program.calls
    assert "torch.ops" not in program.calls


@pytest.mark.parametrize("case", [case for case in CASES if case.gated], ids=lambda case: case.name)
def test_gate_and_coarse_fuse_into_the_kernel(case: Case, folder: Path):
    program = Program.load(folder / f"{case.name}.json")
    buffers = re.findall(r"= empty_strided_cuda\((.*)\)", program.calls)
    assert len(buffers) == 2, "lse and the gated sum; out itself is never stored"


def test_a_whole_gated_method_ends_in_the_kernel(folder: Path):
    program = Program.load(folder / "method.json")
    (kernel,) = program.template_kernels
    assert len(program.kernels) == 3, "tile means, softmax of the scores, and the kernel"
    assert program.calls.index(kernel) == program.calls.rindex(".run(") - len(kernel)


def test_scores_stay_in_single_precision(builds: dict):
    for item in builds.values():
        assert not {"DADD", "DMUL", "DFMA"} & set(item.instructions), item


def test_symbolic_grids_are_arguments_of_the_kernel(folder: Path):
    program = Program.load(folder / "symbolic_sizes.json")
    (source,) = program.template_kernels.values()
    for name in ("frames", "rows", "cols", "q_start", "kv_start"):
        assert re.search(rf"^ +{name} = .*\bks\d", source, re.M), name


def test_64_bit_offsets_are_used_where_they_are_needed(folder: Path):
    for name, width in (("wide_offsets", 64), ("ragged_grid_and_counts", 32)):
        (source,) = Program.load(folder / f"{name}.json").template_kernels.values()
        assert f"INDEX_DTYPE : tl.constexpr = tl.int{width}" in source


def test_what_the_template_does_not_serve_runs_eagerly(folder: Path):
    program = Program.load(folder / "fp64.json")
    assert "torch.ops.vsa.attend.default(" in program.calls
    assert not program.kernels


# --- what it compiles to ----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "target"), GOLDEN, ids=map("-".join, GOLDEN))
def test_machine_code_stays_in_its_golden_range(name: str, target: str, builds: dict):
    item = builds[name, target]
    (least, most), (least_kib, most_kib), spills, matrix = GOLDEN[name, target]
    assert least <= item.registers <= most, item
    assert least_kib <= item.shared_bytes / 1024 <= most_kib, item
    assert item.spills <= spills, item
    assert matrix is None or item.instructions.get(matrix), item


# --- registration, configurations, files ------------------------------------------------------


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.register.cache_clear()
    yield
    monkeypatch.undo()
    gpu.register.cache_clear()
    assert gpu.register()


@pytest.mark.quick
def test_registering_twice_is_free(unregistered: None):
    assert gpu.register()
    assert gpu.register()
    assert gpu.register.cache_info().hits == 1


@pytest.mark.quick
def test_an_unknown_template_interface_is_one_warning(
    unregistered: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(torch_compat, "triton_template", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING, "vsa_compile.gpu"):
        assert not gpu.register()
        assert not gpu.register()
    (record,) = caplog.records
    assert "chunked ATen" in record.message


@pytest.mark.quick
def test_a_template_that_does_not_lower_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(lowering, "_unsupported", lambda *_: None)
    q = SimpleNamespace(get_device=lambda: torch.device("cuda"))
    lowering._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "vsa_compile.gpu"):
        for _ in range(2):
            assert lowering.lower_attend(None, lambda *_: "eager", q) == "eager"
    assert len(caplog.records) == 1


@pytest.mark.quick
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_gpu_and_width_has_a_configuration(capability, dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    for width in (16, 40, 64, 96, 128, 192, 256):
        config = configs.attend_config(torch.device("cuda"), dtype, width)
        assert config.block_q >= 16
        assert config.block_k >= 16


@pytest.mark.quick
def test_gpus_before_ampere_have_no_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert configs.family(torch.device("cuda")) is None


@pytest.mark.quick
def test_templates_are_found_in_the_source_tree():
    assert {item.name for item in templates.template_files()} >= {"attend_fwd.py.jinja", "notation.py.jinja"}
    assert "def_kernel" in templates.template_source("attend_fwd")


@pytest.mark.quick
def test_templates_of_a_wheel_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wheel = tmp_path / "_templates"
    wheel.mkdir()
    (wheel / "a.py.jinja").write_text("from the wheel")
    monkeypatch.setattr(templates, "files", lambda _: tmp_path)
    templates.template_folder.cache_clear()
    try:
        assert templates.template_source("a") == "from the wheel"
    finally:
        templates.template_folder.cache_clear()


@pytest.mark.quick
def test_missing_templates_say_where_they_were_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(templates, "files", lambda _: tmp_path)
    monkeypatch.setattr(templates, "__file__", str(tmp_path / "a" / "b" / "templates.py"))
    templates.template_folder.cache_clear()
    with pytest.raises(FileNotFoundError, match="Reinstall it from a wheel"):
        templates.template_folder()
    templates.template_folder.cache_clear()
