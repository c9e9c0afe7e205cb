"""The attention calls that the template tests are about: small, random, each with a sting in it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vsa_compile import reference
from vsa_compile.grid import Grid, TileGrid


@dataclass(frozen=True)
class Case:
    """One call of vsa::attend, or of its backward.

    q_other, kv_other: non-video tokens (before, after) the video. padding: rows of the key padding
    mask, 0 for none. layout: of q, k and v in memory. kept: tiles listed per row; ragged draws the
    counts from 0 .. kept. gated: adds gate * coarse. dynamic: all sizes symbolic. wide: 64-bit offsets.
    dyed: V is one-hot in the tile of its key, so that the output is the weight of every tile.
    backward: the call is one of vsa::attend_backward. mute: grad_out has stride 0, as that of a sum.
    deep: all scores are far below 0, where the weight of a key that is not there would be infinite.
    maps: rendered for a GPU that reads tiles through tensor maps (Hopper), not for Ampere.
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
    seed: int = 0

    @property
    def tiles(self) -> TileGrid:
        return TileGrid(Grid(*self.grid), self.tile)

    def call(self) -> tuple[Callable, tuple, list[Tensor]]:
        """The function under test, its integers and its tensors."""
        return program(self), program_integers(self), program_tensors(self, make_inputs(self))


CASES = (
    Case("ragged_grid_and_counts", heads=1, kv_heads=1, ragged=True),
    Case("token_major_fp16", torch.float16, layout="tokens_first", ragged=True),
    Case("full_tiles_width_96_bf16", torch.bfloat16, grid=(4, 8, 8), width=96, kept=2),
    Case("odd_tile_width_48", grid=(3, 7, 5), tile=(2, 3, 3), width=48, ragged=True),
    Case("tile_of_several_blocks", grid=(3, 8, 9), tile=(2, 8, 8), width=16, heads=1, kv_heads=1, kept=2),
    Case(
        "text_on_both_sides_with_padding", grid=(3, 5, 6), width=16, batch=2, kv_heads=1, q_other=(3, 70),
        kv_other=(3, 70), padding=2, kept=2, ragged=True,
    ),
    Case(
        "text_of_different_lengths_bf16", torch.bfloat16, grid=(3, 5, 6), width=64, batch=2, q_other=(5, 0),
        kv_other=(0, 20), padding=1, kept=2,
    ),
    Case("text_keys_without_mask_fp16", torch.float16, grid=(4, 5, 4), kv_other=(9, 0), kept=1, ragged=True),
    Case(
        "text_keys_behind_a_masked_block", grid=(3, 5, 6), width=16, heads=1, kv_heads=1, kv_other=(70, 10),
        padding=1, kept=2, ragged=True,
    ),
    Case("packed_qkv_bf16", torch.bfloat16, layout="packed", ragged=True),
    Case("gated", grid=(5, 4, 6), kept=2, gated=True),
    Case("gated_bf16", torch.bfloat16, grid=(5, 4, 6), kept=2, gated=True, layout="tokens_first"),
    Case("dyed", dyed=True, ragged=True),
    Case(
        "dyed_text_bf16", torch.bfloat16, grid=(3, 5, 6), batch=2, kv_heads=1, q_other=(3, 9),
        kv_other=(3, 9), padding=2, kept=2, ragged=True, dyed=True,
    ),
    Case("symbolic_sizes", dynamic=True, q_other=(2, 0), kv_other=(2, 0), ragged=True),
    Case(
        "wide_offsets", grid=(3, 5, 6), width=16, heads=4, q_other=(0, 4), kv_other=(0, 4), padding=1, kept=2,
        wide=True,
    ),
)  # fmt: skip

BACKWARD = tuple(
    replace(case, name=f"backward_{case.name}", backward=True)
    for case in (
        Case("ragged_grid_and_counts", heads=1, kv_heads=1, ragged=True),
        Case("grouped_heads_fp16", torch.float16, kv_heads=1, layout="tokens_first", ragged=True),
        Case("full_tiles_width_96_bf16", torch.bfloat16, grid=(4, 8, 8), width=96, kept=2),
        Case("odd_tile_width_48", grid=(3, 7, 5), tile=(2, 3, 3), width=48, ragged=True),
        Case("tile_of_several_blocks", grid=(2, 9, 8), tile=(2, 8, 8), width=16, heads=1, kv_heads=1, kept=2),
        Case(
            "many_tiles", grid=(33, 2, 3), tile=(2, 2, 2), width=16, heads=1, kv_heads=1, kept=4, ragged=True,
        ),
        Case("deep_scores_fp16", torch.float16, grid=(3, 5, 6), width=16, kept=2, deep=True),
        Case(
            "text_on_both_sides_with_padding", grid=(3, 5, 6), width=16, batch=2, kv_heads=1, q_other=(3, 40),
            kv_other=(3, 70), padding=2, kept=2, ragged=True,
        ),
        Case(
            "text_of_different_lengths_bf16", torch.bfloat16, grid=(3, 5, 6), batch=2, q_other=(5, 0),
            kv_other=(0, 20), padding=1, kept=2,
        ),
        Case(
            "text_keys_alone_fp16", torch.float16, grid=(4, 5, 4), width=32, kv_other=(9, 0), kept=1,
            ragged=True,
        ),
        Case("text_queries_alone", grid=(3, 4, 5), width=16, q_other=(2, 4), kept=1, ragged=True, mute=True),
        Case("packed_qkv_bf16", torch.bfloat16, grid=(4, 5, 6), layout="packed", ragged=True),
        Case(
            "symbolic_sizes", grid=(3, 5, 6), width=16, dynamic=True, q_other=(2, 0), kv_other=(2, 0), kept=2,
            ragged=True,
        ),
        Case(
            "wide_offsets", grid=(3, 5, 6), width=16, heads=4, q_other=(0, 4), kv_other=(0, 4), padding=1,
            kept=2, wide=True,
        ),
    )
)  # fmt: skip

