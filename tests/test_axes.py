"""The axis algebra: products, concatenations, unification and reshapes."""

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv

from vsa_compile.analysis.algebra import (  # fmt: skip
    REORDERED,
    UNKNOWN,
    Axis,
    concatenate,
    factors,
    includes,
    is_atom,
    mark_origins,
    multiply,
    same,
    segments,
    unit,
)
from vsa_compile.analysis.pieces import cut
from vsa_compile.analysis.regroup import regroup
from vsa_compile.analysis.sizes import at_most, divided, equal
from vsa_compile.analysis.tokens import is_raster, read_segments
from vsa_compile.analysis.unify import join, meet, unify
from vsa_compile.analysis.values import Known, broadcast

pytestmark = pytest.mark.quick

T, H, W = (sympy.Symbol(name, integer=True, positive=True) for name in "THW")


def sizes(axis):
    return [factor.size for factor in factors(axis)]


def video(frames=3, rows=6, cols=10):
    axes = [Axis(frames), Axis(rows), Axis(cols)]
    mark_origins(axes, "latent")
    return axes


def test_flattening_and_unflattening_gives_the_same_axes_back():
    grid = video()
    (tokens,) = regroup(grid, [180])
    assert sizes(tokens) == [3, 6, 10]
    assert regroup([tokens], [3, 6, 10]) == grid


def test_an_opaque_axis_learns_its_factors_from_the_other_side():
    tokens = Axis(180)
    unify(tokens, multiply(video()))
    assert read_segments(tokens)[0].grid == (3, 6, 10)


def test_knowledge_flows_backwards_through_a_concatenation():
    video_tokens, text = Axis(180), Axis(11)
    joint = concatenate([video_tokens, text])
    unify(video_tokens, multiply(video()))
    assert [segment.grid for segment in read_segments(joint)] == [(3, 6, 10), None]


def test_a_cut_at_a_segment_boundary_is_the_segment_and_elsewhere_a_run():
    tokens, text = multiply(video()), Axis(11)
    joint = concatenate([text, tokens])
    assert same(cut(joint, 11, 191), tokens)
    assert same(cut(joint, 0, 11), text)
    assert [piece.size for piece in segments(cut(joint, 10, 191))] == [1, 180]
    assert is_atom(cut(joint, 20, 191))


def test_swapped_axes_are_not_raster():
    frames, rows, cols = video()
    assert is_raster([frames, rows, cols])
    assert not is_raster([rows, frames, cols])
    assert not is_raster([frames, rows])
    assert not is_raster([frames, rows, Axis(10)])


def test_two_videos_of_equal_size_are_not_the_same_tokens():
    assert not same(multiply(video()), multiply(video()))


def test_contradicting_structure_never_makes_a_grid():
    left, right = multiply(video(6, 10, 3)), multiply(video(3, 6, 10))
    assert not unify(left, right) or len(factors(left)) > 3
    assert read_segments(join([left, right]))[0].grid is None


def test_patches_split_pixels_and_keep_the_origin():
    latent = video(3, 12, 20)
    axes = regroup(latent, [3, 6, 2, 10, 2])
    (tokens,) = regroup([axes[0], axes[1], axes[3]], [180])
    assert read_segments(tokens)[0].grid == (3, 6, 10)
    (wrong,) = regroup([axes[0], axes[2], axes[4]], [12])
    assert read_segments(wrong)[0].grid is None  # positions inside a patch
    assert read_segments(wrong)[0].in_windows


def test_symbolic_sizes_split_and_merge():
    latent = [Axis(size) for size in (T, H, W)]
    mark_origins(latent, "latent")
    axes = regroup(latent, [T, FloorDiv(H, 2), 2, FloorDiv(W, 2), FloorDiv(W, FloorDiv(W, 2))])
    (tokens,) = regroup([axes[0], axes[1], axes[3]], [T * FloorDiv(H, 2) * FloorDiv(W, 2)])
    assert read_segments(tokens)[0].grid == (T, FloorDiv(H, 2), FloorDiv(W, 2))


def test_symbolic_division_is_exact_or_refused():
    assert divided(T * H * W, H) == T * W
    assert divided(T * H, W) is None
    assert divided(12, 5) is None
    assert equal(2 * T + T, 3 * T)
    assert not equal(T, H)


def test_units_carry_nothing():
    one = unit()
    unify(one, Axis(5))
    assert factors(one) == []
    assert sizes(multiply([unit(), Axis(4), unit()])) == [4]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_a_reshape_keeps_the_atoms_in_order(dims, random):
    """Merging neighbours at random and splitting again restores every axis."""
    axes = [Axis(size) for size in dims]
    merged, position = [], 0
    while position < len(dims):
        step = random.randint(1, len(dims) - position)
        merged.append(dims[position : position + step])
        position += step
    flat = regroup(axes, [sympy.prod(group) for group in merged])
    back = regroup(flat, dims)
    for before, after in zip(axes, back, strict=True):
        assert before.size == 1 or before is after


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_concatenation_remembers_its_segments(lengths):
    axes = [Axis(length) for length in lengths]
    joint = concatenate(axes)
    assert [segment.size for segment in segments(joint)] == lengths
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    for axis, start in zip(axes, starts, strict=True):
        assert same(cut(joint, start, start + axis.size), axis)


