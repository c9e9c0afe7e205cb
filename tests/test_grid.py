"""Tile arithmetic against brute-force counting."""

from fractions import Fraction

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from vsa_compile.grid import Grid, TileGrid, kept_tiles
from vsa_compile.ops import aten
from vsa_compile.ops.reference import tile_of_token

pytestmark = pytest.mark.quick

sizes = st.integers(1, 12)
grids = st.builds(Grid, sizes, sizes, sizes)
tiles = st.tuples(*[st.integers(1, 6)] * 3)


@given(grids, tiles)
def test_real_tokens_equal_brute_force_counting(grid, tile):
    boxes = TileGrid(grid, tile)
    counted = [0] * boxes.tiles
    for t in range(grid.frames):
        for h in range(grid.rows):
            for w in range(grid.cols):
                _, rows, cols = boxes.shape
                counted[(t // tile[0] * rows + h // tile[1]) * cols + w // tile[2]] += 1
    assert [boxes.real_tokens(j) for j in range(boxes.tiles)] == counted
    assert sum(counted) == grid.tokens
    assert min(counted) >= 1
    assert max(counted) <= boxes.tile_tokens
    assert tile_of_token(grid, tile).bincount().tolist() == counted


# Token grids that people run (Wan, SkyReels, HunyuanVideo, CogVideoX, LTX, Mochi, Allegro, Cosmos, Kandinsky,
# EasyAnimate) -> tiles of 4x4x4, and by how many percent a layout that pads them to 64 tokens each is longer.
KNOWN = {
    (21, 30, 52): (624, 22),
    (21, 45, 80): (1440, 22),
    (31, 22, 40): (480, 13),
    (25, 34, 60): (945, 19),
    (31, 45, 80): (1920, 10),
    (33, 34, 60): (1215, 16),
    (33, 45, 80): (2160, 16),
    (31, 30, 53): (896, 16),
    (13, 30, 45): (384, 40),
    (11, 48, 85): (792, 13),
    (21, 16, 22): (144, 25),
    (16, 22, 38): (240, 15),
    (16, 16, 24): (96, 0),
    (16, 34, 60): (540, 6),
    (28, 30, 53): (784, 13),
    (22, 45, 80): (1440, 16),
    (24, 44, 80): (1320, 0),
    (31, 32, 48): (768, 3),
    (13, 24, 42): (264, 29),
    (1, 1, 1): (1, 6300),
}


@pytest.mark.parametrize("grid", KNOWN, ids=str)
def test_known_layouts(grid):
    boxes = TileGrid(Grid(*grid), (4, 4, 4))
    padding = 100 * (boxes.tiles * boxes.tile_tokens / boxes.grid.tokens - 1)
    assert (boxes.tiles, round(padding)) == KNOWN[grid]


@pytest.mark.parametrize(("grid", "partial"), [((21, 30, 52), 169), ((21, 45, 80), 340)])
def test_known_partial_tiles(grid, partial):
    """What FastVideo's layout counts for Wan's 480p and 720p."""
    boxes = TileGrid(Grid(*grid), (4, 4, 4))
    assert sum(boxes.real_tokens(j) < 64 for j in range(boxes.tiles)) == partial


@given(grids, tiles)
def test_tiles_are_boxes_and_every_token_has_one(grid, tile):
    """Neighbours in a tile are nearer than its extents, and slots are given out once."""
    ids = tile_of_token(grid, tile).reshape(tuple(grid))
    for j in range(TileGrid(grid, tile).tiles):
        places = (ids == j).nonzero()
        assert all(int(x) < t for x, t in zip(places.amax(0) - places.amin(0), tile, strict=True))
    slots = aten.Tiling.of(TileGrid(grid, tile), torch.device("cpu")).slot
    assert len(set(slots.tolist())) == grid.tokens
    assert torch.equal(slots // TileGrid(grid, tile).tile_tokens, ids.flatten())


@given(grids, tiles)
def test_to_tiles_and_back_is_the_identity(grid, tile):
    x = torch.arange(2 * 3 * grid.tokens * 2.0).reshape(2, 3, grid.tokens, 2)
    tiling = aten.Tiling.of(TileGrid(grid, tile), torch.device("cpu"))
    assert torch.equal(tiling.to_tokens(tiling.to_tiles(x)), x)


@given(grids)
def test_the_smallest_and_the_largest_tile(grid):
    assert tile_of_token(grid, (1, 1, 1)).tolist() == list(range(grid.tokens))
    assert not tile_of_token(grid, tuple(grid)).any()


@pytest.mark.parametrize(
    ("tiles", "sparsity", "kept"),
    [
        (10, 0.7, 3),
        (624, 0.875, 78),
        (8, 0.875, 1),
        (9, 0.875, 2),
        (5, 0, 5),
        (5, 1, 1),
        (5, 1e-6, 5),
        (3, 0.999, 1),
    ],
)
def test_kept_tiles_reads_the_decimal_text(tiles, sparsity, kept):
    assert kept_tiles(tiles, sparsity) == kept


@given(st.integers(1, 5000), st.floats(0, 1))
def test_kept_tiles_is_the_exact_ceiling_within_bounds(tiles, sparsity):
    kept = kept_tiles(tiles, sparsity)
    exact = (1 - Fraction(str(sparsity))) * tiles
    assert 1 <= kept <= tiles
    assert kept >= exact
    assert kept == 1 or kept - 1 < exact


@given(st.integers(1, 200), st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.875, 0.9, 1.0]))
def test_kept_tiles_agrees_symbolically(tiles, sparsity):
    symbol = sympy.Symbol("M", integer=True, positive=True)
    symbolic = kept_tiles(symbol, sparsity)
    assert int(sympy.sympify(symbolic).subs(symbol, tiles)) == kept_tiles(tiles, sparsity)
