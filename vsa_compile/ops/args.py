"""One description of a call of each leaf operator: its arguments, in the schema's order, and their checks.

Schemas, fakes, autograd, ATen, C++, templates and FLOPs all use it: a new argument is one field here, and its
check one line. Sizes may be symbolic, and values may be Inductor IR; but `check` takes tensors.

Notation: B batch, H heads, Hkv key heads, N tokens, D head width, M tiles, Kcap width of the lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

from ..errors import ArgumentError, bad_list, differ
from ..grid import Grid, Size, TileGrid
from ..torch_compat import assert_on_device, surely_true
from .checks import check_box, check_devices, check_shape, check_type, refuse

TensorOrIR: TypeAlias = Any  # a tensor, or a value of Inductor's IR in a lowering

# The type of a field in the operator's schema.
_TENSOR, _TENSOR_OR_NONE, _SIZE, _SIZES, _SIZES_OR_NONE, _NUMBER = (
    {"kind": kind} for kind in ("Tensor", "Tensor?", "SymInt", "SymInt[]", "SymInt[]?", "float")
)


class _Arguments:
    """Shared by all descriptions: the schema's text, parsing, and a map over all values."""

    @classmethod
    def arguments(cls) -> list[tuple[str, str, Any]]:
        """(schema type, name, default or MISSING) of each argument."""
        return [(x.metadata["kind"], x.name, x.default) for x in fields(cls)]  # pyright: ignore[reportArgumentType]

    @classmethod
    def schema(cls) -> str:
        """The arguments as a schema spells them: "Tensor q, Tensor k, ..."."""
        return ", ".join(
            f"{kind} {name}" + ("" if default is MISSING else f"={default}")
            for kind, name, default in cls.arguments()
        )

    @classmethod
    def of(cls, *arguments: Any, **more: Any) -> Self:
        """Parse arguments as the dispatcher or Inductor passes them: arguments with a default may be missing
        or passed by name."""
        return cls(*arguments, **more)

    def map(self, function: Callable[[Any], Any]) -> Self:
        """A copy with function(value) for every value."""
        names = [argument.name for argument in fields(self)]  # pyright: ignore[reportArgumentType]
        return replace(self, **{name: function(getattr(self, name)) for name in names})  # pyright: ignore

    def check(self) -> None:
        """Raises ArgumentError if shapes, dtypes or numbers are certainly wrong; sizes may be symbolic."""
        raise NotImplementedError

    def check_values(self) -> None:
        """Raises ArgumentError if the contents of tensors are invalid. It reads memory: eager calls only."""


def takes(kind: type[_Arguments], kernel: Callable) -> Callable:
    """The function that an operator calls: checks the arguments and passes them, as `kind`, to `kernel`."""

    def run(*arguments: Any, **more: Any) -> Any:
        call = kind.of(*arguments, **more)
        call.check()
        call.check_values()
        return kernel(call)

    return run


# --- vsa_compile::select ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SelectArgs(_Arguments):
    """Which tiles to keep of every row of scores: at most `at_most`, none below the row's threshold, and at
    most `count` (0-dim integer tensor), for a number that is known only at run time."""

    scores: TensorOrIR = field(metadata=_TENSOR)  # (..., M)
    at_most: Size = field(metadata=_SIZE)
    threshold: TensorOrIR | None = field(metadata=_TENSOR_OR_NONE, default=None)  # (...)
    count: TensorOrIR | None = field(metadata=_TENSOR_OR_NONE, default=None)  # ()

    @property
    def device(self) -> torch.device:
        return self.scores.device

    @property
    def empty(self) -> bool:
        return self.scores.numel() == 0

    def new_outputs(self) -> tuple[Tensor, Tensor]:
        """Uninitialised tiles (..., at_most) and counts (...), int32."""
        rows = self.scores.shape[:-1]
        tiles = self.scores.new_empty((*rows, self.at_most), dtype=torch.int32)
        return tiles, self.scores.new_empty(rows, dtype=torch.int32)

    def check(self) -> None:
        if not self.scores.dim() or not self.scores.is_floating_point():
            refuse("scores", f"{self.scores.dtype}, {tuple(self.scores.shape)}", "floating point, (..., M)")
        total = self.scores.shape[-1]
        if surely_true(self.at_most < 1) or surely_true(self.at_most > total):
            refuse("at_most", self.at_most, f"from 1 to {total}, the tiles of a row")
        if self.threshold is not None:
            check_shape("threshold", self.threshold, self.scores.shape[:-1])
        if self.count is not None:
            check_shape("count", self.count, ())
            if self.count.is_floating_point():
                refuse("count.dtype", self.count.dtype, "of integers")
        check_devices(self)


