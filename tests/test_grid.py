"""Tile arithmetic against brute-force counting."""

from fractions import Fraction

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from vsa_compile.grid import Grid, TileGrid, kept_tiles
from vsa_compile.reference import tile_of_token

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
