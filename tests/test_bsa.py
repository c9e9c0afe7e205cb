"""BSA: its packed queries against the specification, in which nothing is packed; its work, its annealing."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from fractions import Fraction
from unittest import mock

import cached
import pytest
import torch
from compare import assert_same_output, relative_error
from hypothesis import example, given
from hypothesis import strategies as st
from profiles import examples
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import vsa_compile
from vsa_compile import methods
from vsa_compile.grid import Grid, TileGrid, kept_queries
from vsa_compile.methods import GaussQuantile, Method, Site, TopK, WindowPruner, bsa
from vsa_compile.ops import reference

pytestmark = pytest.mark.quick

side, edge = st.integers(1, 7), st.integers(1, 4)
sparsities = st.sampled_from((1e-6, 0.2, 0.3, 0.5, 0.7, 0.93, 0.999))


def leaves(grid: Grid, seed: int = 0, *, heads: int = 2, kv_heads: int = 2, text: int = 0,
           dtype: torch.dtype = torch.float64) -> list[Tensor]:  # fmt: skip
    """q, k, v; the text lies before and after the video."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, h, grid.tokens + 2 * text, 16) for h in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def gradients(out: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [x.detach() for x in (out, *torch.autograd.grad(out, tensors, weights))]


def assert_equal(got: list[Tensor], wanted: list[Tensor], bound: float = 1e-12) -> None:
    """In fp64, where a gradient that is 0 in exact arithmetic is rounding alone."""
    for one, other in zip(got, wanted, strict=True):
        assert float((one.double() - other).norm()) <= bound * (1 + float(other.norm()))


# --- Against the specification --------------------------------------------------------------------


@pytest.mark.seconds
@examples(12)
@example(grid=(5, 3, 7), tile=(4, 4, 4), sparsity=0.93, heads=(4, 2), text=3, seed=0)
@given(
    grid=st.tuples(edge, side, edge), tile=st.tuples(edge, edge, edge), sparsity=sparsities,
    heads=st.sampled_from(((2, 2), (4, 2), (3, 1))), text=st.sampled_from((0, 3)), seed=st.integers(0, 999),
)  # fmt: skip
def test_output_and_gradients_are_those_of_the_specification(grid, tile, sparsity, heads, text, seed):
    """In fp64, so that both prune and select the same. One text key is padding."""
    grid = Grid(*grid)
    tensors = leaves(grid, seed, heads=heads[0], kv_heads=heads[1], text=text)
    mask = torch.ones(1, grid.tokens + 2 * text, dtype=torch.bool)
    mask[:, grid.tokens + text + 1 :] = False
    where = {"grid": grid, "tile": tile, "sparsity": sparsity}
    got = vsa_compile.attention(
        *tensors, **where, method="bsa", video_start=text, key_padding_mask=mask
    )  # fmt: skip
    wanted = reference.bsa(*tensors, **where, q_start=text, kv_start=text, key_padding=mask)
    assert_equal(gradients(got, tensors), gradients(wanted, tensors))


