"""Random calls of vsa::attend, what they must return, and by how much a row may miss it.

Notation: B batch, H heads, Hkv key heads, N tokens, D head width, M tiles, Kcap width of the lists.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from vsa_compile import reference
from vsa_compile.grid import Grid, Tile, TileGrid

# How q, k, v lie in memory; all of them are (B, H, N, D) to the operator.
LAYOUTS = ("tokens", "heads", "fused", "strided", "expanded")


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The numbers of x (B, H, N, D) in another memory layout."""
    batch, heads, tokens, width = x.shape
    if layout == "tokens":  # the view of (B, N, H, D) that every model makes
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "fused":  # the middle part of (B, N, 3, H, D), a fused projection
        fused = x.new_full((batch, tokens, 3, heads, width), torch.nan)
        fused[:, :, 1] = x.transpose(1, 2)
        return fused[:, :, 1].transpose(1, 2)
    if layout == "strided":  # the last dimension is not contiguous
        wide = x.new_full((*x.shape, 2), torch.nan)
        wide[..., 0] = x
        return wide[..., 0]
    if layout == "expanded":  # stride 0: every batch is the first
        return x[:1].clone().expand(batch, -1, -1, -1)
    return x.contiguous()


@dataclass(frozen=True)
class Case:
    """Arguments of vsa::attend, and a gradient for its output."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad_out: Tensor  # (B, Nq, H, D)
    tiles: Tensor
    counts: Tensor
    grid: Grid
    tile: Tile
    q_start: int = 0
    kv_start: int = 0
    key_padding: Tensor | None = None
    scale: float = 0.25

    @property
    def site(self) -> tuple:
        return (
            self.tiles, self.counts, self.grid, self.tile, self.q_start, self.kv_start,
            self.key_padding, self.scale,
        )  # fmt: skip

    def arguments(self) -> tuple:
        return (self.q, self.k, self.v, *self.site)

    def double(self) -> Case:
        return replace(self, **{name: getattr(self, name).double() for name in ("q", "k", "v", "grad_out")})

    def listed(self) -> Tensor:
        """(B, H, M, M) bool: the tiles that each query tile sees."""
        tiles = self.counts.shape[-1]
        within = torch.arange(self.tiles.shape[-1]) < self.counts[..., None]
        seen = torch.zeros(*self.counts.shape, tiles, dtype=torch.int32)
        return seen.scatter_add_(-1, self.tiles.long().clamp(0, tiles - 1), within.int()) > 0


def make_case(
    seed: int = 0, *, batch: int = 1, heads: int = 2, kv_heads: int | None = None,
    grid: tuple[int, int, int] = (5, 6, 7), tile: Tile = (2, 3, 4), listed: int = 3, ragged: bool = True,
    before: int = 0, after: int = 0, kv_before: int | None = None, kv_after: int | None = None,
    padding: int = 0, width: int = 32, dtype: torch.dtype = torch.float32, layout: str = "tokens",
    scale: float | None = None,
) -> Case:  # fmt: skip
    """A random call. before, after: non-video queries, and keys unless kv_* says so; padding: its rows."""
    generator = torch.Generator().manual_seed(seed)
    boxes = TileGrid(Grid(*grid), tile)
    kv_before = before if kv_before is None else kv_before
    kv_after = after if kv_after is None else kv_after
    queries, keys = before + boxes.grid.tokens + after, kv_before + boxes.grid.tokens + kv_after

    def normal(*shape: int) -> Tensor:
        return laid_out(torch.randn(shape, generator=generator).to(dtype), layout)

    kept = min(listed, boxes.tiles)
    order = torch.rand(batch, heads, boxes.tiles, boxes.tiles, generator=generator).argsort(-1)
    counts = torch.full((batch, heads, boxes.tiles), kept, dtype=torch.int32)
    if ragged:
        counts = torch.randint(0, kept + 1, counts.shape, generator=generator, dtype=torch.int32)
    tiles = order[..., :kept].sort(-1).values.to(torch.int32)
    return Case(
        q=normal(batch, heads, queries, width),
        k=normal(batch, kv_heads or heads, keys, width),
        v=normal(batch, kv_heads or heads, keys, width),
        grad_out=normal(batch, heads, queries, width).transpose(1, 2),
        # What lies behind `counts` is anybody's; the ids before it stay ascending.
        tiles=tiles.where(torch.arange(kept) < counts[..., None], 1 << 30),
        counts=counts, grid=boxes.grid, tile=tile, q_start=before, kv_start=kv_before,
        key_padding=torch.rand(padding, keys, generator=generator) < 0.6 if padding else None,
        scale=width**-0.5 if scale is None else scale,
    )  # fmt: skip


@st.composite
def cases(draw: st.DrawFn, widths: tuple[int, ...], dtype: torch.dtype) -> Case:
    """Any grid, tile, layout, grouping of heads, text and padding that fit in a fraction of a second."""
    kv_heads = draw(st.integers(1, 2))
    batch = draw(st.integers(1, 2))
    side, edge = st.integers(1, 6), st.integers(1, 4)
    others = st.sampled_from((0, 1, 3, 70))
    return make_case(
        draw(st.integers(0, 2**16)), batch=batch, heads=kv_heads * draw(st.integers(1, 3)), kv_heads=kv_heads,
        grid=draw(st.tuples(side, side, side)), tile=draw(st.tuples(edge, edge, edge)),
        listed=draw(st.integers(1, 9)), ragged=draw(st.booleans()), before=draw(others), after=draw(others),
        kv_before=draw(others), kv_after=draw(others), padding=draw(st.sampled_from((0, 1, batch))),
        width=draw(st.sampled_from(widths)), dtype=dtype, layout=draw(st.sampled_from(LAYOUTS)),
        scale=draw(st.sampled_from((None, 0.1, -0.2))),
    )  # fmt: skip


Results = dict[str, Tensor]


def through_autograd(attend, case: Case) -> Results:
    """out, lse and the gradients of `attend`, which has vsa::attend's arguments."""
    leaves = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]
    out, lse = attend(*leaves, *case.site)
    grads = torch.autograd.grad(out, leaves, case.grad_out)
    return dict(
        zip(("out", "lse", "grad_q", "grad_k", "grad_v"), (out.detach(), lse.detach(), *grads), strict=True)
    )


