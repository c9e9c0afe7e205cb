"""The measurements: a table that grows meanwhile, and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from .clock import Spread
from .lists import SELECTED, Lists
from .plan import Plan
from .work import Work

Row: TypeAlias = dict[str, Any]  # one entry of a list in the JSON file
DENSE = ("cudnn", "flash")
HEADER = (
    "| grid | D | part | contender | density | lists | ms | middle half, ms | TFLOP/s | faster than dense | "
    "rate of dense |\n|---|--:|---|---|--:|---|--:|--:|--:|--:|--:|"
)
NOTES = {
    "tflops": "counts the query-key pairs that are attended to, of real tokens; not what a kernel computes",
    "speedup": "time of the fastest dense contender over this one's, medians of interleaved samples",
    "rate_ratio": "TFLOP/s over those of the fastest dense contender",
    "flex": "inputs in tile order, which is not timed; blocks of a tile; kernel_options tuned on the first "
    "lists of each head width",
    "tiled": "vsa on inputs that are in tile order already: what reading raster order costs",
    "coarse": "TFLOP/s of its two matrix products alone; it is bound by reading q, k and v",
}


@dataclass(frozen=True)
class Trial:
    """One contender in one part; without a density it is dense, without lists it chooses its own."""

    contender: str
    part: str
    density: float | None = None
    lists: Lists | None = None

    def named(self, work: Work) -> Row:
        """The fields that a row begins with."""
        kind = None
        if self.density is not None:
            kind = SELECTED if self.lists is None else self.lists.kind
        return {
            "grid": list(work.grid),
            "tokens": work.grid.tokens,
            "tiles": work.boxes.tiles,
            "fill": round(work.fill, 4),
            "width": work.width,
            "part": self.part,
            "contender": self.contender,
            "density": self.density,
            "lists": kind,
        }


@dataclass
class Results:
    """Rows, and what was left out and why. Written after every group of rows."""

    plan: Plan
    setting: Mapping[str, object]
    flushed_bytes: int
    roofs: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    left_out: list[Row] = field(default_factory=list)
    agreement: list[Row] = field(default_factory=list)
    flex: list[Row] = field(default_factory=list)
    kernel_log: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.plan.out / f"bench_{self.plan.device.type}.json"

    def leave_out(self, trial: Trial, work: Work, reason: str) -> None:
        self.left_out.append({**trial.named(work), "reason": reason})

    def add(self, work: Work, spreads: dict[Trial, Spread]) -> list[Row]:
        """Add and return the rows of contenders that were measured in turn."""
        rows = [
            {
                **trial.named(work),
                **asdict(spread),
                "flops": (flops := work.flops(trial.part, trial.density, trial.lists)),
                "least_bytes": work.least_bytes(trial.part),
                "tflops": flops / spread.median_ms / 1e9,
            }
            for trial, spread in spreads.items()
        ]
        dense = [row for row in rows if row["contender"] in DENSE]
        best = min(dense, key=lambda row: row["median_ms"]) if dense else None
        for row in rows:
            row["best_dense"] = best and best["contender"]
            row["speedup"] = best and best["median_ms"] / row["median_ms"]
            row["rate_ratio"] = best and row["tflops"] / best["tflops"]
        self.rows += rows
        return rows

    def write(self) -> Path:
        """Write the JSON file. Raises OSError."""
        self.plan.out.mkdir(parents=True, exist_ok=True)
        data = {
            **self.setting,
            "plan": self.plan.described(),
            "notes": NOTES,
            "l2_flush_bytes": self.flushed_bytes,
            "roofs": self.roofs,
            "rows": self.rows,
            "left_out": self.left_out,
            "agreement_with_flex": self.agreement,
            "flex_configurations": self.flex,
            "kernel_log": self.kernel_log,
        }
        self.path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        return self.path


def line(row: Row) -> str:
    """One row of the table under HEADER."""

    def number(value: float | None, unit: str = "") -> str:
        return "" if value is None else f"{value:.3g}{unit}"

    low, high = row["quartiles_ms"]
    cells = (
        "x".join(map(str, row["grid"])), row["width"], row["part"], row["contender"], number(row["density"]),
        row["lists"] or "", f"{row['median_ms']:.4g}", f"{low:.4g} - {high:.4g}", number(row["tflops"]),
        number(row["speedup"], "x"), number(row["rate_ratio"]),
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def left_out_lines(left_out: list[Row]) -> str:
    """Which contenders are missing in which parts, and why; each reason once."""
    parts: dict[tuple[str, str], list[str]] = {}
    for item in left_out:
        parts.setdefault((item["contender"], item["reason"]), []).append(item["part"])
    return "\n".join(
        f"left out: {contender} in {', '.join(dict.fromkeys(named))}: {reason}"
        for (contender, reason), named in parts.items()
    )
