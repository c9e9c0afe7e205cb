"""Our own sources are part of every cache key: an edit of any of them is seen, in this process and in others.

An edit has to miss Inductor's own cache too, behind AOTAutograd's: different options may well lower to the
same graph, different kernels must not.
"""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cached import DENSE, OPTIONS, Run, assert_found_with_the_same_bits, by_hand, halved

from vsa_compile import backend, methods
from vsa_compile.ops.cpu import loader
from vsa_compile.ops.gpu import templates

pytestmark = pytest.mark.no_cover

ROOT = Path(__file__).parents[1]


def sources(root: Path) -> list[Path]:
    kinds = (".py", ".cpp", ".h", ".jinja")
    found = [*(root / "vsa_compile").rglob("*"), *(root / "templates").rglob("*")]
    return sorted(path.relative_to(root) for path in found if path.suffix in kinds)


def copy_package(root: Path) -> Path:
    for folder in ("vsa_compile", "templates"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture(autouse=True)
def _second_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.registry._METHODS, "halved", halved)
    monkeypatch.setattr(methods.registry._digests, "halved", "of_the_tests", raising=False)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_package(tmp_path_factory.mktemp("package"))


@pytest.fixture
def copied(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package whose files are the ones that go into the key; the code that runs stays ours."""
    monkeypatch.setattr(backend, "__file__", str(package / "vsa_compile" / "backend.py"))
    monkeypatch.setattr(templates, "__file__", str(package / "vsa_compile" / "ops" / "gpu" / "templates.py"))
    forget()
    yield package
    forget()


def forget() -> None:
    backend.source_hash.cache_clear()
    templates.template_folder.cache_clear()


@pytest.mark.parametrize("relative", sources(ROOT), ids=str)
def test_a_change_in_any_source_changes_the_hash_of_all(relative: Path, copied: Path) -> None:
    first, path = backend.source_hash(), copied / relative
    original = path.read_bytes()
    path.write_bytes(original + b"\n")
    forget()
    assert backend.source_hash() != first
    path.write_bytes(original)
    forget()
    assert backend.source_hash() == first


ONE_OF_A_KIND = {path.suffix: path for path in sources(ROOT)}.values()


@pytest.mark.parametrize("relative", ONE_OF_A_KIND, ids=str)
def test_a_change_in_a_source_misses(relative: Path, copied: Path) -> None:
    first = DENSE()
    path = copied / relative
    original = path.read_bytes()
    path.write_bytes(original + b"\n")
    forget()
    changed = DENSE()
    assert not changed.found
    assert not changed.found_code
    path.write_bytes(original)
    forget()
    assert_found_with_the_same_bits(DENSE, first)


def test_version_new_file_and_lost_file_miss(copied: Path) -> None:
    DENSE()
    init, header = copied / "vsa_compile" / "__init__.py", copied / "vsa_compile" / "ops" / "cpu" / "rows.h"
    text, lost = init.read_text(), header.read_bytes()
    assert '"0.1.0"' in text
    for edit, undo in (
        (lambda: init.write_text(text.replace("0.1.0", "0.1.1")), lambda: init.write_text(text)),
        (lambda: header.with_name("new.h").touch(), lambda: header.with_name("new.h").unlink()),
        (header.unlink, lambda: header.write_bytes(lost)),
        (
            lambda: header.rename(copied / "vsa_compile" / "ops" / "rows.h"),
            lambda: (copied / "vsa_compile" / "ops" / "rows.h").rename(header),
        ),
    ):
        edit()
        forget()
        changed = DENSE()
        assert not changed.found
        assert not changed.found_code
        undo()
        forget()
        assert DENSE().found


@pytest.mark.parametrize("run", [Run(function=lambda: by_hand), DENSE], ids=["by-hand", "converted"])
def test_our_operators_are_keyed_by_our_sources_whoever_put_them_there(run: Run, copied: Path) -> None:
    run()
    assert run().found
    path = copied / "vsa_compile" / "methods" / "vsa.py"
    original = path.read_text()
    path.write_text(original + "# changed\n")
    forget()
    changed = run()
    path.write_text(original)
    assert not changed.found
    assert not changed.found_code


@pytest.mark.parametrize("options", [{"sparsity": 0.75}, {"tile": (1, 1, 1)}, {"method": "halved"}], ids=str)
def test_nothing_of_ours_is_in_the_key_of_a_model_without_our_operators(
    options: dict[str, Any], copied: Path
) -> None:
    """Found under other options and other sources of ours, and by backend="inductor" too."""
    plain = Run(function=lambda: torch.sin)
    first = plain()
    path = copied / "vsa_compile" / "grid.py"
    original = path.read_text()
    path.write_text(original + "# changed\n")
    forget()
    for other in (
        Run(function=plain.function, options=options),
        Run(function=plain.function, backend="inductor"),
    ):
        assert_found_with_the_same_bits(other, first)
    path.write_text(original)


# --- processes ------------------------------------------------------------------------------------

PROGRAM = """
import json, sys, torch
import torch.nn.functional as F
torch.set_num_threads(1)
gain = torch.ones((), requires_grad=True)
def attend(latents, gain):
    tokens = latents.flatten(2).transpose(1, 2)[:, None]
    return F.scaled_dot_product_attention(tokens, tokens, tokens * gain)
latents = torch.linspace(-3, 3, 512).sin().reshape(1, 16, 2, 4, 4)
out = torch.compile(attend, backend="vsa", options={options!r})(latents, gain)
out.square().sum().backward()
seen = torch._dynamo.utils.counters
assert seen["vsa_compile"] == {{"converted": 1}}
caches = [seen["aot_autograd"][f"autograd_cache_{{kind}}"] for kind in ("hit", "miss")]
print(json.dumps([caches, float(out.double().sum()), float(gain.grad)]))
"""


def start(package: Path, tag: str) -> subprocess.Popen:
    """A process that compiles forward and backward with the package in this folder.

    The tag makes the caches empty for it, as a folder of its own would; but C++ that did not change, torch's
    precompiled headers above all, is not built again.
    """
    code = PROGRAM.format(options=OPTIONS)
    environment = os.environ | {"TORCH_COMPILE_CACHE_KEY_TAG": tag, "PYTHONPATH": str(package)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=package
    )


def result(process: subprocess.Popen) -> list:
    """[[hits, misses], sum of the output, gradient of the gain on the values]."""
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_processes_share_a_folder_and_an_edited_backward_is_seen(tmp_path: Path) -> None:
    """Processes that begin at once with empty caches agree; after an edit of the backward the old
    gradient is not found, and once the edit is undone the first result is found again, not the new one."""
    package, tag = copy_package(tmp_path / "package"), str(uuid.uuid4())
    results = [result(process) for process in [start(package, tag) for _ in range(2)]]
    assert all(sum(caches) == 1 for caches, *_ in results)
    (_, out, gradient), *others = results
    assert all(other[1:] == [out, gradient] for other in others)

    if loader.kernel(loader.variants()[0]):
        name, old, new = "ops/cpu/backward.h", "slices, grad_v, 1.f)", "slices, grad_v, 2.f)"
    else:
        name, old, new = "ops/aten.py", "(grad_v, v))", "(2 * grad_v, v))"
    path = package / "vsa_compile" / name
    original = path.read_text()
    assert original.count(old) == 1
    path.write_text(original.replace(old, new))
    assert result(start(package, tag)) == [[0, 1], out, 2 * gradient]
    path.write_text(original)
    assert result(start(package, tag)) == [[1, 0], out, gradient]
