"""Property tests for as long as you like: `make fuzz MINUTES=10`.

Every family of properties gets the same share of the time: its tests run with fresh random seeds and as
many more cases than in CI as fit; the adversary of the analysis runs 20,000 however long they take. Failing
cases stay in .hypothesis/ and are tried first next time; one that was a real defect belongs into the test as
an @example.

    python tests/fuzz.py --minutes 60 --families attend selection
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
MOST = 200  # times CI's number of cases, in one run
LEAST = {"adversary": 91}  # times CI's number of cases, however long they take: 20,000


@dataclass
class Tally:
    """What a family has run: cases, properties that failed, seconds."""

    cases: int = 0
    mismatches: int = 0
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        self.cases += other.cases
        self.mismatches += other.mismatches
        self.seconds += other.seconds


def properties(*files: str) -> Callable[[int], Tally]:
    """Runs the hypothesis tests of these files with `scale` times as many cases as CI."""

    def run(scale: int) -> Tally:
        started = time.monotonic()
        seed = random.randrange(2**32)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "--hypothesis-show-statistics"]
        command += [f"--hypothesis-seed={seed}", *(str(TESTS / name) for name in files), "-m", "hypothesis"]
        environment = os.environ | {"HYPOTHESIS_PROFILE": "fuzz", "HYPOTHESIS_SCALE": str(scale)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        failed = re.findall(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.M)
        if done.returncode not in (0, 1) or (done.returncode and not failed):
            raise RuntimeError(f"pytest could not run {files}:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
        if failed:
            print(f"seed {seed}, {scale} times CI's cases:\n{_without_statistics(done.stdout)}", flush=True)
        counts = re.findall(r"(\d+) passing.*?, (\d+) failing", done.stdout)
        cases = sum(int(passing) + int(failing) for passing, failing in counts)
        return Tally(cases, len(failed), time.monotonic() - started)

    return run


def _without_statistics(output: str) -> str:
    return output.split("Hypothesis Statistics")[0][-12000:]


def template(scale: int) -> Tally:
    """Random calls of the GPU kernels, forward, backward and selection: rendered, interpreted, judged."""
    import torch
    from gpu_offline.cases import random_cases
    from gpu_offline.comparison import verdict
    from gpu_offline.selections import Selection, random_selections
    from gpu_offline.steps import run_once

    started, seed, count = time.monotonic(), random.randrange(2**31), 10 * scale
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_once(folder, "rendering", "random", str(seed), str(count))
        run_once(folder, "interpreter", str(seed), str(count), TRITON_INTERPRET="1")
        results = [(case, verdict) for case in random_cases(seed, count)]
        results += [(case, Selection.verdict) for case in random_selections(seed, count)]
        for case, judge in results:
            reason = judge(case, torch.load(folder / f"{case.name}.pt"))
            if reason is not None:
                failed += 1
                print(f"{case}\n    {reason}", flush=True)
    return Tally(2 * count, failed, time.monotonic() - started)


def threads(scale: int) -> Tally:
    """Prepared models in four threads, with contexts entered and left at random: 5 minutes at scale 15."""
    from soak import soak

    started = time.monotonic()
    try:
        calls, mismatches = sum(soak(20 * scale).seen.values()), 0
    except AssertionError as error:
        print(error, flush=True)
        calls, mismatches = 0, 1
    return Tally(calls, mismatches, time.monotonic() - started)


FAMILIES: dict[str, Callable[[int], Tally]] = {
    "tiles": properties("test_grid.py"),
    "axes": properties("test_axes.py"),
    "selection": properties("test_select.py"),
    "attend": properties("test_attend.py"),
    "relations": properties("test_attend_relations.py"),
    "template": template,
    "models": properties("test_random_models.py"),
    "adversary": properties("test_adversary.py"),
    "threads": threads,
}


def spend(run: Callable[[int], Tally], share: float, least: int = 1) -> Tally:
    """Run with as many cases as fit into `share` seconds, at least `least` times CI's number."""
    total, last, scale = Tally(), run(least), least
    total.add(last)
    while (affordable := int((share - total.seconds) / last.seconds * scale)) >= 1:
        scale = min(MOST, affordable)
        last = run(scale)
        total.add(last)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the property tests for a while.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES))
    arguments = parser.parse_args()
    share = 60 * arguments.minutes / len(arguments.families)
    tallies = {}
    for name in arguments.families:
        tallies[name] = tally = spend(FAMILIES[name], share, LEAST.get(name, 1))
        print(
            f"{name:12} {tally.cases:9,} cases {tally.mismatches:4} mismatches {tally.seconds:6.0f} s",
            flush=True,
        )
    mismatches = sum(tally.mismatches for tally in tallies.values())
    print(f"{sum(tally.cases for tally in tallies.values()):,} cases, {mismatches} mismatches")
    return min(mismatches, 1)


if __name__ == "__main__":
    sys.exit(main())
