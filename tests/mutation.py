"""Puts a fault into a copy of the sources, and runs the tests that should notice it.

A process for each fault is forked from one that has imported torch, as many at once as there are cores; the
test that noticed a fault last time runs first.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from syntax import NoPlaceError, replaced

ROOT = Path(__file__).parents[1]
FOLDERS = ("vsa_compile", "templates", "tests", "examples", "docs", "benchmarks")
COPIED = (*FOLDERS, "pyproject.toml", "CONTRIBUTING.md")
MEMORY = ROOT / ".pytest_cache" / "mutants.json"  # who noticed, and after how long: {name: [test, seconds]}


@dataclass(frozen=True)
class Mutant:
    """At one place of the sources, `right` becomes `wrong`; `tests` are pytest's arguments.

    file: a path from the root, and the function or class that holds the place: "path::Class.method".
    right: what the place says: Python as an expression or as statements, C++ as a run of tokens; see
        syntax.py. nth: which one, counted from 1, where the function says it several times.
    needs: instructions, as torch names them, without which the place is not compiled: on a processor that
        lacks them nobody can notice.
    """

    name: str
    what: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]
    nth: int = 0
    needs: str = ""

    def put_into(self, root: Path) -> None:
        """Raises AssertionError where the place is not there, or not the only one."""
        path, _, within = self.file.partition("::")
        language = "python" if path.endswith(".py") else "c++"
        try:
            text = replaced(
                (root / path).read_text(),
                self.right,
                self.wrong,
                language=language,
                within=within,
                nth=self.nth,
            )
            if language == "python":
                compile(text, path, "exec")
        except (NoPlaceError, SyntaxError) as error:
            raise AssertionError(f"{self.name}: {path}: {error}; adapt this fault to it") from None
        (root / path).write_text(text)


@dataclass
class Running:
    """A process forked from this one that runs a mutant's tests on a copy with the fault in it."""

    mutant: Mutant
    first: str  # the test that noticed it last time and alone runs now, "" where all run
    folder: tempfile.TemporaryDirectory
    pid: int
    started: float

    @classmethod
    def start(cls, mutant: Mutant, first: str = "") -> Running:
        folder = tempfile.TemporaryDirectory()
        root = Path(folder.name)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, root / name)
        mutant.put_into(root)
        started, pid = time.monotonic(), os.fork()
        if not pid:
            _run_tests(root, [first] if first else mutant.tests)
        return cls(mutant, first, folder, pid, started)

    def outcome(self, status: int) -> str | None:
        """The test that noticed the fault; None if none did, or none is there. Raises AssertionError where
        pytest could not run."""
        name, output = self.mutant.name, (Path(self.folder.name) / "output").read_text()
        self.folder.cleanup()
        if os.WIFSIGNALED(status):  # a wrong address may end the process before a test can fail
            return f"crash of {self.mutant.tests[0]}: signal {os.WTERMSIG(status)}"
        code = os.waitstatus_to_exitcode(status)
        if code == pytest.ExitCode.NO_TESTS_COLLECTED:
            return None
        if code not in (0, 1):
            raise AssertionError(f"{name}: pytest could not run:\n{output[-5000:]}")
        noticed = re.search(r"^(?:FAILED|ERROR) (\S+(?: \S+)*?)(?: - |$)", output, re.M)
        if code == 1 and noticed is None:
            raise AssertionError(f"{name}: pytest failed without a failed test:\n{output[-5000:]}")
        return noticed and noticed[1]


def _run_tests(root: Path, tests: Sequence[str]) -> NoReturn:
    """In the forked process: what `make test` runs of the tests, in the copy; its output is put beside it."""
    code: int = pytest.ExitCode.INTERNAL_ERROR
    try:
        output = os.open(root / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(root)
        os.environ |= {"HYPOTHESIS_PROFILE": "mutants", "PYTHONPATH": str(root)}
        sys.path[0] = str(root)  # it was this file's folder
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_all(mutants: Sequence[Mutant], jobs: int) -> Iterator[tuple[Mutant, str | None, float]]:
    """(mutant, the test that noticed it, seconds), as they come; those that took longest start first."""
    for slow in ("torch._dynamo", "torch._inductor.compile_fx"):  # once, for every process to come
        importlib.import_module(slow)
    known = json.loads(MEMORY.read_text()) if MEMORY.exists() else {}
    waiting = sorted(mutants, key=lambda mutant: known.get(mutant.name, ["", math.inf])[1])
    running: dict[int, Running] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            one = Running.start(mutant, known.get(mutant.name, [""])[0])
            running[one.pid] = one
        pid, status = os.wait()
        one = running.pop(pid)
        if one.first and os.WIFEXITED(status) and os.WEXITSTATUS(status) != pytest.ExitCode.TESTS_FAILED:
            one = Running.start(one.mutant)  # the test that noticed it has gone, or notices it no more
            running[one.pid] = one
            continue
        noticed, seconds = one.outcome(status), time.monotonic() - one.started
        known[one.mutant.name] = ["" if noticed is None or noticed.startswith("crash") else noticed, seconds]
        MEMORY.parent.mkdir(exist_ok=True)
        MEMORY.write_text(json.dumps(known, indent=1))
        yield one.mutant, noticed, seconds
