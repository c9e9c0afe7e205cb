"""The smallest cases of the parity suite, for a sanitizer: python -m gpu.small_cases, in the folder tests.

Under compute-sanitizer a kernel takes a hundred times as long, hence few cases, and no judge: what is wrong
is a stray access, whatever the numbers are.
"""

from __future__ import annotations

import sys

import torch
from attend_cases import through_autograd

from gpu.generator import Program, call, program
from vsa_compile import vsa

PROGRAMS = 10


def smallest(drawn: Program) -> int:
    """The case with the fewest tokens among the first ten."""
    return min(range(10), key=lambda number: drawn.sizes(number)[0].tokens)


def main(device: str) -> None:
    for number in range(PROGRAMS):
        drawn = program(number)
        attend = drawn.attend()
        if device == "cuda":
            attend = torch.compile(attend, backend=vsa, fullgraph=True, dynamic=True)
        through_autograd(call(attend), drawn.on(device, drawn.case(smallest(drawn))))
        print(f"ran {drawn}", flush=True)
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
