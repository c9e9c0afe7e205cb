"""Which tiles are kept: the selection rule, and the scores that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from attend_cases import ATEN, ATEN_GPU, CPP, SLOWER, Kernel, each_kernel
from hypothesis import example, given
from hypothesis import strategies as st
from profiles import examples
from torch import Tensor

import vsa_compile
from vsa_compile import methods
from vsa_compile.grid import Grid, TileGrid, kept_tiles
from vsa_compile.ops import reference

each = each_kernel([ATEN[1], CPP[0], *SLOWER[:: len(CPP)], ATEN_GPU[1]])
numbers = st.sampled_from((0.0, -0.0, 1.0, 1.0, -1.0, 0.5, 1e-40, -1e-40, torch.inf, -torch.inf, torch.nan))
rows = st.lists(numbers | st.floats(width=32), min_size=1, max_size=70)


def select(kernel: Kernel, scores: Tensor, kept: int) -> Tensor:
    """The kept tiles, with everything checked that must hold for any scores."""
    with kernel.running():
        tiles, counts = (x.cpu() for x in torch.ops.vsa_compile.select(scores.to(kernel.device), kept))
    assert tiles.dtype == counts.dtype == torch.int32
    assert tiles.shape == (*scores.shape[:-1], kept)
    assert counts.shape == scores.shape[:-1]
    assert bool((counts == kept).all())
    assert bool((tiles[..., 1:] > tiles[..., :-1]).all()), "ascending, and so distinct"
    assert bool((tiles >= 0).all())
    assert bool((tiles < scores.shape[-1]).all())
    return tiles


# --- The rule ---------------------------------------------------------------------------------------


@each
@examples(80)
@example(row=[-0.0, 0.0, 0.0, 1.0], kept=2)
@example(row=[0.0, -0.0, torch.nan, -torch.nan, torch.inf], kept=3)
@example(row=[1.0, 1.0 + 2**-23, -1.0 - 2**-23, -1.0], kept=1)
@example(row=[-1.0 - 2**-23, -1.0], kept=1)
@given(row=rows, kept=st.integers(1, 70))
def test_it_keeps_the_highest_and_of_equals_the_first(kernel: Kernel, row: list[float], kept: int):
    """By hand: highest first, NaN before all, the lower id first where equal."""
    kept = min(kept, len(row))
    order = sorted(range(len(row)), key=lambda i: (row[i] == row[i], -row[i] if row[i] == row[i] else 0, i))
    tiles = select(kernel, torch.tensor(row).expand(2, 3, len(row)), kept)
    assert tiles.tolist() == [[sorted(order[:kept])] * 3] * 2
    assert torch.equal(reference.select(torch.tensor(row)[None], kept)[0][0], tiles[0, 0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_scores_of_any_type_are_ranked_as_they_are(dtype: torch.dtype):
    scores = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    wanted, got = reference.select(scores.double(), 7)[0], torch.ops.vsa_compile.select(scores, 7)[0]
    assert torch.equal(got, wanted)


@each
@examples(20)
@given(row=rows, data=st.data())
def test_more_tiles_keep_those_of_fewer(kernel: Kernel, row: list[float], data):
    fewer = data.draw(st.integers(1, len(row)))
    more = data.draw(st.integers(fewer, len(row)))
    scores = torch.tensor(row)
    assert set(select(kernel, scores, fewer).tolist()) <= set(select(kernel, scores, more).tolist())


@each
@examples(20)
@given(
    row=st.lists(st.integers(-99, 99), min_size=1, max_size=40),
    add=st.integers(-999, 999), power=st.integers(-9, 9), data=st.data(),
)  # fmt: skip
def test_shifting_and_scaling_scores_keeps_the_same(kernel: Kernel, row, add: int, power: int, data):
    """Integers and powers of two: exact in fp32, so that ties stay ties."""
    kept = data.draw(st.integers(1, len(row)))
    scores = torch.tensor(row, dtype=torch.float32)
    moved = (scores + add) * 2.0**power
    assert torch.equal(select(kernel, moved, kept), select(kernel, scores, kept))


@each
def test_many_rows_and_any_strides(kernel: Kernel):
    scores = torch.randn(2, 5, 90, 64, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    for x in (scores, scores.transpose(-1, -2), scores[:, ::2], scores[:1].expand(3, -1, -1, -1)):
        assert torch.equal(select(kernel, x, 11), reference.select(x, 11)[0])


@each
@pytest.mark.parametrize("tiles", [1, 2, 7, 64, 624])
def test_equal_scores_keep_the_first_tiles(kernel: Kernel, tiles: int):
    kept = -(-tiles // 3)
    got = select(kernel, torch.full((1, 2, 5, tiles), 0.5), kept)
    assert torch.equal(got, torch.arange(kept, dtype=torch.int32).expand_as(got))


# --- The scores -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """Arguments of vsa_compile.attention; text lies before and after the video."""

    grid: Grid
    tile: tuple[int, int, int]
    sparsity: float
    q: Tensor
    k: Tensor
    v: Tensor
    text: tuple[int, int]

    @property
    def boxes(self) -> TileGrid:
        return TileGrid(self.grid, self.tile)

    def video(self, x: Tensor) -> Tensor:
        return x[:, :, self.text[0] : self.text[0] + self.grid.tokens]

    def selection(self, **changes: Tensor) -> tuple[Tensor, Tensor]:
        """(scores, tiles) of a run of the whole operator, as its parts see them."""
        seen = []
        original = torch.ops.vsa_compile.select

        def spy(scores: Tensor, kept: int) -> tuple[Tensor, Tensor]:
            tiles, counts = original(scores, kept)
            seen.append((scores, tiles))
            return tiles, counts

        inputs = {"q": self.q, "k": self.k, "v": self.v} | changes
        padding = torch.ones(1, self.k.shape[2], dtype=torch.bool)
        with mock.patch.object(torch.ops.vsa_compile, "select", spy):
            vsa_compile.attention(
                **inputs, grid=self.grid, tile=self.tile, sparsity=self.sparsity,
                video_start=self.text[0], key_padding_mask=padding,
            )  # fmt: skip
        ((scores, tiles),) = seen
        return scores, tiles


@st.composite
def calls(draw: st.DrawFn) -> Call:
    side, edge = st.integers(1, 7), st.integers(1, 4)
    grid, tile = Grid(*draw(st.tuples(side, side, side))), draw(st.tuples(edge, edge, edge))
    text = draw(st.sampled_from(((0, 0), (3, 0), (2, 5))))
    kv_heads, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    spread = draw(st.sampled_from((0.01, 1.0, 30.0)))
    tokens = grid.tokens + sum(text)

    def normal(heads: int) -> Tensor:
        return (spread * torch.randn(draw(batch), heads, tokens, 16, generator=generator)).to(dtype)

    batch = st.just(draw(st.integers(1, 2)))
    sparsity = draw(st.sampled_from((0.5, 0.7, 0.875, 0.99)))
    return Call(
        grid, tile, sparsity, normal(kv_heads * groups), normal(kv_heads), normal(kv_heads), text
    )  # fmt: skip


def exact_scores(call: Call) -> Tensor:
    """(B, H, M, M) in fp64."""
    q, k = (reference.pool(call.video(x).double(), call.grid, call.tile) for x in (call.q, call.k))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return q @ k.transpose(-1, -2) * call.q.shape[-1] ** -0.5


@given(call=calls())
def test_no_dropped_tile_beats_a_kept_one(call: Call):
    """Regret: the highest fp64 score dropped is above the lowest kept by no more than fp32 rounding."""
    scores, exact = call.selection()[1].long(), exact_scores(call)
    assert scores.shape[-1] == kept_tiles(call.boxes.tiles, call.sparsity)
    kept = torch.zeros_like(exact, dtype=torch.bool).scatter(-1, scores, True)
    lowest = exact.where(kept, torch.inf).amin(-1)
    highest = exact.where(~kept, -torch.inf).amax(-1)
    pooled_q, pooled_k = (
        reference.pool(call.video(x).double().abs(), call.grid, call.tile) for x in (call.q, call.k)
    )
    pooled_k = pooled_k.repeat_interleave(pooled_q.shape[1] // pooled_k.shape[1], dim=1)
    size = (pooled_q @ pooled_k.transpose(-1, -2)).amax(-1) * call.q.shape[-1] ** -0.5
    rounding = 16 * torch.finfo(torch.float32).eps * size  # sums of 16 products of means of up to 64
    assert bool((highest - lowest <= rounding).all())


@given(call=calls())
def test_scores_are_fp32_whatever_the_inputs(call: Call):
    scores, _ = call.selection()
    exact = exact_scores(call)
    assert scores.dtype == torch.float32
    terms = (
        reference.pool(call.video(call.q).double().abs(), call.grid, call.tile).norm(dim=-1).amax()
        * reference.pool(call.video(call.k).double().abs(), call.grid, call.tile).norm(dim=-1).amax()
    )
    assert float((scores - exact).abs().max()) <= 1e-6 * float(terms)


@given(call=calls(), poison=st.sampled_from((torch.nan, torch.inf, 1e4)))
def test_text_has_no_part_in_the_selection(call: Call, poison: float):
    before, after = call.text

    def poisoned(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :, :before] = poison
        x[:, :, x.shape[2] - after :] = poison
        return x

    wanted = call.selection()
    got = call.selection(q=poisoned(call.q), k=poisoned(call.k), v=poisoned(call.v))
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


@given(call=calls(), data=st.data())
def test_every_batch_and_head_selects_for_itself(call: Call, data):
    """Noise in all other batches and heads changes nothing."""
    batch = data.draw(st.integers(0, call.q.shape[0] - 1))
    head = data.draw(st.integers(0, call.k.shape[1] - 1))
    groups = call.q.shape[1] // call.k.shape[1]
    noise = torch.Generator().manual_seed(1)

    def others_noisy(x: Tensor, heads: slice) -> Tensor:
        noisy = torch.randn(x.shape, generator=noise).to(x.dtype)
        noisy[batch, heads] = x[batch, heads]
        return noisy

    queries = slice(head * groups, (head + 1) * groups)
    q, k = others_noisy(call.q, queries), others_noisy(call.k, slice(head, head + 1))
    for got, wanted in zip(call.selection(q=q, k=k), call.selection(), strict=True):
        assert torch.equal(got[batch, queries], wanted[batch, queries])


@given(call=calls(), power=st.sampled_from((0.5, 4.0)))
def test_sharper_queries_keep_the_same_tiles(call: Call, power: float):
    assert torch.equal(call.selection(q=call.q * power)[1], call.selection()[1])


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_a_constant_video_keeps_the_first_tiles(value: float):
    """Black frames make ties normal; every tile's mean is the same, border tiles included."""
    grid = Grid(5, 6, 7)
    x = torch.full((1, 2, grid.tokens, 16), value)
    _, tiles = Call(grid, (4, 4, 4), 0.5, x, x, x, (0, 0)).selection()
    assert torch.equal(tiles, torch.arange(4, dtype=torch.int32).expand_as(tiles))


