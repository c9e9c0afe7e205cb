"""What a wheel carries: the templates, the C++ source, the type marker and the backend's entry point."""

import subprocess
import sys
import zipfile
from pathlib import Path

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
