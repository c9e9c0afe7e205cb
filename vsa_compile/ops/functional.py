"""`vsa_compile.attention`: the operator, called by hand; all arguments are checked before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import errors, methods
from ..errors import ArgumentError, bad_value, grid_mismatch
from ..options import is_int, read_grid, read_method, read_sparsity, read_tile

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: Sequence[int],
    sparsity: float = 0.875,
    method: str = "vsa",
    tile: Sequence[int] = (4, 4, 4),
    gate: Tensor | None = None,
    scale: float | None = None,
    video_start: int = 0,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """Sparse attention of one run of video tokens: (B, H, Nq, D) -> (B, H, Nq, D), any strides.

        out = vsa_compile.attention(q, k, v, grid=(21, 30, 52), sparsity=0.875)

    q: (B, H, Nq, D); k, v: (B, Hkv, Nkv, D), where Hkv divides H (grouped-query attention).
    grid: (frames, rows, cols) of the video tokens, raster order, cols fastest.
    sparsity: share of query-key work that is NOT computed; 0 is dense SDPA.
    method: "vsa" (arXiv 2505.13389), "bsa" (2509.01085, sparse queries too), "sta" (2502.04507, a static
        box), or a name given to register_method.
    tile: (frames, rows, cols) tokens of a tile; border tiles are smaller.
    gate: like q; adds gate * coarse attention (VSA, section 2.2). None adds nothing. Not for bsa and sta.
    scale: of the scores; None is 1 / sqrt(D).
    video_start: tokens in front of the video in k and v, and in q if it is as long. All keys outside the
        video are attended densely; queries outside it attend to everything.
    key_padding_mask: (B or 1, Nkv) bool, True where a key takes part; only non-video keys are masked by it.

    Raises ArgumentError or OptionError, which name what came and what is allowed.
    """
    checked_grid, checked_tile = read_grid(grid), read_tile(tile)
    sparsity = read_sparsity(sparsity)
    method = methods.literal(read_method(method))
    _check_tensors(q, k, v, gate, key_padding_mask)
    if (sparsity or gate is not None) and any(type(x).__name__ == "DTensor" for x in (q, k, v)):
        raise ArgumentError(errors.distributed())
    _check_shapes(q, k, v, gate)
    _check_numbers(scale, video_start)
    video = checked_grid.tokens
    whole = q.shape[2] == k.shape[2]
    q_start = video_start if whole else 0
    if video_start + video > k.shape[2]:
        raise ArgumentError(grid_mismatch(checked_grid, video_start, k.shape[2], "k"))
    if q_start + video > q.shape[2]:
        raise ArgumentError(grid_mismatch(checked_grid, q_start, q.shape[2], "q"))
    behind = k.shape[2] - video_start - video
    if behind and key_padding_mask is None:
        # They are legal only if the caller says what they are: a wrong grid must not pass as text.
        raise ArgumentError(
            grid_mismatch(checked_grid, video_start, k.shape[2], "k")
            + f" The {behind} tokens behind the video need a key_padding_mask, all True if none is padding."
        )
    if key_padding_mask is not None:
        _check_mask(key_padding_mask, k)
    return torch.ops.vsa_compile.attention(
        q, k, v, gate, list(checked_grid), list(checked_tile), q_start, video_start,
        key_padding_mask, scale, sparsity, method,
    )  # fmt: skip


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, mask: Tensor | None) -> None:
    """Type, layout, rank, dtype and device of every tensor."""
    named = {"q": q, "k": k, "v": v} | ({} if gate is None else {"gate": gate})
    for name, x in named.items():
        if not isinstance(x, Tensor):
            raise ArgumentError(errors.not_a_tensor(name, x, "(batch, heads, tokens, width)"))
        if x.layout != torch.strided:
            way_out = "Call .to_dense(), or on a nested tensor .to_padded_tensor()."
            raise ArgumentError(bad_value(f"{name}.layout", x.layout, "torch.strided", way_out))
        if x.dim() != 4:
            raise ArgumentError(bad_value(f"{name}.shape", tuple(x.shape), "(batch, heads, tokens, width)"))
        if x.dtype not in DTYPES:
            allowed = "float32, bfloat16, float16 or float64"
            raise ArgumentError(bad_value(f"{name}.dtype", x.dtype, allowed, "Convert it with .to()."))
    _check_same("dtype", {name: x.dtype for name, x in named.items()}, _computed_in(named))
    if mask is not None:
        if not isinstance(mask, Tensor):
            raise ArgumentError(errors.not_a_tensor("key_padding_mask", mask, "(batch or 1, keys)"))
        named["key_padding_mask"] = mask
    devices = {name: x.device for name, x in named.items()}
    _check_same("device", devices, list(devices.values()))


def _computed_in(named: dict[str, Tensor]) -> list[torch.dtype]:
    """The dtypes that are computed in: autocast makes one of all but fp64."""
    dtypes, kind = [x.dtype for x in named.values()], named["q"].device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
        return [dtype if dtype == torch.float64 else low for dtype in dtypes]
    return dtypes


def _check_same(what: str, came: Mapping[str, object], effective: Sequence[object]) -> None:
    if any(value != effective[0] for value in effective):
        raise ArgumentError(errors.differ(what, ", ".join(f"{name} {value}" for name, value in came.items())))


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None) -> None:
    """Check that shapes agree. Empty batches, heads and widths are fine: their output is empty too."""
    batch, heads, _, width = q.shape
    kv_heads = k.shape[1]
    allowed = None
    if k.shape[3] != width or v.shape[3] != width:
        allowed = errors.same_width()
    elif k.shape[:3] != v.shape[:3]:
        allowed = errors.kv_alike()
    elif k.shape[0] != batch:
        allowed = errors.same_batch(max(batch, k.shape[0]))
    elif heads != kv_heads and (not kv_heads or not heads or heads % kv_heads):
        allowed = errors.grouped_heads()
    if allowed is not None:
        came = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise ArgumentError(errors.shapes_misfit(came, allowed))
    if gate is not None and gate.shape != q.shape:
        way_out = "Call .expand_as(q) on a gate that is shared."
        raise ArgumentError(
            bad_value("gate.shape", tuple(gate.shape), f"q's shape {tuple(q.shape)}", way_out)
        )


def _check_numbers(scale: Any, video_start: Any) -> None:
    number = isinstance(scale, (int, float, torch.SymFloat, torch.SymInt)) and not isinstance(scale, bool)
    if scale is not None and not (number and -math.inf < scale < math.inf):
        way_out = "Multiply q by a learned scale, and pass scale=1."
        raise ArgumentError(
            bad_value("scale", scale, "a finite number, or None for 1 / sqrt(width)", way_out)
        )
    if not is_int(video_start) or video_start < 0:
        allowed = "an integer >= 0: the number of tokens in front of the video"
        raise ArgumentError(bad_value("video_start", video_start, allowed))


def _check_mask(mask: Tensor, k: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ArgumentError(
            bad_value("key_padding_mask.dtype", mask.dtype, "torch.bool, True where a key takes part")
        )
    if mask.dim() != 2 or mask.shape[0] not in (1, k.shape[0]) or mask.shape[1] != k.shape[2]:
        allowed = f"(1 or {k.shape[0]}, {k.shape[2]}): (batch, keys)"
        raise ArgumentError(bad_value("key_padding_mask.shape", tuple(mask.shape), allowed))
