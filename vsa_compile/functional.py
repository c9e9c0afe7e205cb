"""`vsa_compile.attention`: the operator by hand, with every argument checked before any work is done."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import methods
from .errors import ArgumentError, bad_value, grid_mismatch
from .options import read_grid, read_sparsity, read_tile


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

    q: (B, H, Nq, D); k, v: (B, Hkv, Nkv, D), where Hkv divides H (grouped-query attention).
    grid: (frames, rows, cols) of the video tokens, raster order, cols fastest.
    sparsity: share of query-key work that is NOT computed; 0 is dense SDPA.
    tile: (frames, rows, cols) tokens of a tile; border tiles hold what is left.
    gate: like q; adds gate * coarse attention (VSA, arXiv 2505.13389). None adds nothing.
    scale: of the scores; None is 1 / sqrt(D).
    video_start: tokens in front of the video in k and v, and in q if it is as long. All keys outside
        the video are attended densely; queries outside it attend to everything.
    key_padding_mask: (B or 1, Nkv) bool, True where a key takes part; read on non-video keys only.

    Raises ArgumentError or OptionError, naming what came and what is allowed.
    """
    checked_grid, checked_tile = read_grid(grid), read_tile(tile)
    sparsity = read_sparsity(sparsity)
    methods.get(method)
    _check_tensors(q, k, v, gate)
    video = checked_grid.tokens
    whole = q.shape[2] == k.shape[2]
    q_start = video_start if whole else 0
    if video_start < 0 or video_start + video > k.shape[2]:
        raise ArgumentError(grid_mismatch(checked_grid, video_start, k.shape[2], "k"))
    if q_start + video > q.shape[2]:
        raise ArgumentError(grid_mismatch(checked_grid, q_start, q.shape[2], "q"))
    behind = k.shape[2] - video_start - video
    if behind and key_padding_mask is None:
        # Legal only if the caller says what they are: a wrong grid must not pass as text.
        raise ArgumentError(
            grid_mismatch(checked_grid, video_start, k.shape[2], "k")
            + f" The {behind} tokens behind the video need a key_padding_mask, all True if none is padding."
        )
    if key_padding_mask is not None:
        _check_mask(key_padding_mask, k)
    return torch.ops.vsa.attention(
        q, k, v, gate, list(checked_grid), list(checked_tile), q_start, video_start,
        key_padding_mask, scale, sparsity, method,
    )  # fmt: skip


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None) -> None:
    named = {"q": q, "k": k, "v": v} | ({} if gate is None else {"gate": gate})
    for name, x in named.items():
        if x.dim() != 4:
            raise ArgumentError(bad_value(f"{name}.shape", tuple(x.shape), "(batch, heads, tokens, width)"))
    autocast = torch.is_autocast_enabled(q.device.type)
    for what, values in (
        ("dtype", [x.dtype for x in named.values()]),
        ("device", [x.device for x in named.values()]),
    ):
        if len(set(values)) > 1 and not (what == "dtype" and autocast):
            came = ", ".join(f"{name} {value}" for name, value in zip(named, values, strict=True))
            raise ArgumentError(f"{what}s differ: {came}. They must be the same; call .to() on the odd one.")
    if not q.is_floating_point():
        raise ArgumentError(bad_value("dtype", q.dtype, "a floating point type"))
    batch, heads, _, width = q.shape
    if (
        k.shape != v.shape
        or k.shape[0] != batch
        or k.shape[3] != width
        or not k.shape[1]
        or heads % k.shape[1]
    ):
        came = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise ArgumentError(
            f"shapes do not fit: {came}. k and v must be alike, with q's batch and width, and a number "
            "of heads that divides q's."
        )
    if gate is not None and gate.shape != q.shape:
        raise ArgumentError(bad_value("gate.shape", tuple(gate.shape), f"q's shape {tuple(q.shape)}"))


def _check_mask(mask: Tensor, k: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ArgumentError(
            bad_value("key_padding_mask.dtype", mask.dtype, "torch.bool, True where a key takes part")
        )
    if mask.dim() != 2 or mask.shape[0] not in (1, k.shape[0]) or mask.shape[1] != k.shape[2]:
        allowed = f"(1 or {k.shape[0]}, {k.shape[2]}): (batch, keys)"
        raise ArgumentError(bad_value("key_padding_mask.shape", tuple(mask.shape), allowed))