# --- vsa_compile::attend ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AttendArgs(_Arguments):
    """Exact softmax attention over listed tiles and all non-video keys.

    tiles: for each query tile m, the ids of the key tiles that it sees: the first counts[b, h, m] entries of
        a row, ascending, without repetition, from 0 to M - 1; later entries are ignored. In eager calls
        `check_values` refuses other lists. In compiled code whoever makes the lists is responsible:
        vsa_compile::select makes valid ones, and a kernel may use ids as addresses unchecked.
    grid, tile: the run of video keys from kv_start on, and how it is cut into tiles. The same holds for the
        video queries from q_start on, unless q_grid and q_tile give them a raster of their own, as packed
        queries have. All other keys are seen by all queries; all other queries see all keys.
    key_padding: True where a non-video key takes part. A query that sees no key has output 0.
    """

    q: TensorOrIR = field(metadata=_TENSOR)  # (B, H, Nq, D)
    k: TensorOrIR = field(metadata=_TENSOR)  # (B, Hkv, Nkv, D)
    v: TensorOrIR = field(metadata=_TENSOR)  # (B, Hkv, Nkv, D)
    tiles: TensorOrIR = field(metadata=_TENSOR)  # (B, H, Mq, Kcap) int32
    counts: TensorOrIR = field(metadata=_TENSOR)  # (B, H, Mq) int32
    grid: Sequence[Size] = field(metadata=_SIZES)
    tile: Sequence[Size] = field(metadata=_SIZES)
    q_start: Size = field(metadata=_SIZE)
    kv_start: Size = field(metadata=_SIZE)
    key_padding: TensorOrIR | None = field(metadata=_TENSOR_OR_NONE)  # (B or 1, Nkv) bool
    scale: float = field(metadata=_NUMBER)
    q_grid: Sequence[Size] | None = field(metadata=_SIZES_OR_NONE, default=None)
    q_tile: Sequence[Size] | None = field(metadata=_SIZES_OR_NONE, default=None)

    @property
    def device(self) -> torch.device:
        return self.q.device

    @property
    def boxes(self) -> TileGrid:
        """The tiles of the video keys."""
        return TileGrid(Grid(*self.grid), tuple(self.tile))  # pyright: ignore[reportArgumentType]

    @property
    def query_boxes(self) -> TileGrid:
        """The tiles of the video queries."""
        if self.q_grid is None:
            return self.boxes
        return TileGrid(Grid(*self.q_grid), tuple(self.q_tile))  # pyright: ignore[reportArgumentType]

    @property
    def empty(self) -> bool:
        """Whether there is no query or no key. Kernels that use pointers leave that case to ATen."""
        return self.q.numel() == 0 or self.k.numel() == 0

    def new_outputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Uninitialised out (B, Nq, H, D), lse (B, H, Nq) and the witness of the grid."""
        lse = self.q.new_empty(self.q.shape[:3], dtype=lse_dtype(self.q.dtype))
        return _by_token(self.q), lse, self.new_witness()

    def new_witness(self) -> Tensor:
        """(frames, rows, cols, 0), a tensor without elements, which the backward saves.

        If activation checkpointing recomputes the forward, torch compares the shapes of saved tensors: a
        hinted grid that has changed since is then an error, even if the number of tokens is the same.
        """
        return self.q.new_empty((*self.grid, 0))

    def check(self) -> None:
        self._check_tokens()
        for name in ("grid", "tile", "q_grid", "q_tile"):
            check_box(name, getattr(self, name))
        if (self.q_grid is None) != (self.q_tile is None):
            refuse("q_grid, q_tile", (self.q_grid, self.q_tile), "given both or neither")
        self._check_start("q_start", self.q_start, self.query_boxes.grid.tokens, self.q.shape[2])
        self._check_start("kv_start", self.kv_start, self.boxes.grid.tokens, self.k.shape[2])
        lists = (*self.q.shape[:2], self.query_boxes.tiles)
        for name, x, shape in (("tiles", self.tiles, (*lists, None)), ("counts", self.counts, lists)):
            check_shape(name, x, shape)
            check_type(name, x, torch.int32)
        if isinstance(self.scale, float) and not math.isfinite(self.scale):
            refuse("scale", self.scale, "a finite number")
        check_devices(self)

    def _check_tokens(self) -> None:
        q, k, v, padding = self.q, self.k, self.v, self.key_padding
        for name, x in (("q", q), ("k", k), ("v", v)):
            if x.dim() != 4:
                refuse(f"{name}.shape", tuple(x.shape), "(batch, heads, tokens, width)")
        if not (q.is_floating_point() and q.dtype == k.dtype == v.dtype):
            raise ArgumentError(differ("dtype", f"q {q.dtype}, k {k.dtype}, v {v.dtype}"))
        check_shape("k", k, (q.shape[0], None, None, q.shape[3]))
        check_shape("v", v, k.shape)
        heads, kv_heads = q.shape[1], k.shape[1]
        uneven = surely_true(heads % torch.sym_max(kv_heads, 1) != 0)
        if uneven or surely_true(kv_heads == 0) != surely_true(heads == 0):
            refuse("k.shape[1]", kv_heads, f"a divisor of q's {heads} heads")
        if padding is not None:
            check_shape("key_padding", padding, (None, k.shape[2]))
            check_type("key_padding", padding, torch.bool)
            if surely_true(padding.shape[0] != 1) and surely_true(padding.shape[0] != k.shape[0]):
                refuse("key_padding.shape[0]", padding.shape[0], f"1 or the batch {k.shape[0]}")

    def _check_start(self, name: str, start: Size, video: Size, tokens: Size) -> None:
        if surely_true(start < 0) or surely_true(start + video > tokens):
            refuse(name, start, f"at least 0, with {video} video tokens from there on of {tokens} in all")

    def check_values(self) -> None:
        """Check the lists, in one pass, which is shared by batches and heads that share their lists.

        On CUDA the host does not wait; a wrong list fails there as a device-side assertion.
        """
        tiles, counts = _shared(self.tiles), _shared(self.counts)
        if not counts.numel():
            return
        if counts.device.type == "cpu":  # reading is free there, and most lists are not full
            tiles = tiles[..., : max(0, int(counts.max()))]
        total, width = self.boxes.tiles, self.tiles.shape[-1]
        ascending = tiles[..., 1:] > tiles[..., :-1]
        place = torch.arange(tiles.shape[-1], dtype=torch.int32, device=tiles.device)
        good = (tiles >= 0) & (tiles < total)
        good[..., 1:] &= ascending
        good = (good | (place >= counts[..., None])).all(-1) & (counts >= 0) & (counts <= width)
        if counts.device.type == "cuda":
            assert_on_device(good.all(), bad_list("(not looked up)", (), 0, total))
        elif not good.all():
            at = tuple((~good).nonzero()[0].tolist())
            raise ArgumentError(bad_list(str(at), self.tiles[at].tolist(), int(self.counts[at]), total))


# --- vsa_compile::attend_backward ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BackwardArgs(_Arguments):
    """The gradient of the output, the results of the forward, and its call."""

    grad_out: TensorOrIR = field(metadata=_TENSOR)  # (B, Nq, H, D)
    out: TensorOrIR = field(metadata=_TENSOR)  # (B, Nq, H, D)
    lse: TensorOrIR = field(metadata=_TENSOR)  # (B, H, Nq), fp32, or fp64 for fp64 inputs
    witness: TensorOrIR = field(metadata=_TENSOR)  # (frames, rows, cols, 0)
    call: AttendArgs

    @classmethod
    def arguments(cls) -> list[tuple[str, str, Any]]:
        own = [(x.metadata["kind"], x.name, x.default) for x in fields(cls) if x.name != "call"]
        return own + AttendArgs.arguments()

    @classmethod
    def of(cls, *arguments: Any, **more: Any) -> Self:
        own = len(fields(cls)) - 1
        grad_out, out, lse, witness = arguments[:own]
        return cls(grad_out, out, lse, witness, AttendArgs(*arguments[own:], **more))

    def map(self, function: Callable[[Any], Any]) -> Self:
        own = {x.name: function(getattr(self, x.name)) for x in fields(self) if x.name != "call"}
        return replace(self, **own, call=self.call.map(function))

    @property
    def device(self) -> torch.device:
        return self.call.device

    @property
    def empty(self) -> bool:
        return self.call.empty

    def new_outputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Uninitialised gradients of q, k and v, (B, N, H or Hkv, D)."""
        return _by_token(self.call.q), _by_token(self.call.k), _by_token(self.call.v)

    def check(self) -> None:
        self.call.check()
        q = self.call.q
        batch, heads, tokens, width = q.shape
        for name, x in (("grad_out", self.grad_out), ("out", self.out)):
            check_shape(name, x, (batch, tokens, heads, width))
            check_type(name, x, q.dtype)
        check_shape("lse", self.lse, (batch, heads, tokens))
        check_type("lse", self.lse, lse_dtype(q.dtype))
        check_devices(self, q=q)

    def check_values(self) -> None:
        self.call.check_values()


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64 inputs."""
    return torch.promote_types(dtype, torch.float32)


def _by_token(x: Tensor) -> Tensor:
    """Uninitialised (B, N, H, D) memory for a tensor of x's (B, H, N, D) values."""
    batch, heads, tokens, width = x.shape
    return x.new_empty((batch, tokens, heads, width))


def _shared(lists: Tensor) -> Tensor:
    """The lists without repetition over batches or heads that share them, as in a static pattern."""
    for dim in (0, 1):
        if lists.shape[dim] > 1 and lists.stride(dim) == 0:
            lists = lists.narrow(dim, 0, 1)
    return lists
