"""benchmarks/ceilings.py: every version of the kernel lacks what its name says, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from once import shared_folder

pytest.importorskip("triton")

from gpu_offline.steps import run_once

from vsa_compile.grid import Grid, TileGrid
from vsa_compile.ops.gpu import render
from vsa_compile.tools.bench.lists import make_lists

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import ceilings  # noqa: E402

LOADS = ("LDG", "LDGSTS", "UBLKCP", "UTMALDG")
each_kernel = pytest.mark.parametrize(
    "kernel", [f"{reads}, D {width}" for width in ceilings.WIDTHS for reads in ceilings.READS]
)


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, int]]]:
    """ "<variant>, <reads>, D <width>" -> "all" and "loop" -> instruction -> count, compiled for Hopper."""
    folder = shared_folder(tmp_path_factory.getbasetemp(), "ceilings")
    run_once(folder, "ceilings")
    return json.loads((folder / "ceilings.json").read_text())


def loads(kernel: str) -> tuple[str, int]:
    """The instruction that loads the keys and values of a step, and how often a program of it has it."""
    if kernel.startswith("tensor maps"):
        return "UTMALDG", 2
    width = int(kernel.rpartition(" ")[2])
    return "LDGSTS", 2 * 64 * width * 2 // (128 * 16)  # 16 bytes each, by 128 threads


@pytest.mark.slow
@each_kernel
def test_the_full_kernel_has_what_the_others_lack(kernel: str, code: dict):
    full, (load, often) = code[f"full, {kernel}"], loads(kernel)
    assert full["loop"]["HGMMA"] > 0
    assert full["loop"]["MUFU.EX2"] > 0
    assert full["loop"][load] == often


@pytest.mark.slow
@each_kernel
def test_loads_only_multiplies_nothing_and_loads_as_much(kernel: str, code: dict):
    found, (load, often) = code[f"loads only, {kernel}"], loads(kernel)
    assert not {"HGMMA", "HMMA", "MUFU.EX2"} & found["all"].keys()
    number_of_the_tile = load == "LDGSTS"
    assert found["loop"][load] == often + number_of_the_tile


@pytest.mark.slow
@each_kernel
def test_dots_only_loads_nothing_in_its_loop_and_multiplies_as_much(kernel: str, code: dict):
    found, full = code[f"dots only, {kernel}"], code[f"full, {kernel}"]
    assert not set(LOADS) & found["loop"].keys()
    for name in ("HGMMA", "MUFU.EX2"):
        assert found["loop"][name] == full["loop"][name]


@pytest.mark.slow
@each_kernel
def test_no_exp_has_no_exponential_and_all_the_rest(kernel: str, code: dict):
    found, full = code[f"no exp, {kernel}"], code[f"full, {kernel}"]
    assert "MUFU.EX2" not in found["all"]
    for name in ("HGMMA", loads(kernel)[0]):
        assert found["loop"][name] == full["loop"][name]


@pytest.mark.slow
def test_no_version_spills(code: dict):
    for name, found in code.items():
        assert not {"STL", "LDL"} & found["all"].keys(), name


@pytest.mark.slow
def test_reads_of_the_cache_are_16_bytes_each(code: dict):
    assert code["L2 read"]["loop"]["LDG"] == ceilings.BLOCK * 4 // (8 * 32 * 16)


@pytest.mark.quick
def test_an_edit_that_fits_no_longer_is_an_error():
    source = render.Source("vsa_attend_fwd", "another kernel", (), (), ())
    for name, variant in ceilings.VARIANTS.items():
        if name == "full":
            assert variant.of(source) == source
        else:
            with pytest.raises(ValueError, match="adapt this edit"):
                variant.of(source)


@pytest.mark.quick
def test_same_lists_are_those_of_one_row():
    boxes = TileGrid(Grid(8, 8, 8), (4, 4, 4))
    lists = make_lists("same", 0.5, boxes, 2, torch.device("cpu"))
    assert lists.tiles.shape == (1, 2, 8, 4)
    assert bool((lists.tiles == lists.tiles[:, :1, :1]).all())
    assert bool((lists.tiles.diff(dim=-1) > 0).all())
    assert bool((lists.counts == 4).all())


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_without_a_gpu_it_says_so_in_a_line():
    command = [sys.executable, str(ROOT / "benchmarks" / "ceilings.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "benchmarks/ceilings.py needs a CUDA GPU, and torch finds none here.\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_writes_a_row_for_every_version(tmp_path: Path):
    command = [sys.executable, str(ROOT / "benchmarks" / "ceilings.py"), "--quick", "--json"]
    subprocess.run([*command, str(tmp_path / "x.json")], check=True, cwd=ROOT)
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == [*ceilings.VARIANTS, "L2 read"]
    assert all(row["median_ms"] > 0 for row in rows)
