"""How results of attention over given tile lists relate to one another, and its corners."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attend_cases import (
    ATEN,
    ATEN_GPU,
    BLIND,
    CPP,
    SLOWER,
    Case,
    Kernel,
    cases,
    each_kernel,
    make_case,
)
from attend_judge import assert_right, gold, magnitudes
from compare import assert_rows, rounding, rule_c
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from torch import Tensor

from vsa_compile.grid import Grid
from vsa_compile.ops import reference

ALL = ATEN + BLIND + CPP + SLOWER + ATEN_GPU
EXACT = [kernel for kernel in ALL if kernel.dtype.itemsize >= 4]  # rule C
EVERY_TERM = {"batch": 2, "kv_heads": 1, "before": 3, "after": 70, "padding": 2, "width": 32}
each = each_kernel(ALL)


# --- What must come out of other calls -----------------------------------------------------------


def swapped(case: Case, order: tuple[int, int, int]) -> tuple[Case, Tensor]:
    """The same call with the axes of its video in another order, and old token of each new one."""
    grid, tile = (tuple(x[axis] for axis in order) for x in (case.grid, case.tile))
    tokens = torch.arange(case.grid.tokens).reshape(tuple(case.grid)).permute(order).flatten()
    old_tile = torch.arange(case.boxes.tiles).reshape(case.boxes.shape).permute(order).flatten()
    new_tile = old_tile.argsort()
    seen = torch.arange(case.tiles.shape[-1]) < case.counts[..., None]
    tiles = new_tile[case.tiles.clamp(0, case.boxes.tiles - 1).long()].where(seen, 1 << 30)
    tiles = tiles.sort(-1).values.to(torch.int32)
    return replace(
        case, q=case.q[:, :, tokens], k=case.k[:, :, tokens], v=case.v[:, :, tokens],
        grad_out=case.grad_out[:, tokens], tiles=tiles[:, :, old_tile], counts=case.counts[:, :, old_tile],
        grid=Grid(*grid), tile=tile,
    ), tokens  # fmt: skip


@each_kernel(EXACT)
@examples(3)
@given(data=st.data(), order=st.permutations((0, 1, 2)))
def test_swapping_axes_swaps_the_result(kernel: Kernel, data, order):
    case = data.draw(cases(kernel)).video_alone()
    video = slice(case.kv_start, case.kv_start + case.grid.tokens)
    case = replace(case, k=case.k[:, :, video], v=case.v[:, :, video], kv_start=0, key_padding=None)
    other, tokens = swapped(case, tuple(order))
    back = tokens.argsort()
    got = kernel.run(other)
    put_back = {name: x[:, back] if name == "out" else x[:, :, back] for name, x in got.items()}
    assert_right(case, put_back)


@each
@examples(3)
@given(data=st.data())
def test_it_is_linear_in_the_values(kernel: Kernel, data):
    """Exactly so for powers of two, and for sums within rounding. In one layout: others sum otherwise."""
    case = data.draw(cases(kernel))
    case = replace(case, v=case.v.contiguous())
    once, twice = kernel.run(case), kernel.run(replace(case, v=case.v * 2))
    large = (once["out"].abs() > 100 * torch.finfo(kernel.dtype).smallest_normal) & once["out"].isfinite()
    assert torch.equal(twice["out"][large], once["out"][large] * 2)
    if kernel in EXACT:
        other = torch.randn(case.v.shape, generator=torch.Generator().manual_seed(1)).to(case.v.dtype)
        one, two = kernel.run(replace(case, v=other)), kernel.run(replace(case, v=case.v - 3 * other))
        terms = magnitudes(replace(case, v=case.v.abs() + 3 * other.abs()))["out"]
        wanted = once["out"].double() - 3 * one["out"].double()
        assert_rows("out", two["out"], wanted, rule_c(terms, terms, kernel.dtype))


@each
@examples(3)
@given(data=st.data(), value=st.sampled_from((1.0, -0.75, 3.0)))
def test_outputs_are_means_of_values(kernel: Kernel, data, value: float):
    """Between the least and the greatest value; and a constant where V is that constant."""
    case = data.draw(cases(kernel))
    got = kernel.run(case)
    seen = got["lse"].transpose(1, 2) > -torch.inf
    slack = rounding(kernel.dtype) * case.v.abs().max()
    assert bool((got["out"][seen] <= case.v.max() + slack).all())
    assert bool((got["out"][seen] >= case.v.min() - slack).all())
    flat = kernel.run(replace(case, v=torch.full_like(case.v, value)))["out"]
    assert bool(((flat[seen] - value).abs() <= rounding(kernel.dtype) * abs(value)).all())


@each_kernel(EXACT)
@examples(3)
@given(data=st.data(), power=st.sampled_from((0.25, 2.0, 8.0)))
def test_scaling_queries_is_scaling_scores(kernel: Kernel, data, power: float):
    case = data.draw(cases(kernel))
    got, wanted = kernel.run(replace(case, q=case.q * power, scale=case.scale / power)), kernel.run(case)
    for name in ("out", "lse", "grad_v"):
        assert torch.equal(got[name], wanted[name]), name


@each_kernel(EXACT)
@examples(3)
@given(data=st.data())
def test_a_vector_common_to_all_keys_changes_nothing(kernel: Kernel, data):
    """Softmax does not see what is added to every score of a row."""
    case = data.draw(cases(kernel))
    common = torch.randn(case.k.shape[-1], generator=torch.Generator().manual_seed(2)).to(case.k.dtype)
    moved = replace(case, k=case.k + common)
    wanted, terms = gold(case)["out"], magnitudes(moved)["out"]
    # Scores are larger than before, and so is their rounding.
    larger = 1 + float(moved.k.abs().max() * case.q.abs().max()) * abs(case.scale) * case.k.shape[-1] / 8
    assert_rows("out", kernel.run(moved)["out"], wanted, larger * rule_c(terms, terms, kernel.dtype))


@each_kernel(EXACT)
@examples(3)
@given(data=st.data())
def test_two_disjoint_lists_merge_by_their_lse(kernel: Kernel, data):
    case = data.draw(cases(kernel)).video_alone()
    video = slice(case.kv_start, case.kv_start + case.grid.tokens)
    case = replace(case, k=case.k[:, :, video], v=case.v[:, :, video], kv_start=0, key_padding=None)
    half = data.draw(st.integers(0, case.tiles.shape[-1]))
    first = replace(case, counts=case.counts.clamp(max=half))
    second = replace(case, tiles=case.tiles[..., half:], counts=(case.counts - half).clamp(min=0))
    parts = [kernel.run(part) for part in (first, second)]
    wanted = gold(case)
    lse = torch.stack([part["lse"] for part in parts]).double()
    total = lse.logsumexp(0)
    shares = (lse - total.nan_to_num(neginf=0.0)).exp().transpose(-1, -2)[..., None]
    merged = sum(share * part["out"].double() for share, part in zip(shares, parts, strict=True))
    terms = magnitudes(case)["out"]
    assert_rows("out", merged, wanted["out"], 2 * rule_c(terms, terms, kernel.dtype))
    assert torch.allclose(total, wanted["lse"], rtol=1e-5, atol=1e-5)


@each_kernel(EXACT)
@examples(3)
@given(data=st.data())
def test_the_error_against_dense_is_bounded_by_the_dropped_weight(kernel: Kernel, data):
    """|out - dense| <= 2 * dropped * max |v|, where dropped = 1 - exp(lse - lse of dense)."""
    case = replace(data.draw(cases(kernel)), key_padding=None)
    every = torch.arange(case.boxes.tiles, dtype=torch.int32).expand(*case.counts.shape, -1)
    whole = kernel.run(replace(case, tiles=every, counts=torch.full_like(case.counts, case.boxes.tiles)))
    got = kernel.run(case)
    dropped = 1 - (got["lse"] - whole["lse"]).double().exp()
    error = (got["out"] - whole["out"]).abs().amax(-1).transpose(1, 2).double()
    assert bool((error <= (2 * dropped + 1e-4) * float(case.v.abs().max())).all())
    assert bool((dropped >= -1e-4).all())


# --- Corners --------------------------------------------------------------------------------------


@each
def test_one_kept_token_gives_its_value(kernel: Kernel):
    """The last tile of a 5x5x5 video in tiles of 4x4x4 holds one token."""
    case = make_case(3, grid=(5, 5, 5), tile=(4, 4, 4), listed=1, ragged=False, dtype=kernel.dtype)
    case = replace(case, tiles=torch.full_like(case.tiles, case.boxes.tiles - 1))
    wanted = case.v[:, :, -1:].transpose(1, 2).expand(-1, 125, -1, -1)
    assert torch.equal(kernel.run(case)["out"], wanted)


@each
@examples(4)
@given(seed=st.integers(0, 999), score=st.sampled_from((1e4, -3e4)))
def test_huge_scores_stay_finite(kernel: Kernel, seed: int, score: float):
    case = make_case(seed, width=16, grid=(4, 4, 4), tile=(2, 2, 2), dtype=kernel.dtype)
    results = kernel.run(replace(case, scale=score / 16))
    assert all(x.isfinite().all() for name, x in results.items() if name not in ("lse", "grad_q", "grad_k"))
    assert not any(x.isnan().any() for x in results.values())


@each
def test_huge_scores_beyond_the_precision_of_their_type(kernel: Kernel):
    """A product that is not rounded may lie far above the highest score, which is."""
    case = make_case(1, width=16, grid=(4, 4, 4), tile=(2, 2, 2), dtype=kernel.dtype, scale=0.3)
    results = kernel.run(replace(case, scale=1e12))
    assert results["out"].isfinite().all()
    assert kernel.name == "aten" or results["grad_v"].isfinite().all()  # there torch's own are not
    assert results["out"].abs().max() <= 1.01 * case.v.abs().max()


@each
def test_equal_scores_give_the_mean(kernel: Kernel):
    case = make_case(4, grid=(5, 6, 7), tile=(4, 4, 4), listed=3, ragged=False, dtype=kernel.dtype)
    case = replace(case, k=torch.zeros_like(case.k))
    out, members = kernel.run(case)["out"], case.listed()
    ids = reference.tile_of_token(case.grid, case.tile)
    sees = members[:, :, ids][..., ids].double()  # (B, H, Nq, Nkv)
    mean = (sees @ case.v.double()) / sees.sum(-1, keepdim=True)
    assert bool(((out.transpose(1, 2) - mean).abs() <= rounding(kernel.dtype) * case.v.abs().max()).all())


@each
@pytest.mark.parametrize("wanted", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_only_what_is_asked_for_gets_a_gradient(kernel: Kernel, wanted: tuple[int, int, int]):
    case = make_case(5, dtype=kernel.dtype, **EVERY_TERM).to(kernel.device)
    leaves = [
        x.detach().clone().requires_grad_(bool(w))
        for x, w in zip((case.q, case.k, case.v), wanted, strict=True)
    ]
    with kernel.running():
        out, lse, _ = torch.ops.vsa_compile.attend(*leaves, *case.site)
        assert not lse.requires_grad
        assert out.requires_grad == any(wanted)
        if any(wanted):
            out.backward(case.grad_out)
    full = kernel.run(case)
    for leaf, name, asked in zip(leaves, ("grad_q", "grad_k", "grad_v"), wanted, strict=True):
        assert (leaf.grad is not None) == bool(asked)
        assert not asked or torch.equal(leaf.grad.cpu(), full[name])


@pytest.mark.no_cover
@each
def test_scores_of_minus_infinity_weigh_nothing(kernel: Kernel):
    """Half of the keys, those that every query meets first: more than one step of an online softmax."""
    case = make_case(6, grid=(8, 8, 20), tile=(4, 4, 4), listed=20, ragged=False, dtype=kernel.dtype)
    first = reference.tile_of_token(case.grid, case.tile) < 10
    case = replace(case, q=case.q.clone(), k=case.k.clone())
    case.q[..., 0] = case.q[..., 0].abs() + 1
    without = replace(case, tiles=case.tiles[..., 10:].contiguous(), counts=case.counts - 10)
    wanted = gold(without)
    case.k[:, :, first, 0] = -torch.inf
    got = kernel.run(case)
    assert_right(without, {name: got[name] for name in ("out", "lse", "grad_v")}, wanted)
