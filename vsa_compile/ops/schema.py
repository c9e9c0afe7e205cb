"""The torch.library operators: schemas, shapes, autograd. No device code.

    vsa_compile::attention   the one node in a captured graph; CompositeImplicitAutograd, so that tracing
                     walks into the method's plain PyTorch
    vsa_compile::hint        x itself, with the grid of its tokens for the layout analysis to read
    vsa_compile::gate        q itself, with the gate of its attention call for the conversion to find
    vsa_compile::zero_padding  an output with zeros in the rows of queries that are padding (leaf)
    vsa_compile::share       the share of the work that this step of a schedule keeps (leaf)
    vsa_compile::select      pooled scores -> kept tiles (leaf)
    vsa_compile::attend      exact attention over the kept tiles (leaf), with vsa_compile::attend_backward

Kernels register themselves: aten.py for every device, cpu/ and gpu/ where they do better.
May be imported by kernels and by everything above; imports reference-level modules only.

Notation: B batch, H heads, N tokens, D head width, M tiles, Kcap = width of the tile lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.library import Library, register_autograd, register_fake

from .. import methods
from ..errors import ArgumentError, DoubleBackwardError, double_backward, kv_alike, no_func_transform
from ..grid import Grid, TileGrid
from ..plan.schedule import schedules

_LIBRARY = Library("vsa_compile", "DEF")

_SITE = "SymInt[] grid, SymInt[] tile, SymInt q_start, SymInt kv_start, Tensor? key_padding"

_LIBRARY.define(
    f"attention(Tensor q, Tensor k, Tensor v, Tensor? gate, {_SITE}, "
    "float? scale, float sparsity, str method, int schedule=-1) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define("share(Tensor like, int schedule) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(
    "select(Tensor scores, SymInt at_most, Tensor? threshold=None, Tensor? count=None)"
    " -> (Tensor tiles, Tensor counts)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# The queries may be a raster of their own, packed, with tiles of its own: what a query pruner leaves over.
_PACKED = "SymInt[]? q_grid=None, SymInt[]? q_tile=None"
_LIBRARY.define(
    f"attend(Tensor q, Tensor k, Tensor v, Tensor tiles, Tensor counts, {_SITE}, float scale, {_PACKED})"
    " -> (Tensor out, Tensor lse, Tensor witness)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "attend_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"Tensor tiles, Tensor counts, {_SITE}, float scale, Tensor witness, {_PACKED})"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
    tags=(torch.Tag.pt2_compliant_tag,),
)

_LIBRARY.define("zero_padding(Tensor x, Tensor padding) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define("gate(Tensor(a) q, Tensor gate) -> Tensor(a)", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(
    "hint(Tensor(a) x, SymInt[] grid, SymInt? start=None) -> Tensor(a)", tags=(torch.Tag.pt2_compliant_tag,)
)


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64 inputs."""
    return torch.promote_types(dtype, torch.float32)


def witness(q: Tensor, grid: Sequence[Any]) -> Tensor:
    """(frames, rows, cols, 0), a tensor without elements: the third output of vsa_compile::attend.

    The backward saves it. Where activation checkpointing computes the forward again, torch compares the
    shapes of what was saved: a grid that was hinted, and has changed since, is an error by that, also where
    the number of tokens is the same.
    """
    return q.new_empty((*grid, 0))


def consistent(q: Tensor, k: Tensor, v: Tensor, tiles: Tensor, counts: Tensor, grid: Sequence[int],
               tile: Sequence[int], q_start: int, kv_start: int, key_padding: Tensor | None, _scale: float,
               q_grid: Sequence[int] | None = None,
               q_tile: Sequence[int] | None = None) -> bool:  # fmt: skip
    """Whether all shapes of a call of vsa_compile::attend agree, and none is empty. For kernels that follow
    pointers: ATen answers a wrong shape with a message."""
    boxes = TileGrid(Grid(*grid), tuple(tile))  # pyright: ignore[reportArgumentType]
    rows = boxes if not q_grid or not q_tile else TileGrid(Grid(*q_grid), tuple(q_tile))  # pyright: ignore[reportArgumentType]
    lists, video = (*q.shape[:2], rows.tiles), boxes.grid.tokens
    paddings = ((1, k.shape[2]), (k.shape[0], k.shape[2]))
    return (
        q.numel() > 0
        and k.numel() > 0
        and q.dtype == k.dtype == v.dtype
        and k.shape == v.shape
        and q.shape[::3] == k.shape[::3]
        and q.shape[1] % k.shape[1] == 0
        and tiles.shape[:-1] == counts.shape == lists
        and tiles.dtype == counts.dtype == torch.int32
        and 0 <= q_start <= q.shape[2] - rows.grid.tokens
        and 0 <= kv_start <= k.shape[2] - video
        and (key_padding is None or (key_padding.shape in paddings and key_padding.dtype == torch.bool))
    )