@given(
    grid=st.tuples(*[st.integers(1, 7)] * 3), tile=st.tuples(*[st.integers(1, 4)] * 3),
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float64)), seed=st.integers(0, 999),
)  # fmt: skip
def test_means_are_over_the_real_tokens(grid, tile, dtype: torch.dtype, seed: int):
    boxes = TileGrid(Grid(*grid), tile)
    site = methods.Site(boxes, 2, 2, None, 1.0, 0.5)
    x = torch.randn(2, 3, boxes.grid.tokens + 5, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
    video = site.video_keys(x)
    wanted = reference.pool(video.double(), boxes.grid, tile)
    got = site.tile_means(video)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    assert float((got - wanted).abs().max()) <= 64 * torch.finfo(got.dtype).eps * float(video.abs().max())
    # A tile's row, spread over its tokens, and read back.
    spread = site.to_tokens(got).transpose(1, 2)
    assert torch.equal(spread, got[:, :, reference.tile_of_token(boxes.grid, tile)])


@each
@examples(40)
@given(
    row=st.lists(st.floats(-2, 2, width=16), min_size=1, max_size=40),
    at_most=st.integers(1, 40),
    threshold=st.none() | st.floats(-3, 3, width=16),
    count=st.none() | st.integers(-1, 50),
)
def test_a_threshold_and_a_count_shorten_the_lists(kernel: Kernel, row, at_most, threshold, count):
    """By hand; and the reference alike."""
    at_most = min(at_most, len(row))
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    wanted = [i for i in order if threshold is None or row[i] >= threshold]
    wanted = sorted(wanted[: at_most if count is None else max(0, min(count, at_most))] or order[:1])
    scores = torch.tensor(row).expand(2, 3, len(row))
    given_threshold = None if threshold is None else torch.full((2, 3), threshold)
    given_count = None if count is None else torch.tensor(count, dtype=torch.int32)
    with mock.patch.dict("os.environ", VSA_COMPILE_CPU="aten" if kernel.name == "aten" else ""):
        moved = (x if x is None else x.to(kernel.device) for x in (given_threshold, given_count))
        got = torch.ops.vsa_compile.select(scores.to(kernel.device), at_most, *moved)
    for tiles, counts in (got, reference.select(scores, at_most, given_threshold, given_count)):
        assert tiles.shape == (2, 3, at_most)
        assert bool((counts == len(wanted)).all())
        assert tiles[..., : len(wanted)].tolist() == [[wanted] * 3] * 2
        assert 0 <= int(tiles.min()) <= int(tiles.max()) < len(row)
