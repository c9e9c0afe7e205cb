"""The GPU kernels where they read tiles through tensor maps (TMA), without a GPU."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from gpu_offline.cases import Case
from gpu_offline.comparison import on_gpu, verdict
from gpu_offline.faults import MAP_FAULTS
from gpu_offline.program import Program, kind_of
from gpu_offline.tables import MAPPED, UNMAPPED

from vsa_compile.gpu import configs

pytest_plugins = ["gpu_offline.fixtures"]

BY_NAME = {case.name: case for case in MAPPED}
each_case = pytest.mark.parametrize("case", MAPPED, ids=lambda case: case.name)


def maps(folder: Path, name: str) -> dict[str, int]:
    """Template -> how many tensor maps its kernel really makes."""
    program = Program.load(folder / f"{name}.json")
    kinds = {kind_of(source): source for source in program.template_kernels.values()}
    return {kind: len(re.findall(r"= tensor_map\(", text)) for kind, text in kinds.items() if wanted(text)}


def wanted(source: str) -> bool:
    return "TMA : tl.constexpr = True" in source


@each_case
def test_the_rendered_kernels_compute_what_the_reference_says(case: Case, outcome: Callable):
    assert verdict(case, outcome(case.name)) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_case
def test_a_real_gpu_computes_what_the_reference_says(case: Case):
    assert verdict(case, on_gpu(case)) is None


@pytest.mark.parametrize("name", MAP_FAULTS)
def test_a_seeded_fault_is_noticed(name: str, outcome: Callable):
    assert verdict(BY_NAME[MAP_FAULTS[name].noticed_by], outcome(name)) is not None


@each_case
def test_tiles_are_read_through_tensor_maps(case: Case, finished: Path):
    kinds = (
        {"attend_fwd"} if not case.backward else {"attend_dq"} if case.mute else {"attend_dq", "attend_dkdv"}
    )
    assert maps(finished, case.name).keys() == kinds


def test_rows_that_are_no_16_bytes_apart_are_read_through_pointers(finished: Path, outcome: Callable):
    assert not maps(finished, UNMAPPED.name)
    assert verdict(UNMAPPED, outcome(UNMAPPED.name)) is None


@pytest.mark.parametrize("name", ["ragged_grid_and_counts", "backward_ragged_grid_and_counts"])
def test_ampere_reads_through_pointers(name: str, finished: Path):
    assert not maps(finished, name)


def test_loops_over_tiles_copy_by_tma_alone(builds: dict):
    """Element-wise copies are left to the rows of non-video tokens and of the backward's lse and delta."""
    for (name, target, kind), item in builds.items():
        if not kind.startswith("attend") or "bf16_width" not in name or "text" in name:
            continue
        copies, boxes = (item.instructions.get(x, 0) for x in ("LDGSTS", "UTMALDG"))
        if target in ("sm_90", "sm_100"):
            assert boxes >= 2, item
            assert copies <= 4, item
        elif target != "sm_120":  # reads either way, see gpu/configs.py
            assert not boxes, item


@pytest.mark.parametrize(
    ("capability", "has"),
    [((8, 0), False), ((8, 9), False), ((9, 0), True), ((10, 3), True), ((12, 0), True)],
)
def test_nvidia_gpus_from_hopper_on_have_tensor_maps(capability, has, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert configs.has_tma(torch.device("cuda")) == has
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not configs.has_tma(torch.device("cuda"))
