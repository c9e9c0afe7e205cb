"""`vsa_compile.attention`: eager and compiled, with and without a gate, against the reference."""

import pytest
import torch
from compare import assert_same_output, relative_error
from hypothesis import given
from hypothesis import strategies as st

import vsa_compile
from vsa_compile.grid import Grid
from vsa_compile.ops import reference

extents = st.integers(1, 7)


def make(
    grid,
    *,
    batch=1,
    heads=4,
    kv_heads=4,
    before=0,
    behind=0,
    width=16,
    dtype=torch.float32,
    seed=0,
    major="token",
):
    """q, k, v, gate with memory order (B, N, H, D) or (B, H, N, D), or sliced out of one fused tensor."""
    generator = torch.Generator().manual_seed(seed)
    tokens = before + grid.tokens + behind

    def one(count):
        if major == "token":
            return torch.randn(batch, tokens, count, width, generator=generator).to(dtype).transpose(1, 2)
        if major == "head":
            return torch.randn(batch, count, tokens, width, generator=generator).to(dtype)
        return (
            torch.randn(batch, tokens, count, 3 * width, generator=generator)
            .to(dtype)[..., width : 2 * width]
            .transpose(1, 2)
        )

    return one(heads), one(kv_heads), one(kv_heads), one(heads)


@given(
    grid=st.builds(Grid, extents, extents, extents),
    tile=st.tuples(*[st.integers(1, 4)] * 3),
    sparsity=st.sampled_from([1e-6, 0.3, 0.5, 0.875, 0.999]),
    before=st.integers(0, 5),
    behind=st.integers(0, 5),
    kv_heads=st.sampled_from([1, 2, 4]),
    gated=st.booleans(),
    padded=st.booleans(),
    major=st.sampled_from(["token", "head", "fused"]),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(grid, tile, sparsity, before, behind, kv_heads, gated, padded, major, seed):
    q, k, v, gate = make(
        grid, batch=2, kv_heads=kv_heads, before=before, behind=behind, seed=seed, major=major
    )
    mask = torch.ones(2, q.shape[2], dtype=torch.bool)
    if padded:
        mask[1, :before] = False
    where = {"grid": grid, "tile": tile, "sparsity": sparsity, "gate": gate if gated else None}
    got = vsa_compile.attention(q, k, v, video_start=before, key_padding_mask=mask, **where)
    exact = [x.double() for x in (q, k, v)]
    where["gate"] = gate.double() if gated else None
    wanted = reference.attention(*exact, q_start=before, kv_start=before, key_padding=mask, **where)
    assert relative_error(got, wanted) < 1e-5


@given(
    grid=st.builds(Grid, extents, extents, extents),
    tile=st.tuples(*[st.integers(1, 4)] * 3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    kv_heads=st.sampled_from([1, 4]),
    seed=st.integers(0, 99),
)
def test_all_tiles_kept_is_dense_sdpa(grid, tile, dtype, kv_heads, seed):
    q, k, v, _ = make(grid, kv_heads=kv_heads, seed=seed, dtype=dtype)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    exact = sdpa(q.double(), k.double(), v.double(), enable_gqa=kv_heads != 4)
    dense = vsa_compile.attention(q, k, v, grid=grid, tile=tile, sparsity=0)
    sparse = vsa_compile.attention(q, k, v, grid=grid, tile=tile, sparsity=1e-6)
    assert torch.equal(dense, sdpa(q, k, v, enable_gqa=kv_heads != 4))
    assert sparse.dtype == dtype
    assert relative_error(sparse, exact) <= 2 * relative_error(dense, exact) + 4 * torch.finfo(dtype).eps


def test_queries_may_be_the_video_alone():
    grid = Grid(3, 4, 5)
    q, k, v, _ = make(grid, before=7)
    got = vsa_compile.attention(q[:, :, 7:], k, v, grid=grid, sparsity=0.5, tile=(2, 2, 2), video_start=7)
    assert torch.equal(
        got, vsa_compile.attention(q, k, v, grid=grid, sparsity=0.5, tile=(2, 2, 2), video_start=7)[:, :, 7:]
    )


def test_the_scale_is_honoured():
    q, k, v, _ = make(Grid(3, 4, 5))
    got = vsa_compile.attention(q, k, v, grid=(3, 4, 5), sparsity=0.5, tile=(2, 2, 2), scale=0.7)
    wanted = reference.attention(q, k, v, grid=Grid(3, 4, 5), sparsity=0.5, tile=(2, 2, 2), scale=0.7)
    assert_same_output(got, wanted)
    other = reference.attention(q, k, v, grid=Grid(3, 4, 5), sparsity=0.5, tile=(2, 2, 2))
    assert relative_error(got, other) > 0.01


def test_masked_text_gives_no_bit_and_gets_no_gradient():
    q, k, v, _ = make(Grid(3, 4, 5), behind=6)
    mask = torch.ones(1, 66, dtype=torch.bool)
    mask[:, 62:] = False
    k, v = (x.clone().requires_grad_() for x in (k, v))
    clean = vsa_compile.attention(q, k, v, grid=(3, 4, 5), sparsity=0.5, key_padding_mask=mask)
    clean.sum().backward()
    assert not k.grad[:, :, 62:].any()
    assert not v.grad[:, :, 62:].any()
    with torch.no_grad():
        k[:, :, 62:], v[:, :, 62:] = torch.inf, torch.nan
    assert torch.equal(
        vsa_compile.attention(q, k, v, grid=(3, 4, 5), sparsity=0.5, key_padding_mask=mask), clean
    )


def test_ties_keep_the_lowest_tiles():
    grid, tile = Grid(4, 4, 8), (2, 2, 2)
    q = torch.ones(1, 1, grid.tokens, 16)
    v = reference.tile_of_token(grid, tile).float()[None, None, :, None].expand(1, 1, -1, 16)
    out = vsa_compile.attention(q, q, v, grid=grid, tile=tile, sparsity=0.75)
    assert torch.allclose(out, torch.full_like(out, (0 + 1 + 2 + 3) / 4))


def test_a_second_derivative_is_an_error_that_names_the_way_out():
    q, k, v, _ = make(Grid(3, 4, 5))
    q.requires_grad_()
    out = vsa_compile.attention(q, k, v, grid=(3, 4, 5), sparsity=0.5)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(vsa_compile.DoubleBackwardError, match="no second derivative"):
        grad.sum().backward()


def test_autocast_casts_as_sdpa_does_and_selects_in_fp32():
    q, k, v, gate = make(Grid(3, 4, 5))
    with torch.autocast("cpu", torch.bfloat16):
        got = vsa_compile.attention(q, k, v, grid=(3, 4, 5), sparsity=0.5, tile=(2, 2, 2), gate=gate)
    low = [x.bfloat16() for x in (q, k, v)]
    wanted = vsa_compile.attention(*low, grid=(3, 4, 5), sparsity=0.5, tile=(2, 2, 2), gate=gate.bfloat16())
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, wanted)


@pytest.mark.no_cover
def test_compiles_whole_and_equals_eager():
    q, k, v, gate = make(Grid(3, 4, 5), behind=3)
    mask = torch.ones(1, 63, dtype=torch.bool)

    def call(q, k, v, gate):
        return vsa_compile.attention(
            q, k, v, grid=(3, 4, 5), sparsity=0.5, tile=(2, 2, 2), gate=gate, key_padding_mask=mask
        )  # fmt: skip

    assert_same_output(torch.compile(call, fullgraph=True)(q, k, v, gate), call(q, k, v, gate))
