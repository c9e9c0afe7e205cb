"""The arguments of the subcommand."""

from __future__ import annotations

import argparse
from typing import Any

from . import plan as plans
from .plan import Plan
from .session import run


def add(commands: Any) -> None:
    """Add the subcommand to argparse; `run` of its namespace returns text and exit status."""
    about = "how fast our attention is against dense attention and FlexAttention, on this machine"
    parts = "; ".join(f"{part}: {text}" for part, text in plans.PARTS.items())
    command = commands.add_parser("bench", help=about, description=f"Measure {about}. Parts: {parts}.")
    command.add_argument("--device", help="cuda or cpu; without it a GPU if there is one")
    command.add_argument("--dtype", choices=plans.DTYPES, help="bf16 on a GPU, fp32 on a CPU, unless given")
    command.add_argument("--shapes", metavar="FxRxC,...", help="grids of tokens, such as 32x32x32,21x45x80")
    command.add_argument("--widths", metavar="D,...", help="head widths; 64,128 on a GPU")
    command.add_argument("--heads", type=int, metavar="H", help="16 on a GPU, 4 on a CPU")
    command.add_argument(
        "--densities", metavar="SHARE,...", help="shares of tiles that are kept; 0.0625,0.125,0.25"
    )
    command.add_argument("--lists", metavar="KIND,...", help=f"of {','.join(plans.LISTS)}; random,local")
    command.add_argument("--parts", metavar="PART,...", help="of those above; all")
    command.add_argument("--contenders", metavar="NAME,...", help=f"of {','.join(plans.CONTENDERS)}; all")
    command.add_argument("--repeats", type=int, metavar="N", help="samples of each; 30 on a GPU, 5 on a CPU")
    command.add_argument(
        "--quick",
        action="store_true",
        help="one shape, width, density and kind of list; 3 samples, no tuning",
    )
    command.add_argument(
        "--autotune", action="store_true", help="let Inductor time our configurations (max-autotune)"
    )
    command.add_argument(
        "--out", default="benchmarks/results", metavar="FOLDER", help="for bench_DEVICE.json and .png"
    )
    command.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> tuple[str, int]:
    return run(Plan.read(arguments), lambda text: print(text, flush=True)), 0
