"""The GPU kernel of vsa_compile::attend: what is rendered and compiled. Results: test_template_results.py."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from gpu_offline.cases import Case, make_inputs, program, program_integers, program_tensors
from gpu_offline.comparison import verdict
from gpu_offline.golden import GOLDEN, each_group, each_kernel, group_of
from gpu_offline.program import Program, kind_of
from gpu_offline.tables import CASES

from vsa_compile import torch_compat
from vsa_compile.ops import gpu
from vsa_compile.ops.gpu import configs, lowering, templates

pytest_plugins = ["gpu_offline.fixtures"]

BY_NAME = {case.name: case for case in CASES}

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_on_cpu_the_operator_keeps_its_eager_kernel():
    assert gpu.register()
    case = BY_NAME["text_keys_behind_a_masked_block"]
    tensors = program_tensors(case, make_inputs(case))
    with torch.no_grad():
        outputs = torch.compile(program(case), fullgraph=True)(*program_integers(case), *tensors)
    assert verdict(case, list(outputs)) is None


# --- what is rendered -------------------------------------------------------------------------


@each_case
def test_a_call_is_one_kernel_and_nothing_else(case: Case, finished: Path):
    program = Program.load(finished / f"{case.name}.json")
    assert len(program.template_kernels) == len(program.kernels) == 1
    assert "extern_kernels" not in program.calls
    assert "torch.ops" not in program.calls


@pytest.mark.parametrize("case", [case for case in CASES if case.gated], ids=lambda case: case.name)
def test_gate_and_coarse_fuse_into_the_kernel(case: Case, finished: Path):
    program = Program.load(finished / f"{case.name}.json")
    buffers = re.findall(r"= empty_strided_cuda\((.*)\)", program.calls)
    assert len(buffers) == 2, "lse and the gated sum; out itself is never stored"


def test_a_whole_gated_method_ends_in_the_kernel(finished: Path):
    program = Program.load(finished / "method.json")
    kinds = {kind_of(source): name for name, source in program.template_kernels.items()}
    assert kinds.keys() == {"select", "attend_fwd"}
    assert len(program.kernels) == 5, "tokens of the tiles, their means, softmax of the scores, and these"
    kernel = kinds["attend_fwd"]
    assert program.calls.index(kernel) == program.calls.rindex(".run(") - len(kernel)


@each_group
def test_scores_stay_in_single_precision(group: str, builds: Callable):
    for item in builds(group).values():
        assert not {"DADD", "DMUL", "DFMA"} & set(item.instructions), item


def test_symbolic_grids_are_arguments_of_the_kernel(finished: Path):
    program = Program.load(finished / "symbolic_sizes.json")
    (source,) = program.template_kernels.values()
    for name in ("frames", "rows", "cols", "q_start", "kv_start"):
        assert re.search(rf"^ +{name} = .*\bks\d", source, re.M), name


def test_64_bit_offsets_are_used_where_they_are_needed(finished: Path):
    for name, width in (("wide_offsets", 64), ("ragged_grid_and_counts", 32)):
        (source,) = Program.load(finished / f"{name}.json").template_kernels.values()
        assert f"INDEX_DTYPE : tl.constexpr = tl.int{width}" in source


def test_what_the_template_does_not_serve_runs_eagerly(finished: Path):
    program = Program.load(finished / "fp64.json")
    assert "torch.ops.vsa_compile.attend.default(" in program.calls
    assert not program.kernels


# --- what it compiles to ----------------------------------------------------------------------


@each_kernel
def test_machine_code_stays_in_its_golden_range(name: str, target: str, kind: str, builds: Callable):
    item, wanted = builds(group_of(name, target))[name, target, kind], GOLDEN[name, target, kind]
    assert wanted.registers[0] <= item.registers <= wanted.registers[1], item
    assert wanted.shared_kib[0] <= item.shared_bytes / 1024 <= wanted.shared_kib[1], item
    assert item.spills <= wanted.spills, item
    assert wanted.matrix is None or item.instructions.get(wanted.matrix), item


# --- registration, configurations, files ------------------------------------------------------


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu._register.cache_clear()
    yield
    monkeypatch.undo()
    gpu._register.cache_clear()
    assert gpu.register()


@pytest.mark.quick
def test_registering_twice_is_free(unregistered: None):
    assert gpu.register()
    assert gpu.register()
    assert gpu._register.cache_info().hits == 1


@pytest.mark.quick
def test_an_unknown_template_interface_is_one_warning(
    unregistered: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(torch_compat, "triton_template", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING, "vsa_compile.gpu"):
        assert not gpu.register()
        assert not gpu.register()
    (record,) = caplog.records
    assert "plain Triton kernels" in record.message


@pytest.mark.quick
@pytest.mark.parametrize("name", lowering.LEAVES)
def test_a_template_that_does_not_lower_is_one_warning(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object) -> None:
        raise NotImplementedError

    kind = SimpleNamespace(of=lambda *_: None)
    module = SimpleNamespace(TEMPLATES=(), unsupported=lambda *_: None, lower=fails)
    monkeypatch.setitem(lowering.LEAVES, name, lowering.LEAVES[name]._replace(kind=kind, lowering=module))
    q = SimpleNamespace(get_device=lambda: torch.device("cuda"))
    lowering._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "vsa_compile.gpu"):
        for _ in range(2):
            assert lowering.lower(name, lambda *_: "eager", q) == "eager"
    (record,) = caplog.records
    assert "plain Triton kernels" in record.message


@pytest.mark.quick
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_gpu_and_width_has_configurations(capability, dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    for width in (16, 40, 64, 96, 128, 192, 256):
        for kernel in ("forward", "dq", "dkdv"):
            found = configs.choices(kernel, torch.device("cuda"), dtype, width)
            assert len(set(found)) == len(found) >= 1
            assert all(config.block_q >= 16 and config.block_k >= 16 for config in found)


@pytest.mark.quick
def test_gpus_before_ampere_have_no_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert configs.family(torch.device("cuda")) is None


@pytest.mark.quick
def test_templates_are_found_in_the_source_tree():
    names = {item.name.removesuffix(".py.jinja") for item in templates.template_files()}
    assert names >= {"attend_fwd", "attend_dq", "attend_dkdv", "select", "notation"}
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
    monkeypatch.setattr(templates, "__file__", str(tmp_path / "a" / "b" / "c" / "templates.py"))
    templates.template_folder.cache_clear()
    with pytest.raises(FileNotFoundError, match="Reinstall it from a wheel"):
        templates.template_folder()
    templates.template_folder.cache_clear()