# --- vsa_compile::attention ---------------------------------------------------------------------------


def _autocast(device_type: str, *tensors: Tensor | None) -> list[Tensor | None]:
    """Cast as autocast casts SDPA's arguments: floating point tensors, but not fp64."""
    dtype = torch.get_autocast_dtype(device_type)
    return [
        x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x
        for x in tensors
    ]


def _within(tile: Sequence[Any], grid: Sequence[Any]) -> Any:
    """The tile cut to the grid, where that is known: the same boxes, without slots that are never filled."""
    return tuple(min(t, n) if isinstance(n, int) else t for t, n in zip(tile, grid, strict=True))


def _refuse_transforms(*tensors: Tensor) -> None:
    """An error under the torch.func transforms that the leaf operators have no rule for.

    Without it torch.func.jvp would drop the tangent in silence. vmap passes: torch loops over the batch.
    """
    if torch.compiler.is_compiling():
        return
    for x in tensors:
        if unpack_dual(x).tangent is not None:
            raise ArgumentError(no_func_transform("forward-mode differentiation (torch.func.jvp)"))
        if x.requires_grad and torch.func.debug_unwrap(x, recurse=False) is not x:
            raise ArgumentError(no_func_transform("torch.func.grad, vjp and jacrev"))


@torch.library.impl(_LIBRARY, "attention", "CompositeImplicitAutograd")
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor | None,
    grid: Sequence[Any],
    tile: Sequence[Any],
    q_start: Any,
    kv_start: Any,
    key_padding: Tensor | None,
    scale: float | None,
    sparsity: float,
    method: str,
    schedule: int = -1,
) -> Tensor:
    """Sparse self-attention of one run of video tokens: (B, H, Nq, D) -> (B, H, Nq, D).

    q (B, H, Nq, D); k, v (B, Hkv, Nkv, D) with Hkv dividing H; gate like q or None. The video is
    tokens q_start.. of q and kv_start.. of k and v, grid[0] * grid[1] * grid[2] of them, raster.
    All other keys are attended densely; key_padding (B or 1, Nkv) bool is True where a non-video
    key takes part. scale None is 1 / sqrt(D). `schedule` is the number of a SparsitySchedule, which keeps
    fewer tiles than `sparsity` leaves, or -1.
    """
    kind = q.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if autocast:
        q, k, v, gate = _autocast(kind, q, k, v, gate)  # pyright: ignore[reportAssignmentType]
    if any(isinstance(size, int) and size == 0 for size in q.shape):
        out = F.scaled_dot_product_attention(q, k, v)  # nothing to compute, and still differentiable
        return out if gate is None else out + gate
    if sparsity != 0:
        _refuse_transforms(q, k, v)
    site = methods.Site(
        tiles=TileGrid(Grid(*grid), _within(tile, grid)),
        q_start=q_start,
        kv_start=kv_start,
        key_padding=key_padding,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        sparsity=sparsity,
        share=torch.ops.vsa_compile.share(q, schedule) if schedule >= 0 else None,
    )
    # Known of every call but one whose tokens are data: there it becomes an assertion of the graph.
    torch._check(k.shape[2] == v.shape[2], kv_alike)
    run = methods.get(method)
    if not autocast:
        return run(q, k, v, gate, site)
    # The coarse scores are fp32 on purpose; autocast would make them bf16 and change the selection.
    with torch.autocast(kind, enabled=False):
        return run(q, k, v, gate, site)


# --- vsa_compile::hint --------------------------------------------------------------------------------


@torch.library.impl(_LIBRARY, "hint", "CompositeImplicitAutograd")
def _hint(x: Tensor, grid: Sequence[Any], start: Any = None) -> Tensor:
    """x (..., N, C) as a view; tokens start.. of N are raster (frames, rows, cols) = grid.

    start None says that all N are. N is spelled as the product then, which need not be how the size of x is
    spelled: the analysis of a graph with symbolic sizes could not tell that the two are equal.
    """
    tokens = x.shape[-2] if start is not None else grid[0] * grid[1] * grid[2]
    return x.view(*x.shape[:-2], tokens, x.shape[-1])


# --- vsa_compile::gate --------------------------------------------------------------------------------


