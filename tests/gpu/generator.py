"""10,000 seeded calls of vsa_compile::attend: 100 programs, and 100 cases of each.

A program is what is compiled: dtype, layout, head width and groups, tile, where text is, whether there is
padding. A case is data: grid, lengths of text, density, lists. Sizes are symbolic, so that the cases of a
program share its kernels and all of them take minutes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from attend_cases import LAYOUTS, Case, laid_out, make_case

from vsa_compile.grid import Grid, Tile, TileGrid

PROGRAMS = 100
CASES = 100
MOST_PAIRS = 1_000_000  # of queries and keys: the judge, on the CPU, writes them out in fp64
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS = (64, 128, 64, 128, 16, 32, 40, 80, 96, 256)
TILES: tuple[Tile, ...] = ((4, 4, 4), (4, 4, 4), (2, 2, 2), (2, 4, 8), (1, 8, 8), (3, 5, 2), (1, 1, 16))
TEXT = ("none", "none", "before", "after", "both", "keys", "queries")
DENSITIES = (0.05, 0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Program:
    """What the cases of a program have in common. flat: the axis of the grid that has one token, or None."""

    number: int
    dtype: torch.dtype
    layout: str
    width: int
    tile: Tile
    batch: int
    heads: int
    kv_heads: int
    text: str
    padding: int
    ragged: bool
    scale: float | None
    flat: int | None

    def __str__(self) -> str:
        """The id of its test: the seed first."""
        names = (f"seed{self.number}", str(self.dtype).removeprefix("torch."), self.layout, f"D{self.width}")
        return "-".join((*names, "x".join(map(str, self.tile)), f"H{self.heads}of{self.kv_heads}", self.text))

    def case(self, number: int) -> Case:
        """Case `number` of this program, on the CPU."""
        grid, lengths = self.sizes(number)
        draw = random.Random(f"density {self.number} {number}")
        tiles = TileGrid(grid, self.tile).tiles
        return make_case(
            self.number * CASES + number, batch=self.batch, heads=self.heads, kv_heads=self.kv_heads,
            grid=tuple(grid), tile=self.tile, listed=max(2, round(draw.choice(DENSITIES) * tiles)),
            ragged=self.ragged, padding=self.padding, width=self.width, dtype=self.dtype, layout=self.layout,
            scale=self.scale, **lengths,
        )  # fmt: skip

    def sizes(self, number: int) -> tuple[Grid, dict[str, int]]:
        """The grid of a case, up to two tiles and a bit along each axis, and the lengths of its text."""
        draw = random.Random(self.number * CASES + number)
        while True:
            sizes = [draw.randint(2, 2 * edge + 3) for edge in self.tile]
            if self.flat is not None:
                sizes[self.flat] = 1
            grid, lengths = Grid(*sizes), self._lengths(draw)
            tokens, tiles = grid.tokens + sum(lengths.values()), TileGrid(grid, self.tile).tiles
            # Lists of one tile would be another program, as a grid of one tile would.
            if tiles > 1 and self.batch * self.heads * tokens**2 <= MOST_PAIRS:
                return grid, lengths

    def _lengths(self, draw: random.Random) -> dict[str, int]:
        """Tokens before and after the video. A size of 1 would be a constant, and another program."""
        before, after = (draw.choice((2, 3, 17, 70)) for _ in range(2))
        return {
            "none": {},
            "before": {"before": before},
            "after": {"after": after},
            "both": {"before": before, "after": after},
            "keys": {"kv_before": before, "kv_after": after},
            "queries": {"before": before, "after": after, "kv_before": 0, "kv_after": 0},
        }[self.text]

    def attend(self) -> Callable:
        """vsa_compile::attend with the constants of the program bound; takes the operator's arguments."""
        tile, scale = list(self.tile), self.width**-0.5 if self.scale is None else self.scale

        def attend(
            q: Any, k: Any, v: Any, tiles: Any, counts: Any, grid: Any, starts: Any, padding: Any
        ) -> Any:
            return torch.ops.vsa_compile.attend(
                q, k, v, tiles, counts, list(grid), tile, *starts, padding, scale
            )  # fmt: skip

        return attend

    def on(self, device: str, case: Case) -> Case:
        """The case on another device, in the program's layout, which a copy between devices does not keep."""

        def laid(x: torch.Tensor) -> torch.Tensor:
            return laid_out(x.contiguous().to(device), self.layout)

        moved = replace(case, q=laid(case.q), k=laid(case.k), v=laid(case.v)).to(device)
        return replace(moved, grad_out=laid(case.grad_out.transpose(1, 2)).transpose(1, 2))


def program(number: int) -> Program:
    """Program `number`: every dtype with every layout, everything else drawn."""
    draw = random.Random(number)
    kv_heads, batch = draw.choice((1, 2)), draw.choice((1, 2))
    text = draw.choice(TEXT)
    return Program(
        number=number, dtype=DTYPES[number % 3], layout=LAYOUTS[number // 3 % 5], width=draw.choice(WIDTHS),
        tile=draw.choice(TILES), batch=batch, heads=kv_heads * draw.choice((1, 1, 2, 3)), kv_heads=kv_heads,
        text=text, padding=draw.choice((0, 1, batch)) if text != "none" else 0,
        ragged=draw.random() < 0.5, scale=draw.choice((None, None, 0.1)),
        flat=draw.choice((None, None, None, 0, 1, 2)),
    )  # fmt: skip


def call(attend: Callable) -> Callable:
    """`Program.attend`, compiled or not, under vsa_compile::attend's own arguments, as a judge calls it."""

    def run(q: Any, k: Any, v: Any, tiles: Any, counts: Any, grid: Any, _tile: Any, *rest: Any) -> Any:
        q_start, kv_start, padding, _scale = rest
        return attend(q, k, v, tiles, counts, tuple(grid), (q_start, kv_start), padding)

    return run