@examples(10)
@given(
    window=st.tuples(*[st.integers(1, 3)] * 3), least=st.sampled_from((0.1, 0.5, 0.75, 1.0)),
    tiles=st.tuples(*[st.integers(1, 2)] * 3), overflow=st.sampled_from((1, 1.25, 3.0)),
    sparsity=sparsities, seed=st.integers(0, 99),
)  # fmt: skip
def test_every_size_that_is_a_field_means_what_the_specification_says(
    window, least, tiles, overflow, sparsity, seed
):
    grid, tile = Grid(4, 5, 6), (2, 2, 3)
    tensors = leaves(grid, seed)
    pruner = WindowPruner(window=window, least=least, tiles=tiles)
    method = Method(pruner=pruner, selector=GaussQuantile(overflow=overflow))
    got = method(*tensors, None, Site(TileGrid(grid, tile), 0, 0, None, 0.25, sparsity))
    wanted = reference.bsa(
        *tensors, grid=grid, tile=tile, sparsity=sparsity, window=window, least=least, tiles_per_list=tiles,
        overflow=overflow,
    )  # fmt: skip
    assert_equal(gradients(got, tensors), gradients(wanted, tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [1e-6, 0.4])
def test_with_every_tile_kept_only_the_dropped_queries_differ_from_dense(sparsity: float, dtype: torch.dtype):
    """At 0.4 all sparsity is the queries': five of eight, whose outputs are dense attention's own."""
    grid = Grid(5, 6, 7)
    tensors = leaves(grid, dtype=dtype)
    q, k, v = tensors
    whole = torch.nn.functional.scaled_dot_product_attention(*(x.double() for x in tensors))
    places = kept_queries(8, sparsity, 0.5)
    chosen = reference.stand_ins(q, grid, (2, 2, 2), places)
    if places == 8:
        chosen = torch.arange(grid.tokens).expand_as(chosen)
    out = Method(pruner=WindowPruner(), selector=TopK(share=1))(
        q, k, v, None, Site(TileGrid(grid, (4, 4, 4)), 0, 0, None, 0.25, sparsity)
    )
    wanted = whole.gather(2, chosen[..., None].expand_as(whole))
    assert out.dtype == dtype
    assert relative_error(out.detach(), wanted.detach()) <= 4 * torch.finfo(dtype).eps
    assert (places == 8) == torch.equal(chosen, torch.arange(grid.tokens).expand_as(chosen))


# --- The pruner's other choices ---------------------------------------------------------------------


def kept_of(pruner: WindowPruner, q: Tensor, grid: Grid, sparsity: float = 0.93) -> Tensor:
    """(B, H, N) bool."""
    queries = pruner(q, Site(TileGrid(grid, (4, 4, 4)), 0, 0, None, 0.25, sparsity))
    rank = queries.rank.flatten(2).index_select(2, queries.windows.slot)
    return rank < queries.raster.grid.tokens // queries.windows.boxes.tiles


def test_the_centre_is_kept_and_most_alike_are_dropped_by_hand():
    """One window of eight; token 7 is its centre, and token i lies at an angle of i / 10 from it."""
    angles = torch.tensor([0.5, 0.1, 0.7, 0.3, 0.2, 0.6, 0.4, 0.0])
    lengths = torch.tensor([9.0, 1.0, 0.1, 5.0, 1.0, 2.0, 3.0, 1.0])  # have no part in it
    q = (lengths[:, None] * torch.stack([angles.cos(), angles.sin()], 1))[None, None]
    grid = Grid(2, 2, 2)
    assert kept_of(WindowPruner(), q, grid)[0, 0].nonzero().flatten().tolist() == [0, 2, 5, 7]
    dropping = WindowPruner(keep_centre=False, dropped="zero")
    assert kept_of(dropping, q, grid)[0, 0].nonzero().flatten().tolist() == [0, 2, 5, 6]
    corner = WindowPruner(centre="first")  # now token 0 is, at 0.5
    assert kept_of(corner, q, grid)[0, 0].nonzero().flatten().tolist() == [0, 1, 4, 7]
    assert kept_of(WindowPruner(anneal=False), q, grid, 0.1).sum() == 4


def test_dropped_queries_may_take_nothing():
    grid = Grid(4, 4, 4)
    tensors = leaves(grid)
    site = Site(TileGrid(grid, (2, 2, 2)), 0, 0, None, 0.25, 0.7)
    kept = kept_of(WindowPruner(), tensors[0], grid)[..., None]
    filled = bsa(*tensors, None, site)
    zero = replace(bsa, pruner=WindowPruner(dropped="zero"))(*tensors, None, site)
    assert torch.equal(zero, filled.where(kept, 0.0))
    assert not gradients(zero, tensors)[1].where(~kept, 0.0).any()


def test_all_queries_may_be_what_tiles_are_scored_with():
    grid = Grid(4, 4, 8)
    q = leaves(grid)[0].detach()
    site = Site(TileGrid(grid, (4, 4, 4)), 0, 0, None, 0.25, 0.7)
    got = WindowPruner(pooled="all")(q, site).means
    assert relative_error(got, reference.pool(q, grid, (4, 4, 8))) <= 1e-12


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"centre": "last"}, "centre is 'last', but it must be 'middle' or 'first'"),
        ({"least": 0}, "least is 0, but it must be a share above 0"),
        ({"keep_centre": False}, 'Use dropped="zero", or keep the centre'),
    ],
)
def test_a_pruner_that_cannot_be_says_so(wrong, said):
    with pytest.raises(vsa_compile.ArgumentError, match=said):
        WindowPruner(**wrong)