# Read through tensor maps wherever those can be: each with another reason why they might be wrong.
MAPPED = tuple(
    replace(case, name=f"mapped_{case.name}", maps=True)
    for case in (
        Case("ragged_grid_and_counts", ragged=True),
        Case("token_major_fp16", torch.float16, layout="tokens_first", batch=2, kv_heads=1, ragged=True),
        Case("packed_width_48_bf16", torch.bfloat16, width=48, layout="packed", ragged=True),
        Case("tile_of_several_blocks", grid=(5, 8, 9), tile=(4, 8, 4), width=16, heads=1, kv_heads=1, kept=2),
        Case(
            "text_on_both_sides_with_padding", grid=(3, 5, 6), width=16, batch=2, kv_heads=1, q_other=(3, 70),
            kv_other=(3, 70), padding=2, kept=2, ragged=True,
        ),
        Case("text_keys_alone", grid=(4, 5, 4), width=16, kv_other=(9, 0), kept=1, ragged=True, dyed=True),
        Case("symbolic_sizes", dynamic=True, q_other=(2, 0), kv_other=(2, 0), ragged=True),
        Case(
            "wide_offsets", grid=(3, 5, 6), width=16, heads=4, q_other=(0, 4), kv_other=(0, 4), kept=2,
            wide=True,
        ),
    )
)  # fmt: skip
# A sum's gradient has stride 0, which no tensor map reads: dK and dV take pointers, dQ does not.
_MUTE = Case("mapped_mute", grid=(3, 4, 5), width=16, kept=1, ragged=True, mute=True, maps=True)
MAPPED = (
    *MAPPED,
    *(
        replace(case, name=f"backward_{case.name}", backward=True)
        for case in (*MAPPED, _MUTE)
        if not case.dyed
    ),
)
# Its rows are not 16 bytes apart.
UNMAPPED = Case("unaligned_width_20_bf16", torch.bfloat16, width=20, ragged=True, maps=True)

# Rendered as under mode="max-autotune", in the last configuration of their row.
AUTOTUNED = (
    Case("autotuned_bf16", torch.bfloat16, grid=(4, 5, 6), kv_heads=1, ragged=True, kv_other=(0, 5)),
    Case("autotuned_backward_bf16", torch.bfloat16, grid=(4, 5, 6), kv_heads=1, ragged=True, backward=True),
)


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
    video = case.tiles.grid.tokens
    q_tokens, kv_tokens = video + sum(case.q_other), video + sum(case.kv_other)

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
    out, lse = reference.attend(q.double(), k.double(), v.double(), *site, case.width**-0.5)
    unseen = ~reference.allowed_keys(q, k, *site)
    unseen = unseen.all(2).unflatten(1, (case.kv_heads, -1)).all(2)[..., None]
    seen_k, seen_v = (x.masked_fill(unseen, math.nan) for x in (k, v))
    return Inputs(
        q, seen_k, seen_v, tiles, counts, padding, gate, coarse, clean_k=k, clean_v=v, grad_out=grad_out,
        out=out.to(case.dtype).contiguous(), lse=lse.float(),
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
    shape = (case.batch, case.heads, total)
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

    def run(grid: list[int], starts: list[int], *tensors: Tensor) -> Any:
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
            return torch.ops.vsa.attend_backward(
                grad_out, q, k, v, *saved, tiles, counts, *site, scale, witness
            )
        out, lse, _ = torch.ops.vsa.attend(q, k, v, tiles, counts, *site, scale)
        if case.gated:
            gate, coarse = rest
            return out + gate * coarse
        return out, lse

    return run


def program_integers(case: Case) -> tuple[list[int], list[int]]:
    """The (frames, rows, cols) and (q_start, kv_start) that `program(case)` takes."""
    return list(case.grid), [case.q_other[0], case.kv_other[0]]


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
