"""The attention calls that the template tests are about: small, random, each with a sting in it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vsa_compile.grid import Grid, TileGrid
from vsa_compile.ops import reference


@dataclass(frozen=True)
class Case:
    """One call of vsa_compile::attend, or of its backward.

    q_other, kv_other: non-video tokens (before, after) the video. padding: rows of the key padding
    mask, 0 for none. layout: of q, k and v in memory. kept: tiles listed per row; ragged draws the
    counts from 0 .. kept. gated: adds gate * coarse. dynamic: all sizes symbolic. wide: 64-bit offsets.
    dyed: V is one-hot in the tile of its key, so that the output is the weight of every tile.
    backward: the call is one of vsa_compile::attend_backward. mute: grad_out has stride 0, as that of a sum.
    deep: all scores are far below 0, where the weight of a key that is not there would be infinite.
    maps: rendered for a GPU that reads tiles through tensor maps (Hopper), not for Ampere.
    q_grid, q_tile: of the video queries, where they are a raster of their own.
    """

    name: str
    dtype: torch.dtype = torch.float32
    grid: tuple[int, int, int] = (5, 6, 7)
    tile: tuple[int, int, int] = (4, 4, 4)
    width: int = 64
    batch: int = 1
    heads: int = 2
    kv_heads: int = 2
    q_other: tuple[int, int] = (0, 0)
    kv_other: tuple[int, int] = (0, 0)
    padding: int = 0
    layout: str = "heads_first"
    kept: int = 3
    ragged: bool = False
    gated: bool = False
    dynamic: bool = False
    wide: bool = False
    dyed: bool = False
    backward: bool = False
    mute: bool = False
    deep: bool = False
    maps: bool = False
    q_grid: tuple[int, int, int] | None = None
    q_tile: tuple[int, int, int] | None = None
    seed: int = 0

    @property
    def tiles(self) -> TileGrid:
        return TileGrid(Grid(*self.grid), self.tile)

    @property
    def q_tiles(self) -> TileGrid:
        return TileGrid(Grid(*(self.q_grid or self.grid)), self.q_tile or self.tile)

    @property
    def packed(self) -> tuple[Any, ...]:
        """q_grid and q_tile as the reference takes them; nothing where the queries have the keys' raster."""
        return () if self.q_grid is None else (self.q_tiles.grid, self.q_tiles.tile)

    def call(self) -> tuple[Callable, tuple, list[Tensor]]:
        """The function under test, its integers and its tensors."""
        return program(self), program_integers(self), program_tensors(self, make_inputs(self))


@dataclass(frozen=True)
class Inputs:
    """Tensors of one case. k and v hold NaN wherever nobody may look; `clean` are the same without.

    grad_out, out (B, Nq, H, D) and lse (B, H, Nq) are what a backward call takes besides.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    tiles: Tensor
    counts: Tensor
    padding: Tensor | None
    gate: Tensor | None
    coarse: Tensor | None
    clean_k: Tensor
    clean_v: Tensor
    grad_out: Tensor
    out: Tensor
    lse: Tensor


def make_inputs(case: Case) -> Inputs:
    """The same numbers on every call."""
    source = torch.Generator().manual_seed(case.seed + len(case.name))
    q_tokens = case.q_tiles.grid.tokens + sum(case.q_other)
    kv_tokens = case.tiles.grid.tokens + sum(case.kv_other)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source).to(case.dtype)

    q = normal(case.batch, case.heads, q_tokens, case.width)
    k, v = (normal(case.batch, case.kv_heads, kv_tokens, case.width) for _ in range(2))
    if case.deep:
        q, k = 8 * q.abs(), -8 * k.abs()
    if case.dyed:
        v = _dye(case, v)
    tiles, counts = _tile_lists(case, source)
    padding = None
    if case.padding:
        padding = torch.rand(case.padding, kv_tokens, generator=source) < 0.6
        padding[0, : case.kv_other[0]] = False  # a first block without any key
    gate = coarse = None
    if case.gated:
        gate, coarse = (normal(case.batch, q_tokens, case.heads, case.width) for _ in range(2))

    grad_out = normal(case.batch, q_tokens, case.heads, case.width)
    if case.mute:
        grad_out = torch.ones((), dtype=case.dtype).expand_as(grad_out)
    site = (tiles, counts, Grid(*case.grid), case.tile, case.q_other[0], case.kv_other[0], padding)
    scale = case.width**-0.5
    out, lse = reference.attend(q.double(), k.double(), v.double(), *site, scale, *case.packed)
    unseen = ~reference.allowed_keys(q, k, *site, *case.packed)
    unseen = unseen.all(2).unflatten(1, (case.kv_heads, -1)).all(2)[..., None]
    seen_k, seen_v = (x.masked_fill(unseen, math.nan) for x in (k, v))
    return Inputs(
        q, seen_k, seen_v, tiles, counts, padding, gate, coarse, clean_k=k, clean_v=v, grad_out=grad_out,
        out=out.to(case.dtype).contiguous(), lse=lse.to(torch.promote_types(case.dtype, torch.float32)),
    )  # fmt: skip


def _dye(case: Case, v: Tensor) -> Tensor:
    """One-hot in the tile, or in the next column for other keys; the last column is 1 (compare: rule B)."""
    label = torch.full((v.shape[2],), case.tiles.tiles)
    video = slice(case.kv_other[0], case.kv_other[0] + case.tiles.grid.tokens)
    label[video] = reference.tile_of_token(Grid(*case.grid), case.tile)
    dye = torch.nn.functional.one_hot(label, case.width)
    dye[:, -1] = 1
    return dye.to(v.dtype).expand_as(v).contiguous()


def _tile_lists(case: Case, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ascending random lists that leave one tile unseen (the second to last) if they can."""
    total = case.tiles.tiles
    shape = (case.batch, case.heads, case.q_tiles.tiles)
    luck = torch.rand(*shape, total, generator=source)
    if total > case.kept:
        luck[..., -2] = -1.0
    tiles = luck.topk(case.kept).indices.sort(-1).values.to(torch.int32)
    counts = torch.full(shape, case.kept, dtype=torch.int32)
    if case.ragged:
        counts = torch.randint(0, case.kept + 1, shape, generator=source, dtype=torch.int32)
        counts[..., 0] = 0
        counts[..., 1] = case.kept
    return tiles, counts


