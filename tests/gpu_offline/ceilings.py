"""Compiles the variants of benchmarks/ceilings.py for Hopper, on a machine without a GPU.

    python -m gpu_offline.ceilings FOLDER

writes FOLDER/ceilings.json: for every head width, way to read tiles and variant the instructions of all its
code, and those of its loop over the listed tiles.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gpu_offline.fake_cuda import fake_cuda
from gpu_offline.offline import disassembled
from gpu_offline.plain import machine_code
from gpu_offline.rendering import TARGETS
from vsa_compile.grid import TileGrid
from vsa_compile.ops.gpu import render
from vsa_compile.tools.bench.lists import Lists

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import ceilings

WORK = {"HGMMA", "LDGSTS", "UTMALDG", "LDG"}


def instructions(lines: list[str]) -> dict[str, int]:
    """How often each occurs, without its modifiers, but for the kinds of MUFU."""
    code = (re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z0-9]+)(\.[A-Z0-9]+)?", line) for line in lines)
    return dict(Counter("".join(x.groups("")) if x[1] == "MUFU" else x[1] for x in code if x is not None))


def loops(lines: list[str]) -> Iterator[list[str]]:
    """From every label to a branch back to it."""
    labels = {match[1]: i for i, line in enumerate(lines) if (match := re.match(r"(\.L_x_\d+):", line))}
    for i, line in enumerate(lines):
        target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
        if target is not None and labels[target[1]] < i:
            yield lines[labels[target[1]] : i + 1]


def counted(lines: list[str]) -> dict[str, dict[str, int]]:
    """Instructions of all code, and of the shortest loop that works: others wait, or go through the whole."""
    working = (found for found in map(instructions, loops(lines)) if WORK & found.keys())
    return {"all": instructions(lines), "loop": min(working, key=lambda found: sum(found.values()))}


def main(folder: Path) -> None:
    boxes = TileGrid(ceilings.GRID, ceilings.TILE)
    rows = (1, ceilings.HEADS, boxes.tiles)
    found: dict[str, dict[str, Any]] = {}
    with fake_cuda(TARGETS["sm_90"]), FakeTensorMode():
        tiles = torch.empty(*rows, boxes.tiles // 8, dtype=torch.int32, device="cuda")
        lists = Lists("random", 0.125, tiles, torch.empty(rows, dtype=torch.int32, device="cuda"))
        for width in ceilings.WIDTHS:
            shape = (1, ceilings.GRID.tokens, ceilings.HEADS, width)
            q, k, v = (torch.empty(shape, dtype=torch.bfloat16, device="cuda").transpose(1, 2) for _ in "qkv")
            for reads in ceilings.READS:
                ready = ceilings.forward(q, k, v, lists, maps=reads == "tensor maps")
                for name, variant in ceilings.VARIANTS.items():
                    kernel = render.load(variant.of(ready.source))
                    lines = disassembled(machine_code(kernel, ready.grid, ready.arguments)).splitlines()
                    found[f"{name}, {reads}, D {width}"] = counted(lines)
        read = {"X": tiles, render.OUTPUT: tiles, "blocks": 960, "rounds": ceilings.ROUNDS}
        read |= {"BLOCK": ceilings.BLOCK, "num_warps": 8}
        lines = disassembled(machine_code(render.load(ceilings.L2_READ), (1056,), read)).splitlines()
        found["L2 read"] = counted(lines)
    (folder / "ceilings.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
