"""Random calls of vsa_compile::attend, and the kernels that answer them.

Notation: B batch, H heads, Hkv key heads, N tokens, D head width, M tiles, Kcap width of the lists.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from unittest import mock

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from vsa_compile.grid import Grid, Tile, TileGrid
from vsa_compile.ops import aten
from vsa_compile.ops.cpu import loader

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


@dataclass(frozen=True, repr=False)
class Case:
    """Arguments of vsa_compile::attend, and a gradient for its output."""

    made: str  # how: the call of make_case that this case is, or was before a test changed it

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
    packed: tuple[Grid, Tile] | tuple[()] = ()  # grid and tile of the queries, where they are their own

    def __repr__(self) -> str:
        return self.made

    def _repr_pretty_(self, printer, cycle: bool) -> None:  # hypothesis prints by this
        printer.text(self.made)

    @property
    def site(self) -> tuple:
        return (
            self.tiles, self.counts, self.grid, self.tile, self.q_start, self.kv_start,
            self.key_padding, self.scale, *self.packed,
        )  # fmt: skip

    def arguments(self) -> tuple:
        return (self.q, self.k, self.v, *self.site)

    def double(self) -> Case:
        return replace(self, **{name: getattr(self, name).double() for name in ("q", "k", "v", "grad_out")})

    @property
    def boxes(self) -> TileGrid:
        return TileGrid(self.grid, self.tile)

    def to(self, device: str) -> Case:
        names = ("q", "k", "v", "grad_out", "tiles", "counts", "key_padding")
        return replace(self, **{n: x.to(device) for n in names if (x := getattr(self, n)) is not None})

    def video_alone(self) -> Case:
        """The case without its non-video queries, which would see every key."""
        video = slice(self.q_start, self.q_start + self.grid.tokens)
        return replace(self, q=self.q[:, :, video], grad_out=self.grad_out[:, video], q_start=0)

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
    made = ", ".join(f"{name}={value!r}" for name, value in locals().items())
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
        made=f"make_case({made})",
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
def cases(draw: st.DrawFn, kernel: Kernel) -> Case:
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
        width=draw(st.sampled_from(kernel.widths)), dtype=kernel.dtype, layout=draw(st.sampled_from(LAYOUTS)),
        scale=draw(st.sampled_from((None, 0.1, -0.2))),
    )  # fmt: skip


# --- Kernels --------------------------------------------------------------------------------------

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Kernel:
    """One of our implementations of select, attend and attend_backward, in one precision."""

    name: str
    dtype: torch.dtype
    device: str = "cpu"
    variant: str = ""  # of the C++; "" for the fastest

    @property
    def widths(self) -> tuple[int, ...]:
        """Head widths that it is tried with."""
        return (1, 16, 20, 32, 48, 64, 128) if self.name == "cpp" else (1, 8, 20, 32)

    @property
    def id(self) -> str:
        parts = (self.name, str(self.dtype).removeprefix("torch."), self.device)
        return "-".join((*parts, *(("slower", self.variant) if self.variant else ())))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Nothing else answers, and memory that nobody has written holds NaN."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(nan_in_unwritten_memory())
            named = "aten" if self.name == "aten" else self.variant
            stack.enter_context(mock.patch.dict(os.environ, {loader.VARIABLE: named}))
            if self.name != "aten":
                for name in ("attend", "attend_backward", "select"):
                    stack.enter_context(mock.patch.object(aten, name, _not_the_kernel))
            yield

    def run(self, case: Case) -> Results:
        """out, lse, grad_q, grad_k and grad_v, on the CPU."""
        with self.running():
            results = through_autograd(torch.ops.vsa_compile.attend, case.to(self.device))
        return {name: x.cpu() for name, x in results.items()}


def _not_the_kernel(*_: object) -> None:
    raise AssertionError("ATen was called in the place of the kernel under test")


@contextlib.contextmanager
def nan_in_unwritten_memory() -> Iterator[None]:
    """torch.empty and its like give NaN. (The C++ kernel's scratch does so in all tests: conftest.py.)"""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(1).isnan()
        yield
    finally:
        torch.use_deterministic_algorithms(before)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPP = [Kernel("cpp", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
# What slower processors would run, as far as this one can: other instructions, all else alike.
SLOWER = [replace(kernel, variant=variant) for variant in loader.variants()[1:] for kernel in CPP]
ATEN = [Kernel("aten", dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)]
ATEN_GPU = [replace(kernel, device="cuda") for kernel in ATEN]


def each_kernel(kernels: list[Kernel]) -> pytest.MarkDecorator:
    """Parametrizes `kernel`; those that this machine cannot run are skipped."""
    parameters = [pytest.param(kernel, marks=_marks(kernel), id=kernel.id) for kernel in kernels]
    return pytest.mark.parametrize("kernel", parameters)


def _marks(kernel: Kernel) -> list[pytest.MarkDecorator]:
    if kernel.device == "cuda":
        return [pytest.mark.gpu, needs_gpu]
    # Narrow types differ in how rows are read and written; only the fastest multiplies them as they are.
    return [pytest.mark.slow] if kernel.variant and kernel.dtype != torch.float32 else []


def through_autograd(attend: Callable, case: Case) -> Results:
    """out, lse and the gradients of `attend`, which has vsa_compile::attend's arguments."""
    leaves = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]
    out, lse, *_ = attend(*leaves, *case.site)
    grads = torch.autograd.grad(out, leaves, case.grad_out)
    return dict(
        zip(("out", "lse", "grad_q", "grad_k", "grad_v"), (out.detach(), lse.detach(), *grads), strict=True)
    )


def assert_same_bits(got: Results, wanted: Results) -> None:
    for name in wanted:
        assert got[name].dtype == wanted[name].dtype
        assert torch.equal(got[name], wanted[name]), f"{name} differs"
