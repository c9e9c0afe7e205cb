"""What attention over given tile lists must satisfy, whichever kernel computes it, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attend_cases import (
    ATEN,
    ATEN_GPU,
    BLIND,
    CPP,
    LAYOUTS,
    SLOWER,
    Case,
    Kernel,
    assert_same_bits,
    cases,
    each_kernel,
    make_case,
    through_autograd,
)
from attend_judge import assert_right, gold, magnitudes
from compare import assert_rows, row_norms, rule_c
from dye import assert_dye
from hypothesis import assume, given
from hypothesis import strategies as st
from profiles import examples
from torch import Tensor

from vsa_compile.ops import reference

pytestmark = pytest.mark.no_cover

ALL = ATEN + BLIND + CPP + SLOWER + ATEN_GPU
FP32 = [kernel for kernel in ALL if kernel.dtype == torch.float32]
EVERY_TERM = {"batch": 2, "kv_heads": 1, "before": 3, "after": 70, "padding": 2, "width": 32}
each = each_kernel(ALL)


# --- Against the specification -------------------------------------------------------------------


@each
@examples(12)
@given(data=st.data())
def test_it_equals_the_specification(kernel: Kernel, data):
    case = data.draw(cases(kernel))
    assert_right(case, kernel.run(case))


@each
@examples(6)
@given(data=st.data())
def test_dye_goes_where_the_lists_say(kernel: Kernel, data):
    case = data.draw(cases(kernel))
    # A column for a label and one of ones, and not too many rounds.
    assume(case.q.shape[-1] > 1 and case.boxes.tiles < 4 * case.q.shape[-1])
    assert_dye(case, kernel.run)


NAMED = {
    "several softmax steps": {"grid": (8, 8, 20), "tile": (4, 4, 4), "listed": 20, "width": 64},
    "ragged on every axis": {"grid": (5, 6, 7), "tile": (4, 4, 4), "listed": 5, "width": 64},
    "tiles of one token": {"grid": (2, 3, 4), "tile": (1, 1, 1), "listed": 5},
    "the largest tile": {"grid": (4, 8, 9), "tile": (4, 8, 8), "listed": 2, "width": 256},
    "one tile": {"grid": (2, 3, 4), "tile": (4, 4, 4), "listed": 1, "ragged": False},
    "one token": {"grid": (1, 1, 1), "tile": (1, 1, 1), "listed": 1, "ragged": False},
    "text before and after": {"before": 66, "after": 130, "listed": 2},
    "text among keys only": {"kv_before": 5, "kv_after": 9},
    "text among queries only": {"before": 5, "after": 9, "kv_before": 0, "kv_after": 0},
    "padding per batch": {"batch": 2, "before": 7, "after": 9, "padding": 2},
    "padding for all batches": {"batch": 2, "before": 7, "after": 9, "padding": 1},
    "grouped queries": {"heads": 6, "kv_heads": 2, "batch": 2},
    "one key head": {"heads": 3, "kv_heads": 1},
    "negative scale": {"scale": -0.3},
    "scale 0": {"scale": 0.0},
}


@each_kernel([*FP32[:1], *CPP[:2], *SLOWER])
@pytest.mark.parametrize("name", NAMED)
def test_named_case(kernel: Kernel, name: str):
    case = make_case(1, dtype=kernel.dtype, **NAMED[name])
    assert_right(case, kernel.run(case))


def dense(case: Case) -> dict[str, Tensor]:
    """out and the gradients of torch's own dense attention, in fp64."""
    wide = case.double()
    leaves = [x.detach().requires_grad_() for x in (wide.q, wide.k, wide.v)]
    grouped = wide.q.shape[1] != wide.k.shape[1]
    out = F.scaled_dot_product_attention(*leaves, scale=case.scale, enable_gqa=grouped).transpose(1, 2)
    grads = torch.autograd.grad(out, leaves, wide.grad_out)
    return dict(zip(("out", "grad_q", "grad_k", "grad_v"), (out.detach(), *grads), strict=True))


@each
@examples(3)
@given(data=st.data())
def test_all_tiles_kept_is_dense_attention(kernel: Kernel, data):
    case = data.draw(cases(kernel))
    tiles = torch.arange(case.boxes.tiles, dtype=torch.int32).expand(*case.counts.shape, -1)
    case = replace(case, tiles=tiles, counts=torch.full_like(case.counts, case.boxes.tiles), key_padding=None)
    assert_right(case, kernel.run(case), dense(case))


@each_kernel(FP32)
@pytest.mark.parametrize("scale", [2.0, -2.0])
def test_sharp_weights_are_as_good_as_eager(kernel: Kernel, scale: float):
    """Large scores lose digits in any dot product; the kernel loses no more."""
    case = make_case(10, scale=scale, before=3, after=70, dtype=kernel.dtype)
    got, wanted, terms = kernel.run(case), gold(case), magnitudes(case)
    plain = through_autograd(reference.attend, case)
    for name in terms:
        allowed = rule_c(wanted[name], terms[name], kernel.dtype)
        missed = row_norms(plain[name].double() - wanted[name])
        assert_rows(name, got[name], wanted[name], allowed + 2 * missed)


# --- What must not matter ------------------------------------------------------------------------


