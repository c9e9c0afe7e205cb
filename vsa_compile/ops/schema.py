"""The torch.library operators: schemas, shapes, autograd. No device code.

    vsa_compile::attention   the one node in a captured graph; CompositeImplicitAutograd, so that tracing
                             enters the method's plain PyTorch
    vsa_compile::hint        returns x; carries the grid of its tokens, for the layout analysis
    vsa_compile::gate        returns q; carries the gate of its attention call, for the conversion
    vsa_compile::zero_padding  an attention output with zeros in the rows of padding queries (leaf)
    vsa_compile::share       the share of the work kept at the present step of a schedule (leaf)
    vsa_compile::select      pooled scores -> kept tiles (leaf)
    vsa_compile::attend      exact attention over the kept tiles (leaf), with vsa_compile::attend_backward

Kernels register themselves: aten.py for every device, cpu/ and gpu/ with faster ones. The arguments of the
leaves are described in args.py.

Notation: B batch, H heads, N tokens, D head width, M tiles, Kcap = width of the tile lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.library import Library, register_autograd, register_fake
from torch.nn.functional import scaled_dot_product_attention

from .. import methods
from ..errors import ArgumentError, DoubleBackwardError, double_backward, kv_alike, no_func_transform
from ..grid import Grid, Size, TileGrid
from ..plan.schedule import schedules
from .args import AttendArgs, BackwardArgs, SelectArgs

_LIBRARY = Library("vsa_compile", "DEF")

_LIBRARY.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? gate, SymInt[] grid, SymInt[] tile, SymInt q_start, "
    "SymInt kv_start, Tensor? key_padding, float? scale, float sparsity, str method, int schedule=-1) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define("share(Tensor like, int schedule) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_SCHEMAS = {
    "select": f"({SelectArgs.schema()}) -> (Tensor tiles, Tensor counts)",
    "attend": f"({AttendArgs.schema()}) -> (Tensor out, Tensor lse, Tensor witness)",
    "attend_backward": f"({BackwardArgs.schema()}) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
}
for _name, _schema in _SCHEMAS.items():
    _LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))

_LIBRARY.define("zero_padding(Tensor x, Tensor padding) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define("gate(Tensor(a) q, Tensor gate) -> Tensor(a)", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(
    "hint(Tensor(a) x, SymInt[] grid, SymInt? start=None) -> Tensor(a)", tags=(torch.Tag.pt2_compliant_tag,)
)


# --- vsa_compile::attention ---------------------------------------------------------------------------


def _autocast(device_type: str, *tensors: Tensor | None) -> list[Tensor | None]:
    """Cast tensors as autocast casts SDPA's arguments: floating point tensors, but not fp64."""
    dtype = torch.get_autocast_dtype(device_type)
    return [
        x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x
        for x in tensors
    ]


def _within(tile: Sequence[Size], grid: Sequence[Size]) -> Any:
    """The tile cut to the grid where that is known: the same boxes, without slots that stay empty."""
    return tuple(min(t, n) if isinstance(n, int) else t for t, n in zip(tile, grid, strict=True))