def program_tensors(case: Case, inputs: Inputs) -> list[Tensor]:
    """The tensors that `program(case)` takes, laid out in memory as the case asks."""
    q, k, v = inputs.q, inputs.k, inputs.v
    if case.layout == "packed":
        tensors = [torch.stack([q, k, v], dim=2).permute(0, 3, 2, 1, 4).contiguous()]
    elif case.layout == "tokens_first":
        tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    else:
        tensors = [q, k, v]
    if case.backward:
        tensors += [inputs.grad_out, inputs.out, inputs.lse]
    extra = [inputs.tiles, inputs.counts, inputs.padding, inputs.gate, inputs.coarse]
    return tensors + [x for x in extra if x is not None]


def program(case: Case) -> Callable:
    """The function under test: grid, starts, tensors -> (out, lse), or only out + gate * coarse, or the
    three gradients.

    The integers are arguments, so that they become symbols where all sizes shall be symbolic.
    """
    scale = case.width**-0.5

    def run(grid: list[int], starts: list[int], packed: tuple, *tensors: Tensor) -> Any:
        rest = list(tensors)
        if case.layout == "packed":
            q, k, v = (x.transpose(1, 2) for x in rest.pop(0).unbind(2))
        else:
            q, k, v = (rest.pop(0) for _ in range(3))
        saved = [rest.pop(0) for _ in range(3)] if case.backward else []
        tiles, counts = rest.pop(0), rest.pop(0)
        padding = rest.pop(0) if case.padding else None
        site = (grid, list(case.tile), *starts, padding)
        if case.backward:
            grad_out, *saved = saved
            witness = q.new_empty((*grid, 0))
            return torch.ops.vsa_compile.attend_backward(
                grad_out, *saved, witness, q, k, v, tiles, counts, *site, scale, *packed
            )
        out, lse, _ = torch.ops.vsa_compile.attend(q, k, v, tiles, counts, *site, scale, *packed)
        if case.gated:
            gate, coarse = rest
            return out + gate * coarse
        return out, lse

    return run


def program_integers(case: Case) -> tuple[list[int], list[int], tuple]:
    """The (frames, rows, cols), (q_start, kv_start) and (q_grid, q_tile) or () that `program(case)` takes."""
    return list(case.grid), [case.q_other[0], case.kv_other[0]], tuple(list(x) for x in case.packed)


_BOXES = ((4, 4, 4), (2, 4, 4), (4, 2, 8), (1, 4, 4))


def random_cases(seed: int, count: int) -> tuple[Case, ...]:
    """Calls that differ in everything a kernel could get wrong; names tell them apart."""
    chance = random.Random(seed)

    def others() -> tuple[int, int]:
        return chance.choice((0, 0, 1, 5, 33)), chance.choice((0, 0, 1, 5, 33))

    def one(index: int) -> Case:
        kv_heads, q_other = chance.choice((1, 2)), others()
        grid = tuple(chance.randint(1, 7) for _ in range(3))
        maps = chance.random() < 0.5
        tile = chance.choice(_BOXES) if maps else tuple(chance.randint(1, 4) for _ in range(3))
        tiles = TileGrid(Grid(*grid), tile).tiles
        width = chance.choice((16, 24, 32, 48, 64))
        return Case(
            f"random_{seed}_{index}",
            dtype=chance.choice((torch.float32, torch.float16, torch.bfloat16)), grid=grid,
            tile=tile, width=width, batch=chance.choice((1, 2)), kv_heads=kv_heads,
            heads=kv_heads * chance.choice((1, 2)), q_other=q_other,
            kv_other=chance.choice((q_other, others())), padding=chance.choice((0, 1)),
            layout=chance.choice(("heads_first", "tokens_first")), kept=min(tiles, chance.randint(1, 5)),
            ragged=tiles > 1 and chance.random() < 0.7, dynamic=chance.random() < 0.3,
            wide=chance.random() < 0.2, dyed=tiles < width - 1 and chance.random() < 0.3,
            backward=chance.random() < 0.5, maps=maps, seed=seed + index,
        )  # fmt: skip

    return tuple(one(index) for index in range(count))