@torch.library.impl(_LIBRARY, "gate", "CompositeImplicitAutograd")
def _gate(q: Tensor, gate: Tensor) -> Tensor:
    """q, as a view: what the query projection gave, whatever its shape; gate (B, N, H * D) of the same hidden
    states. Where nothing is converted, the gate is computed for nobody, and so removed."""
    return q.view_as(q)


# --- vsa_compile::zero_padding ------------------------------------------------------------------------


@torch.library.impl(_LIBRARY, "zero_padding", "CompositeExplicitAutograd")
def _zero_padding(x: Tensor, padding: Tensor) -> Tensor:
    """x (B, H, N, D) -> (B, N, H, D), contiguous, with zeros in the rows of queries that see no key: where
    padding (B or 1, 1, 1, N) is False.

    An operator, not `where`: Inductor (2.13) cannot slice a computed tensor at a position that is data,
    and models that pad their text by data do so with the output.
    """
    return x.transpose(1, 2).masked_fill(padding.permute(0, 3, 1, 2).logical_not(), 0.0).contiguous()


@register_fake("vsa_compile::zero_padding")
def _zero_padding_fake(x: Tensor, padding: Tensor) -> Tensor:
    batch, heads, tokens, width = x.shape
    return x.new_empty((batch, tokens, heads, width))


def _zero_padding_grad(ctx: Any, grad: Tensor) -> tuple:
    return torch.ops.vsa_compile.zero_padding(grad.transpose(1, 2), *ctx.saved_tensors).transpose(1, 2), None


register_autograd(
    "vsa_compile::zero_padding",
    _zero_padding_grad,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
)


# --- vsa_compile::share -------------------------------------------------------------------------------


@torch.library.impl(_LIBRARY, "share", "CompositeExplicitAutograd")
def _share(like: Tensor, schedule: int) -> Tensor:
    """1 - sparsity at the step that the schedule is at: (2,) int64, numerator and denominator, on the device
    of `like`. Read when the graph runs. The backward saves the lists that are made of it; where checkpointing
    makes them again, it reads the step of the forward."""
    return schedules[schedule].share_in_force(like.device).clone()


@register_fake("vsa_compile::share")
def _share_fake(like: Tensor, schedule: int) -> Tensor:
    return like.new_empty((2,), dtype=torch.int64)


# --- vsa_compile::select ------------------------------------------------------------------------------


@register_fake("vsa_compile::select")
def _select_fake(
    scores: Tensor, at_most: Any, threshold: Tensor | None = None, count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    tiles = scores.new_empty((*scores.shape[:-1], at_most), dtype=torch.int32)
    return tiles, scores.new_empty(scores.shape[:-1], dtype=torch.int32)


# --- vsa_compile::attend ------------------------------------------------------------------------------


@register_fake("vsa_compile::attend")
def _attend_fake(
    q: Tensor, k: Tensor, v: Tensor, tiles: Tensor, counts: Tensor, grid: Sequence[Any], *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, tokens, width = q.shape
    out = q.new_empty((batch, tokens, heads, width))
    return out, q.new_empty((batch, heads, tokens), dtype=lse_dtype(q.dtype)), witness(q, grid)


@register_fake("vsa_compile::attend_backward")
def _attend_backward_fake(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    def token_major(x: Tensor) -> Tensor:
        batch, heads, tokens, width = x.shape
        return x.new_empty((batch, tokens, heads, width))

    return token_major(q), token_major(k), token_major(v)


def _attend_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, tiles, counts, grid, tile, q_start, kv_start, key_padding, scale, *packed = inputs
    out, lse, seen_grid = output
    ctx.mark_non_differentiable(lse, seen_grid)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, out, lse, tiles, counts, key_padding, seen_grid)
    ctx.site = (grid, tile, q_start, kv_start)
    ctx.scale = scale
    ctx.packed = packed


def _attend_grad(ctx: Any, grad_out: Tensor | None, *_: None) -> tuple:
    if grad_out is None:
        return (None,) * 13
    q, k, v, out, lse, tiles, counts, key_padding, seen_grid = ctx.saved_tensors
    grads = torch.ops.vsa_compile.attend_backward(
        grad_out, q, k, v, out, lse, tiles, counts, *ctx.site, key_padding, ctx.scale, seen_grid, *ctx.packed
    )
    grad_q, grad_k, grad_v = (grad.transpose(1, 2) for grad in grads)
    return grad_q, grad_k, grad_v, *(None,) * 10


register_autograd("vsa_compile::attend", _attend_grad, setup_context=_attend_setup)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> tuple:
    raise DoubleBackwardError(double_backward())


register_autograd("vsa_compile::attend_backward", _no_second_derivative)