def test_runs_that_follow_each_other_are_one_again_and_others_are_not():
    tokens, text = multiply(video()), Axis(11)
    for whole in (tokens, concatenate([tokens, text])):
        size = whole.size
        first, rest = cut(whole, 0, 60), cut(whole, 60, size)
        assert same(concatenate([first, rest]), whole)
        assert same(concatenate([first, cut(rest, 0, 20), cut(rest, 20, size - 60)]), whole)
        assert not same(concatenate([rest, first]), whole)
        assert not same(concatenate([first, cut(whole, 61, size)]), whole)


def test_an_axis_that_was_put_together_keeps_what_was_known_of_it():
    frames, rows, cols = video(5)
    unify(frames, concatenate([Axis(1), Axis(4)]))
    assert read_segments(multiply([frames, rows, cols]))[0].grid == (5, 6, 10)


# --- What meets, and what it teaches ---------------------------------------------------------------


def test_a_table_of_positions_makes_nobody_s_tokens_one():
    first, second, table = Axis(180), Axis(180), multiply(video())
    for tokens in (first, second):
        meet([tokens], [table])
    assert read_segments(first)[0].grid == read_segments(second)[0].grid == (3, 6, 10)
    assert not same(first, second)


def test_what_two_videos_have_together_is_neither_and_the_same_however_it_is_added():
    a, b, c = (multiply(video()) for _ in range(3))
    assert not same(join([a, b]), a)
    assert same(join([a, b, c]), join([join([c, a]), b]))
    assert same(join([join([a, b]), a]), join([a, b]))
    assert includes(join([a, b]), a)
    assert not includes(a, join([a, b]))


def test_a_join_of_tokens_whose_grid_shows_later_is_the_join_of_their_axes():
    first, second = Axis(180), Axis(180)
    both = join([first, second])
    unify(first, multiply(video()))
    assert read_segments(both)[0].grid == (3, 6, 10)
    assert same(both, join([first, second]))


@pytest.mark.parametrize("order", [UNKNOWN, REORDERED])
def test_a_rigid_axis_neither_learns_nor_teaches(order):
    shuffled, tokens, bare = Axis(180, rigid=order), multiply(video()), Axis(180)
    assert not unify(shuffled, tokens)
    assert not unify(bare, shuffled)
    assert read_segments(shuffled)[0].grid is None
    assert is_atom(bare)
    assert same(join([shuffled, tokens]), tokens)
    assert read_segments(join([shuffled, Axis(180, rigid=order)]))[0].grid is None


def test_axes_of_one_value_are_never_unified():
    frames, rows, cols = video(4, 4, 4)
    assert not meet([frames, rows], [rows, frames])
    assert not unify(frames, rows)
    assert is_raster([frames, rows, cols])
    assert not is_raster([rows, frames, cols])


def test_two_videos_in_different_orders_teach_each_other_nothing():
    first, second = video(4, 4, 4), [Axis(4) for _ in range(3)]
    mark_origins(second, "another latent")
    turned = [second[2], second[0], second[1]]
    assert not meet(first, turned)
    mixed = broadcast([Known(first), Known(turned)], [4, 4, 4])
    assert not is_raster(first[:1] + mixed[1:])
    assert not is_raster(turned)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_broadcast_result_has_the_tokens_of_no_table(batch):
    x, table = Known([Axis(batch), multiply(video())]), Known([Axis(1), Axis(180)], table=True)
    result = broadcast([table, x], [batch, 180])
    assert same(result[1], x.axes[1])


def test_a_segment_that_is_cut_finer_elsewhere_is_cut():
    history, now = Axis(112), multiply(video())
    finer = concatenate([Axis(16), Axis(12), Axis(84), multiply(video())])
    assert unify(concatenate([history, now]), finer)
    assert [piece.size for piece in segments(history)] == [16, 12, 84]


def test_a_floor_of_a_floor_is_no_divisor():
    n, d = T, 4
    assert not equal(FloorDiv(n, FloorDiv(n, d)), d)  # 10 // (10 // 4) is 5
    assert divided(n, FloorDiv(n, d)) is None
    assert [a.size for a in regroup([Axis(n)], [FloorDiv(n, d), d])] == [FloorDiv(n, d), d]
    left, right = regroup([Axis(n), Axis(4)], [FloorDiv(n, d), 4, 5])[:2]
    assert factors(left)[0].form.found().rigid
    assert factors(right)[0].form.found().rigid


def test_sizes_are_compared_for_all_values():
    assert at_most(H * W, T * H * W)
    assert not at_most(T, H)
    assert not at_most(5, 4)