def test_a_gate_is_an_error_that_names_the_way_out():
    q, k, v = leaves(Grid(2, 2, 2))
    with pytest.raises(vsa_compile.ArgumentError, match='Drop the gate, or use method="vsa"'):
        vsa_compile.attention(q, k, v, grid=(2, 2, 2), sparsity=0.5, method="bsa", gate=q)


# --- The work ---------------------------------------------------------------------------------------


def test_half_of_the_queries_attend_and_fill_a_kernel_tile_of_64_rows():
    seen = []
    original = torch.ops.vsa_compile.attend

    def spy(*arguments):
        seen.append(arguments)
        return original(*arguments)

    grid = Grid(8, 8, 16)
    with mock.patch.object(torch.ops.vsa_compile, "attend", spy):
        vsa_compile.attention(*leaves(grid), grid=grid, sparsity=0.93, method="bsa")
    ((q, *_, q_grid, q_tile),) = seen
    assert q.shape[2] == grid.tokens / 2 == math.prod(q_grid)
    assert math.prod(q_tile) == 64
    assert not any(n % t for n, t in zip(q_grid, q_tile, strict=True))


@pytest.mark.parametrize(("sparsity", "ratio"), [(0.93, 14.4), (0.95, 20.0), (0.5, 2.0), (0.3, 1.43)])
def test_flops_fall_as_the_paper_says(sparsity: float, ratio: float):
    """Its 14.4x and 20x, counted from the lists, with a fixed number of tiles; rounded up to whole tiles."""
    grid = Grid(8, 16, 20)  # 40 tiles
    q, k, v = (x.detach().float() for x in leaves(grid))
    site = Site(TileGrid(grid, (4, 4, 4)), 0, 0, None, 0.25, sparsity)
    with FlopCounterMode(display=False) as counter:
        Method(pruner=WindowPruner(), selector=TopK())(q, k, v, None, site)
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}["vsa_compile.attend"]
    dense = 4 * 2 * 2 * 16 * grid.tokens**2
    assert ratio / 1.1 <= dense / counted <= ratio * 1.01


def test_ragged_lists_are_counted_as_they_are():
    grid = Grid(8, 8, 16)
    q, k, v = (x.detach().float() for x in leaves(grid))
    counts = []
    original = torch.ops.vsa_compile.select

    def spy(*arguments):
        counts.append(original(*arguments)[1])
        return original(*arguments)

    with mock.patch.object(torch.ops.vsa_compile, "select", spy), FlopCounterMode(display=False) as counter:
        vsa_compile.attention(q, k, v, grid=grid, sparsity=0.9, method="bsa")
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}["vsa_compile.attend"]
    assert len(counts[0].unique()) > 1
    assert counted == 4 * 16 * 64 * 64 * int(counts[0].sum())


# --- The kernels with packed queries ------------------------------------------------------------------


