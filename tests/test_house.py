"""The house keeps its shape: who imports whom, how long files grow, what an import loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vsa_compile"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part may import: a part is a file or a folder at the top of the package, or a room of `ops`.
_BASE = {"grid", "errors", "torch_compat"}
ALLOWED = {
    "grid": set(),
    "errors": set(),
    "torch_compat": set(),
    "plan": _BASE,
    "methods": _BASE,
    "analysis": _BASE,
    "options": _BASE | {"plan"},
    "runtime": _BASE | {"plan", "options"},
    "ops": _BASE | {"plan", "methods", "options", "runtime"},
    "convert": _BASE | {"plan", "methods", "analysis", "options", "runtime", "ops"},
    "grids": _BASE | {"plan", "analysis", "options", "runtime", "ops", "convert"},
    "training": _BASE | {"plan", "methods", "analysis", "options", "runtime", "ops", "convert"},
    "report": _BASE | {"plan", "methods", "analysis", "options", "runtime", "ops", "convert", "grids"},
    "backend": _BASE
    | {"plan", "methods", "analysis", "options", "runtime", "ops", "convert", "grids", "training", "report"},
    "patch": _BASE | {"options", "runtime", "convert", "grids", "report", "backend"},
    "tools": _BASE | {"plan", "methods", "options", "ops", "convert", "report", "backend"},
}
# The specification and the kernels never import each other: one checks the other.
ALLOWED_IN_OPS = {
    "checks": set(),
    "args": {"checks"},
    "schema": {"args"},
    "reference": set(),
    "flops": {"args"},
    "break_even_table": set(),
    "break_even": {"break_even_table", "cpu", "gpu"},
    "functional": {"args"},
    "aten": {"args", "schema"},
    "cpu": {"args", "schema", "aten"},
    "gpu": {"args", "schema", "aten"},
}
OPEN = {"__init__", "__main__"}


def part_of(path: Path, depth: int = 0) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[depth] if len(relative.parts) > depth + 1 else relative.stem


def imported_parts(path: Path, *inside: str) -> set[str]:
    """The parts of vsa_compile (or of a folder of it) that a file imports, wherever it does."""
    here, folder = ("vsa_compile", *path.relative_to(PACKAGE).parent.parts), ["vsa_compile", *inside]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = [*here[: len(here) - node.level + 1], *(node.module.split(".") if node.module else [])]
            names = [[*module, alias.name] for alias in node.names]
            found |= {name[len(folder)] for name in names if name[: len(folder)] == folder}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    part = part_of(path)
    if part not in OPEN:
        assert imported_parts(path) - {part} <= ALLOWED[part]
    if part == "ops" and (room := part_of(path, 1)) not in OPEN:
        assert imported_parts(path, "ops") - {room} <= ALLOWED_IN_OPS[room]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_torch_apis_live_in_torch_compat(path):
    if path.parent.name == "torch_compat":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            assert not module.startswith(("torch._", "torch.fx.experimental")), f"{path.name}: {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


@pytest.mark.seconds
def test_import_loads_neither_triton_nor_inductor():
    code = (
        "import sys, torch; before = set(sys.modules); import vsa_compile; "
        "new = set(sys.modules) - before; "
        "heavy = ('triton', 'matplotlib', 'torch._inductor'); "
        "print([name for name in new if name.startswith(heavy)])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "[]"


@pytest.mark.seconds
def test_the_backend_is_listed_without_an_import_of_ours():
    code = (
        "import torch._dynamo, sys; assert 'vsa' in torch._dynamo.list_backends(); "
        "assert 'vsa_compile' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.seconds
def test_torch_logs_can_name_the_package():
    environment = {"TORCH_LOGS": "+vsa_compile", "PATH": ""}
    code = "import vsa_compile.backend as b; print(b.log.getEffectiveLevel())"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert shown.stdout.strip() == "10"