def gold(case: Case) -> Results:
    """The specification and its gradients in fp64."""
    return through_autograd(reference.attend, case.double())


def run(case: Case) -> Results:
    return through_autograd(torch.ops.vsa.attend, case)


@dataclass(frozen=True)
class Dense:
    """The case with every score written out, for emulations; all (B, H, Nq, Nkv) or (B, H, N, D)."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    allowed: Tensor
    groups: int

    @classmethod
    def of(cls, case: Case, dtype: torch.dtype) -> Dense:
        groups = case.q.shape[1] // case.k.shape[1]
        q, k, v, grad = (x.to(dtype) for x in (case.q, case.k, case.v, case.grad_out.transpose(1, 2)))
        allowed = reference.allowed_keys(case.q, case.k, *case.site[:-1])
        return cls(q, *(x.repeat_interleave(groups, dim=1) for x in (k, v)), grad, allowed, groups)

    def weights(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        logits = scores.masked_fill(~self.allowed, -torch.inf)
        lse = logits.logsumexp(-1)
        return torch.exp(logits - lse.nan_to_num(neginf=0.0)[..., None]), lse

    def per_key_head(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.groups)).sum(2)


def eager_bf16(case: Case) -> Results:
    """What plain bf16 PyTorch makes of the case: matrix products round their operands and results to bf16."""

    def rounded(x: Tensor) -> Tensor:
        return x.bfloat16().float()

    x = Dense.of(case, torch.float32)
    weights, lse = x.weights(rounded(x.q @ x.k.transpose(-1, -2)) * case.scale)
    weights = rounded(weights)
    out = rounded(weights @ x.v)
    delta = (x.grad * out).sum(-1, keepdim=True)
    scores = rounded(weights * (rounded(x.grad @ x.v.transpose(-1, -2)) - delta) * case.scale)
    return {
        "out": out.transpose(1, 2),
        "lse": lse,
        "grad_q": rounded(scores @ x.k),
        "grad_k": rounded(x.per_key_head(rounded(scores.transpose(-1, -2) @ x.q))),
        "grad_v": rounded(x.per_key_head(rounded(weights.transpose(-1, -2) @ x.grad))),
    }


def magnitudes(case: Case) -> Results:
    """How large the terms of every result are, cancellation aside: what rounding errors are relative to."""
    x = Dense.of(case, torch.float64)
    weights, _ = x.weights(x.q @ x.k.transpose(-1, -2) * case.scale)
    q, k, v, grad = (y.abs() for y in (x.q, x.k, x.v, x.grad))
    out = weights @ v
    delta = (grad * out).sum(-1, keepdim=True)
    scores = weights * (grad @ v.transpose(-1, -2) + delta) * abs(case.scale)
    return {
        "out": out.transpose(1, 2),
        "grad_q": scores @ k,
        "grad_k": x.per_key_head(scores.transpose(-1, -2) @ q),
        "grad_v": x.per_key_head(weights.transpose(-1, -2) @ grad),
    }


def row_norms(x: Tensor) -> Tensor:
    return x.double().norm(dim=-1)


def assert_rows(
    got: Results, wanted: Results, case: Case, bound: float, emulated: Results | None = None
) -> None:
    """No row of out or of a gradient misses by more than `bound` of its norm.

    Added to it: twice what the emulation misses, and one rounding of the row's terms, of which rounding
    is all there is where they cancel (a query that sees one key has no gradient).
    """
    terms = magnitudes(case)
    for name in ("out", "grad_q", "grad_k", "grad_v"):
        missed = row_norms(got[name].double() - wanted[name].double())
        eps = torch.finfo(case.q.dtype).eps
        allowed = bound * row_norms(wanted[name]) + eps * row_norms(terms[name])
        if emulated is not None:
            allowed = allowed + 2 * row_norms(emulated[name].double() - wanted[name].double())
        bad = ~(missed <= allowed)  # so that NaN fails
        assert not bad.any(), (
            f"{name}: {int(bad.sum())} of {bad.numel()} rows; worst misses {float(missed[bad].max()):.2e}, "
            f"allowed {float(allowed[bad].min()):.2e}; first at {bad.nonzero()[0].tolist()}"
        )


def assert_lse(got: Tensor, wanted: Tensor, bound: float) -> None:
    """Natural logarithms agree absolutely; -inf exactly where nothing is seen."""
    assert torch.equal(got == -torch.inf, wanted == -torch.inf)
    seen = wanted != -torch.inf
    assert bool(((got.double() - wanted)[seen].abs() <= bound * wanted[seen].abs().clamp_min(1)).all())


def assert_same_bits(got: Results, wanted: Results) -> None:
    for name in wanted:
        assert got[name].dtype == wanted[name].dtype
        assert torch.equal(got[name], wanted[name]), f"{name} differs"