@pytest.mark.seconds
@examples(20)
@given(
    grid=st.tuples(side, side, side), tile=st.tuples(edge, edge, edge), q_grid=st.tuples(side, side, side),
    q_tile=st.tuples(edge, edge, edge), text=st.sampled_from((0, 3, 70)), padded=st.booleans(),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_queries_may_be_a_raster_of_their_own(grid, tile, q_grid, q_tile, text, padded, seed):
    """C++ and ATen against the specification, whatever the two rasters are."""
    grid, q_grid = Grid(*grid), Grid(*q_grid)
    generator = torch.Generator().manual_seed(seed)
    rows, total = TileGrid(q_grid, q_tile).tiles, TileGrid(grid, tile).tiles

    def normal(heads: int, tokens: int) -> Tensor:
        return torch.randn(2, heads, tokens, 32, generator=generator).requires_grad_()

    q, k, v = normal(4, q_grid.tokens + text), normal(2, grid.tokens + text), normal(2, grid.tokens + text)
    scores = torch.randn(2, 4, rows, total, generator=generator)
    lists = torch.ops.vsa_compile.select(scores, min(3, total), torch.zeros(2, 4, rows))
    padding = torch.rand(2, grid.tokens + text, generator=generator) < 0.7 if padded else None
    site = (grid, tile, text // 2, text // 3, padding, 0.2, q_grid, q_tile)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wanted = gradients(reference.attend(*exact, *lists, *site)[0], exact)
    for kernel in ("", "aten"):
        with mock.patch.dict(os.environ, VSA_COMPILE_CPU=kernel):
            got = gradients(torch.ops.vsa_compile.attend(q, k, v, *lists, *site)[0], [q, k, v])
        assert_equal(got, wanted, bound=1e-5)
    assert_equal(gradients(torch.ops.vsa_compile.attend(*exact, *lists, *site)[0], exact), wanted)


# --- Compiled, trained, annealed ----------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.seconds
def test_symbolic_sizes_are_traced_once():
    def call(q: Tensor, k: Tensor, v: Tensor, clip: Tensor) -> Tensor:
        where = {"tile": (2, 2, 2), "sparsity": 0.8, "method": "bsa"}
        return vsa_compile.attention(q, k, v, grid=clip.shape, **where)

    def arguments(*grid: int) -> list[Tensor]:
        return [*(x.detach() for x in leaves(Grid(*grid), heads=3, kv_heads=3)), torch.empty(grid)]

    graph = make_fx(call, tracing_mode="symbolic")(*arguments(5, 6, 7))
    for grid in ((5, 6, 7), (4, 8, 5), (9, 4, 11)):
        assert_equal([graph(*arguments(*grid))], [call(*arguments(*grid))])


@pytest.mark.no_cover
@pytest.mark.seconds
def test_through_the_backend_it_is_eager_forward_and_backward():
    x = torch.randn(1, 16, 4, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    options = {"min_tokens": 0, "tile": (2, 2, 2), "sparsity": 0.8, "method": "bsa"}

    def by_hand(x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        where = {name: options[name] for name in ("tile", "sparsity", "method")}
        return vsa_compile.attention(tokens, tokens, tokens, grid=(4, 6, 6), **where)

    torch._dynamo.reset()
    compiled = torch.compile(cached.model(), backend="vsa", options=options)
    assert_equal(gradients(compiled(x), [x]), gradients(by_hand(x), [x]), bound=1e-5)


def test_gradients_are_the_same_bits_every_time():
    tensors = leaves(Grid(6, 7, 8), dtype=torch.float32)
    where = {"grid": (6, 7, 8), "tile": (2, 2, 2), "sparsity": 0.8, "method": "bsa"}
    runs = [gradients(vsa_compile.attention(*tensors, **where), tensors) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("method", [bsa, methods.vsa], ids=["bsa", "vsa"])
def test_one_graph_serves_every_sparsity(method):
    """What an annealing schedule needs: shapes from the literal, the number of tiles from a tensor."""
    q, k, v = (x.detach() for x in leaves(Grid(6, 6, 8), dtype=torch.float32))
    boxes = TileGrid(Grid(6, 6, 8), (2, 2, 2))  # 36 tiles

    def call(q: Tensor, k: Tensor, v: Tensor, share: Tensor) -> Tensor:
        return method(q, k, v, None, Site(boxes, 0, 0, None, 0.25, 0.5, share))

    # Fake tensors have no values: what is read on the host cannot be traced.
    graph = make_fx(call, tracing_mode="fake")(q, k, v, torch.tensor([1, 2]))
    outs = []
    for share in (Fraction(1, 2), Fraction(1, 4), Fraction(1, 9)):
        outs.append(graph(q, k, v, torch.tensor([share.numerator, share.denominator])))
        static = method(q, k, v, None, Site(boxes, 0, 0, None, 0.25, 1 - share))
        assert_equal([outs[-1]], [static], bound=1e-6)
    assert not torch.equal(outs[0], outs[-1])


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7])
def test_black_frames_attend_to_something(value: float):
    """All scores of a row are equal: at the threshold, whichever way their mean is rounded."""
    x = torch.full((1, 2, 5 * 6 * 7, 16), value)
    out = vsa_compile.attention(x, x, x, grid=(5, 6, 7), tile=(2, 2, 2), sparsity=0.9, method="bsa")
    assert_same_output(out, x)
    site = Site(TileGrid(Grid(5, 6, 7), (2, 2, 2)), 0, 0, None, 0.25, 0.9)
    queries = WindowPruner()(x, site)
    scores = queries.means.new_full((1, 2, queries.boxes.tiles, 36), value * 1.1)
    _, counts = GaussQuantile().lists(scores, queries)
    assert bool((counts == GaussQuantile().width(queries)).all())