def _refuse_transforms(*tensors: Tensor) -> None:
    """Raise an error under torch.func transforms for which the leaf operators have no rule.

    Otherwise torch.func.jvp would silently drop the tangent. vmap works: torch loops over the batch.
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
    grid: Sequence[Size],
    tile: Sequence[Size],
    q_start: Size,
    kv_start: Size,
    key_padding: Tensor | None,
    scale: float | None,
    sparsity: float,
    method: str,
    schedule: int = -1,
) -> Tensor:
    """Sparse self-attention of one run of video tokens: (B, H, Nq, D) -> (B, H, Nq, D).

    q (B, H, Nq, D); k, v (B, Hkv, Nkv, D) with Hkv dividing H; gate like q or None. The video is tokens
    q_start.. of q and kv_start.. of k and v, grid[0] * grid[1] * grid[2] of them, raster. All other keys are
    attended densely; key_padding (B or 1, Nkv) bool is True where a non-video key takes part. scale None is
    1 / sqrt(D). `schedule` is the number of a SparsitySchedule, which keeps at most the tiles that `sparsity`
    leaves, or -1.
    """
    kind = q.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if autocast:
        q, k, v, gate = _autocast(kind, q, k, v, gate)  # pyright: ignore[reportAssignmentType]
    if any(isinstance(size, int) and size == 0 for size in q.shape):
        out = scaled_dot_product_attention(q, k, v)  # nothing to compute, but differentiable
        return out if gate is None else out + gate
    if sparsity != 0:
        _refuse_transforms(q, k, v)
    site = methods.Site(
        boxes=TileGrid(Grid(*grid), _within(tile, grid)),
        q_start=q_start,
        kv_start=kv_start,
        key_padding=key_padding,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        sparsity=sparsity,
        share=torch.ops.vsa_compile.share(q, schedule) if schedule >= 0 else None,
    )
    # Known in all graphs except with data-dependent numbers of tokens: there it is a run-time assertion.
    torch._check(k.shape[2] == v.shape[2], kv_alike)
    run = methods.get(method)
    if not autocast:
        return run(q, k, v, gate, site)
    # The coarse scores must stay fp32; autocast would make them bf16 and change the selection.
    with torch.autocast(kind, enabled=False):
        return run(q, k, v, gate, site)


# --- vsa_compile::hint --------------------------------------------------------------------------------


@torch.library.impl(_LIBRARY, "hint", "CompositeImplicitAutograd")
def _hint(x: Tensor, grid: Sequence[Size], start: Size | None = None) -> Tensor:
    """x (..., N, C) as a view; tokens start.. of N are raster (frames, rows, cols) = grid.

    start None: all N are. N is then spelled as the product of the grid: with another spelling, the analysis
    of a graph with symbolic sizes could not tell that the two are equal.
    """
    tokens = x.shape[-2] if start is not None else grid[0] * grid[1] * grid[2]
    return x.view(*x.shape[:-2], tokens, x.shape[-1])


# --- vsa_compile::gate --------------------------------------------------------------------------------


@torch.library.impl(_LIBRARY, "gate", "CompositeImplicitAutograd")
def _gate(q: Tensor, gate: Tensor) -> Tensor:
    """A view of q, the output of the query projection in any shape; gate (B, N, H * D) is computed from the
    same hidden states. If nothing is converted, the gate is unused and gets removed from the graph."""
    return q.view_as(q)


# --- vsa_compile::zero_padding ------------------------------------------------------------------------


@torch.library.impl(_LIBRARY, "zero_padding", "CompositeExplicitAutograd")
def _zero_padding(x: Tensor, padding: Tensor) -> Tensor:
    """x (B, H, N, D) -> (B, N, H, D), contiguous, with zeros in the rows of queries that see no key: where
    padding (B or 1, 1, 1, N) is False.

    An operator instead of `where`: Inductor (2.13) cannot slice a computed tensor at a data-dependent
    position, as models with text padding of data-dependent length do with the output.
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
    """1 - sparsity at the present step of a schedule: (2,) int64, numerator and denominator, on the device of
    `like`. Read at run time. The backward saves the lists made from it; if checkpointing makes them again,
    the value is that of the forward."""
    return schedules[schedule].share_in_force(like.device).clone()


@register_fake("vsa_compile::share")
def _share_fake(like: Tensor, schedule: int) -> Tensor:
    return like.new_empty((2,), dtype=torch.int64)


# --- vsa_compile::select ------------------------------------------------------------------------------


@register_fake("vsa_compile::select")
def _select_fake(*arguments: Any, **more: Any) -> tuple[Tensor, Tensor]:
    return _fake(SelectArgs, arguments, more)


def _fake(kind: type, arguments: tuple, more: dict[str, Any]) -> tuple:
    call = kind.of(*arguments, **more)
    call.check()
    return call.new_outputs()


# --- vsa_compile::attend ------------------------------------------------------------------------------


@register_fake("vsa_compile::attend")
def _attend_fake(*arguments: Any, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _fake(AttendArgs, arguments, more)


@register_fake("vsa_compile::attend_backward")
def _attend_backward_fake(*arguments: Any, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _fake(BackwardArgs, arguments, more)


def _attend_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    tensors = (x if isinstance(x, Tensor) else None for x in inputs)
    ctx.save_for_backward(*output, *tensors)
    ctx.others = tuple(None if isinstance(x, Tensor) else x for x in inputs)


def _attend_grad(ctx: Any, grad_out: Tensor | None, *_: None) -> tuple:
    if grad_out is None:
        return (None,) * len(ctx.others)
    out, lse, witness, *tensors = ctx.saved_tensors
    inputs = (other if x is None else x for x, other in zip(tensors, ctx.others, strict=True))
    grads = torch.ops.vsa_compile.attend_backward(grad_out, out, lse, witness, *inputs)
    return *(grad.transpose(1, 2) for grad in grads), *(None,) * (len(ctx.others) - len(grads))


register_autograd("vsa_compile::attend", _attend_grad, setup_context=_attend_setup)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> tuple:
    raise DoubleBackwardError(double_backward())


register_autograd("vsa_compile::attend_backward", _no_second_derivative)
