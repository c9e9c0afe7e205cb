"""The table of bad inputs: what comes in, and what exactly comes of it.

The tests check every row to the letter, and docs/bad_inputs.md shows the same rows. `python
tests/bad_inputs` writes that page again.
"""

from __future__ import annotations

import re
from pathlib import Path

from . import calls, contents, heads, machines, modes, settings, shapes, values
from .row import Row, fits, happened

PAGE = Path(__file__).parents[2] / "docs" / "bad_inputs.md"

TITLES = {
    "X1": "The grid does not fit the number of tokens",
    "X2": "The grid is not known",
    "X3": "Frames, rows or cols are 0",
    "X4": "No batch, no heads, no width",
    "X5": "One token",
    "X6": "Head widths",
    "X7": "Values as wide as keys",
    "X8": "Grouped-query attention",
    "X9": "A batch that is broadcast",
    "X10": "Mixed types and devices",
    "X11": "Types",
    "X12": "Strides",
    "X13": "Misaligned memory",
    "X14": "Offsets beyond 2^31",
    "X15": "Views, and changes in place between forward and backward",
    "X16": "NaN and infinity surface in exactly the tokens that read them",
    "X17": "Constant video",
    "X18": "Denormal numbers",
    "X19": "Masks",
    "X20": "Dropout",
    "X21": "Causal attention",
    "X22": "The scale",
    "X23": "enable_gqa",
    "X24": "Options and arguments",
    "X25": "Devices",
    "X26": "Triton is missing or unknown",
    "X27": "Inductor's cache folder",
    "X28": "Tensor subclasses",
    "X29": "torch.export",
    "X30": "torch.func",
    "X31": "Threads",
    "X32": "A shard of the sequence",
}

_PARTS = (shapes, heads, values, contents, calls, settings, machines, modes)
TABLE: tuple[Row, ...] = tuple(
    sorted((row for part in _PARTS for row in part.ROWS), key=lambda row: int(row.id[1:]))
)

_OPENING = """\
# Bad inputs

What happens to inputs that are wrong, unusual or extreme: an error that says what came, what is allowed and
the way out; a call that stays dense, with its reason; or the right result. "A model" goes through
`torch.compile(model, backend="vsa")`; everything else is `vsa_compile.attention`, by hand, unless it says so.

The tests check every line to the letter, on 60 tokens as a grid of 3x4x5 with tiles of 2x2x2. "The reference"
is `vsa_compile/ops/reference.py` in float64. A text that ends in ... is torch's own.

This page is written by `python tests/bad_inputs`.
"""


def _cell(text: str) -> str:
    return re.sub(r"([|*<_\[\]])", r"\\\1", text)


def page() -> str:
    """The text of docs/bad_inputs.md."""
    parts = [_OPENING]
    for name, title in TITLES.items():
        rows = [f"| {_cell(row.given)} | {_cell(row.outcome)} |" for row in TABLE if row.id == name]
        parts.append(
            "\n".join([f"## {name}: {title}\n", "| what comes in | what happens |", "|---|---|", *rows, ""])
        )
    return "\n".join(parts)


__all__ = ["PAGE", "TABLE", "TITLES", "Row", "fits", "happened", "page"]
