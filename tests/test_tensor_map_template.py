"""The GPU kernels where they read tiles through tensor maps (TMA), without a GPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from gpu_offline.cases import Case
from gpu_offline.golden import each_group
from gpu_offline.program import Program, kind_of
from gpu_offline.tables import MAPPED, UNMAPPED

from vsa_compile.ops.gpu import configs

pytest_plugins = ["gpu_offline.fixtures"]

each_case = pytest.mark.parametrize("case", MAPPED, ids=lambda case: case.name)


def mapped(folder: Path, name: str) -> set[str]:
    """The templates whose kernels in a program read tiles through tensor maps."""
    sources = Program.load(folder / f"{name}.json").template_kernels.values()
    return {kind_of(source) for source in sources if "TMA : tl.constexpr = True" in source}


@each_case
def test_tiles_are_read_through_tensor_maps(case: Case, finished: Path):
    kinds = {"attend_dq", "attend_dkdv"} if case.backward else {"attend_fwd"}
    assert mapped(finished, case.name) == kinds - ({"attend_dkdv"} if case.mute else set())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(UNMAPPED.name, id="rows are no 16 bytes apart"),
        pytest.param("token_major_fp16", id="Ampere"),
        pytest.param("backward_grouped_heads_fp16", id="Ampere, backward"),
    ],
)
def test_the_rest_is_read_through_pointers(name: str, finished: Path):
    assert not mapped(finished, name)


@each_group
def test_loops_over_tiles_copy_by_tma_alone(group: str, builds: Callable):
    """Element-wise copies are left to the rows of non-video tokens and of the backward's lse and delta."""
    for (name, target, kind), item in builds(group).items():
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