@each
@examples(4)
@given(data=st.data(), poison=st.sampled_from((torch.nan, torch.inf, -6e4)))
def test_what_nobody_sees_changes_no_bit(kernel: Kernel, data, poison: float):
    """Rewriting unlisted tiles and masked keys, in K and in V; and they get no gradient."""
    case = data.draw(cases(kernel)).video_alone()
    untouched = data.draw(st.integers(0, case.boxes.tiles - 1))
    if case.boxes.tiles > 1:
        kept = case.tiles.where(case.tiles != untouched, 1 << 30).sort(-1).values
        counts = case.counts - case.listed()[..., untouched].to(torch.int32)
        case = replace(case, tiles=kept, counts=counts)
    hidden = torch.zeros(case.k.shape[0], case.k.shape[2], dtype=torch.bool)
    video = slice(case.kv_start, case.kv_start + case.grid.tokens)
    if case.key_padding is not None:
        hidden |= ~case.key_padding
    hidden[:, video] = (reference.tile_of_token(case.grid, case.tile) == untouched) & (case.boxes.tiles > 1)

    def poisoned(x: Tensor) -> Tensor:
        return x.masked_fill(hidden[:, None, :, None], poison)

    clean = replace(case, k=case.k.clone(), v=case.v.clone())
    got = kernel.run(replace(case, k=poisoned(case.k), v=poisoned(case.v)))
    assert_same_bits(got, kernel.run(clean))
    for name in ("grad_k", "grad_v"):
        assert not got[name].transpose(1, 2)[hidden].any(), name


@each
def test_the_very_first_key_fills_no_empty_place(kernel: Kernel):
    """A kernel that gathers as many keys for every tile must fill up the shorter lists with some key."""
    case = make_case(6, before=2, padding=1, dtype=kernel.dtype)
    assert case.key_padding is not None
    case.key_padding[:, 0] = False

    def poisoned(x: Tensor) -> Tensor:
        return x.index_fill(2, torch.zeros(1, dtype=torch.long), torch.nan)

    clean = kernel.run(replace(case, k=case.k.clone(), v=case.v.clone()))
    assert_same_bits(kernel.run(replace(case, k=poisoned(case.k), v=poisoned(case.v))), clean)


@each
def test_poison_reaches_exactly_the_rows_that_list_it(kernel: Kernel):
    case = make_case(7, grid=(4, 6, 8), tile=(2, 3, 4), listed=4, ragged=False, dtype=kernel.dtype)
    ids = reference.tile_of_token(case.grid, case.tile)
    clean = kernel.run(case)
    for name in ("k", "v"):
        bad = getattr(case, name).masked_fill((ids == 1)[:, None], torch.nan)
        got = kernel.run(replace(case, **{name: bad}))
        sees = case.listed()[..., 1][:, :, ids].transpose(1, 2)  # (B, N, H)
        assert got["out"][sees].isnan().all()
        assert torch.equal(got["out"][~sees], clean["out"][~sees])


@each
def test_rows_that_see_nothing_are_zero_with_zero_gradients(kernel: Kernel):
    case = make_case(9, before=3, after=4, padding=1, dtype=kernel.dtype).video_alone()
    nothing = replace(
        case, counts=torch.zeros_like(case.counts), key_padding=torch.zeros_like(case.key_padding)
    )
    got = kernel.run(nothing)
    assert bool((got.pop("lse") == -torch.inf).all())
    assert not any(x.any() for x in got.values())


@each
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_changes_no_bit(kernel: Kernel, layout: str):
    case = make_case(2, layout="expanded", dtype=kernel.dtype, **EVERY_TERM)
    names = ("q", "k", "v", "grad_out")
    copies = {name: getattr(case, name).contiguous() for name in names}
    other = make_case(2, layout=layout, dtype=kernel.dtype, **EVERY_TERM)
    same = {name: getattr(other, name).copy_(copies[name]) for name in names if layout != "expanded"}
    assert_same_bits(kernel.run(replace(case, **same)), kernel.run(replace(case, **copies)))


@each
def test_ten_runs_give_the_same_bits(kernel: Kernel):
    for heads in (1, 4):
        case = make_case(
            5, heads=heads, dtype=kernel.dtype, before=3, after=70, grid=(8, 8, 9), tile=(4, 4, 4)
        )
        first = kernel.run(case)
        for _ in range(9):
            assert_same_bits(kernel.run(case), first)


@each
@examples(3)
@given(data=st.data())
def test_batches_and_heads_are_independent(kernel: Kernel, data):
    """A call is what a call of each batch and key head gives, even beside one full of NaN."""
    case = data.draw(cases(kernel))
    batch = data.draw(st.integers(0, case.q.shape[0] - 1))
    head = data.draw(st.integers(0, case.k.shape[1] - 1))
    groups = case.q.shape[1] // case.k.shape[1]
    mine, theirs = slice(batch, batch + 1), slice(head * groups, (head + 1) * groups)

    def only(x: Tensor, heads: slice) -> Tensor:
        noise = torch.full_like(x, torch.nan, memory_format=torch.contiguous_format)
        noise[mine, heads] = x[mine, heads]
        return noise

    own = slice(head, head + 1)
    got = kernel.run(
        replace(
            case, q=only(case.q, theirs), k=only(case.k, own), v=only(case.v, own),
            grad_out=only(case.grad_out.transpose(1, 2), theirs).transpose(1, 2),
        )
    )  # fmt: skip
    padding = case.key_padding
    slice_of = replace(
        case, q=case.q[mine, theirs], k=case.k[mine, own], v=case.v[mine, own],
        grad_out=case.grad_out[mine, :, theirs], tiles=case.tiles[mine, theirs],
        counts=case.counts[mine, theirs],
        key_padding=padding if padding is None or len(padding) == 1 else padding[mine],
    )  # fmt: skip
    heads = {"out": (mine, slice(None), theirs), "grad_k": (mine, own), "grad_v": (mine, own)}
    assert_right(slice_of, {name: x[heads.get(name, (mine, theirs))] for name, x in got.items()})
