"""README runs as written: its Python blocks, in order, in one namespace; what it shows is what they print."""

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch._dynamo.utils import counters

from vsa_compile import torch_compat

ROOT = Path(__file__).parents[1]
CONVERTING = ("fast(", "pipe(", "blocks(", "trained(", "convert_exported(")
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


@pytest.fixture(params=["graphs", pytest.param("inductor", marks=pytest.mark.slow)])
def compiler(request, monkeypatch) -> Iterator[str]:
    """Inductor takes minutes over all blocks, so that by default the converted graphs run as they are."""
    pytest.importorskip("diffusers")
    if request.param == "graphs":
        monkeypatch.setattr(torch_compat, "compile_with_inductor", lambda module, *_: module.forward)
    return request.param


@pytest.mark.no_cover
def test_the_blocks_run_in_order_in_one_namespace(compiler, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    printed = []
    for number, block in enumerate(blocks("python")):
        shown, before = io.StringIO(), counters["vsa_compile"]["converted"]
        with contextlib.redirect_stdout(shown):
            exec(compile(block, f"README.md, block {number}", "exec"), namespace)
        printed.append(shown.getvalue())
        if any(call in block for call in CONVERTING):
            assert counters["vsa_compile"]["converted"] > before, block
    (table,) = blocks("text")
    assert [text for text in printed if text == table], printed
    assert not list(tmp_path.iterdir())


@pytest.mark.quick
@pytest.mark.parametrize(("variant", "name"), [("avx512", "AVX-512"), ("avx2", "AVX2")])
def test_its_speeds_are_those_that_were_measured(variant: str, name: str):
    results = json.loads((ROOT / "benchmarks" / "results" / f"attention_cpu_{variant}.json").read_text())
    assert results["kernel"] == variant

    def cell(ratio: str, *dtypes: str) -> str:
        ratios = [row[ratio] for row in results["rows"] if row["dtype"] in dtypes and ratio in row]
        return f"{min(ratios):.1f}x to {max(ratios):.1f}x"

    cells = [cell(f"{part}_speedup", dtype) for dtype in ("fp32", "bf16") for part in ("forward", "both")]
    assert f"| {name} | {' | '.join([*cells, cell('fine_to_flex', 'fp32', 'bf16')])} |" in README


@pytest.mark.quick
def test_it_begins_with_the_installation():
    first = README.split("\n\n")[1]
    assert first.lstrip().startswith("pip install ")


@pytest.mark.quick
def test_every_file_that_it_names_is_there():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_the_blocks_have_no_type_error(tmp_path):
    """Towards us and torch: diffusers' annotations contradict how it is used, so that here it has none."""
    (tmp_path / "readme.py").write_text("\n".join(blocks("python")))
    (tmp_path / "typings").mkdir()
    (tmp_path / "typings/diffusers.pyi").write_text(
        "from typing import Any\ndef __getattr__(name: str) -> Any: ...\n"
    )
    config = {"include": ["readme.py"], "extraPaths": [str(ROOT)], "typeCheckingMode": "standard"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
