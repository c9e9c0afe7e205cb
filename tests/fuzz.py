"""Property tests for as long as you like: `make fuzz MINUTES=10`.

Every round runs each file that has properties with fresh random seeds and many more examples than CI
does. Failing examples stay in .hypothesis/ and are tried first next time.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def property_files() -> list[Path]:
    return [path for path in sorted(HERE.glob("test_*.py")) if "@given" in path.read_text()]


def run(path: Path, seed: int) -> tuple[bool, float]:
    """One file, one seed: (passed, seconds)."""
    started = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:xdist",
        str(path),
        "-k",
        "not subprocess",
    ]
    environment = os.environ | {"HYPOTHESIS_PROFILE": "fuzz"}
    shown = subprocess.run(
        [*command, f"--hypothesis-seed={seed}"], env=environment, capture_output=True, text=True
    )
    if shown.returncode:
        print(shown.stdout[-8000:], flush=True)
    return shown.returncode == 0, time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    deadline = time.monotonic() + 60 * parser.parse_args().minutes
    failures = rounds = 0
    while time.monotonic() < deadline:
        for path in property_files():
            seed = random.randrange(2**32)
            passed, seconds = run(path, seed)
            failures += not passed
            print(f"{'ok  ' if passed else 'FAIL'} {path.name} seed={seed} {seconds:.0f}s", flush=True)
        rounds += 1
    print(f"{rounds} rounds, {failures} failures")
    return failures


if __name__ == "__main__":
    sys.exit(main())
