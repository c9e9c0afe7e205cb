"""Lowers vsa::attend to its Triton template on GPUs; everything else goes to the eager implementation.

Imported by `gpu.register` only, for it needs Inductor.
May be imported by gpu; imports ops, torch_compat, grid.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

import torch

from .. import torch_compat as compat
from .configs import Config, attend_config, family
from .templates import template_source

_log = logging.getLogger("vsa_compile.gpu")

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDEST_HEAD = 256


def register_attend() -> None:
    """Make Inductor lower vsa::attend with `lower_attend`; raises where its template interface differs."""
    operator = torch.ops.vsa.attend.default
    template = _attend_template()
    eager = compat.eager_lowering(operator)
    compat.register_lowering(operator, functools.partial(lower_attend, template, eager))


def _attend_template() -> Any:
    def programs(batch: Any, heads: Any, tiles: Any, other_rows: Any, meta: Any, *, cdiv: Any) -> tuple:
        blocks = tiles * (meta["SLOTS"] // meta["BLOCK_Q"]) + cdiv(other_rows, meta["BLOCK_Q"])
        return batch * heads * blocks, 1, 1

    source = template_source("attend_fwd") + template_source("notation")
    return compat.triton_template("vsa_attend_fwd", programs, source)


def lower_attend(template: Any, eager: Any, *arguments: Any) -> Any:
    """The (out, lse) of vsa::attend as Inductor IR. Takes the operator's arguments, lowered."""
    q = arguments[0]
    if q.get_device().type not in ("cuda", "xpu"):
        return eager(*arguments)
    reason = _unsupported(*arguments)
    if reason is None:
        _say_what_is_still_eager()
        try:
            return _attend_kernel(template, *arguments)
        except Exception:
            reason = "its template does not lower on this torch"
            _warn_once(reason)
    _log.info("vsa::attend runs through chunked ATen: %s", reason)
    return eager(*arguments)


def _unsupported(
    q: Any, k: Any, v: Any, tiles: Any, counts: Any, grid: Any, tile: Any, q_start: Any, kv_start: Any,
    key_padding: Any, scale: Any,
) -> str | None:  # fmt: skip
    """Why the template cannot serve this call; None if it can."""
    if q.get_dtype() not in _DTYPES:
        return f"{q.get_dtype()} has no tensor core path"
    if not q.get_dtype() == k.get_dtype() == v.get_dtype():
        return "q, k and v have different dtypes"
    if compat.static_size(q.get_size()[-1]) > _WIDEST_HEAD:
        return f"head width {q.get_size()[-1]} is above {_WIDEST_HEAD}"
    if not isinstance(scale, float) or scale <= 0:
        return f"the softmax scale is {scale}, not a positive constant"
    if family(q.get_device()) is None:
        return "the GPU is older than compute capability 8.0"
    return None


def _attend_kernel(
    template: Any, q: Any, k: Any, v: Any, tiles: Any, counts: Any, grid: Any, tile: Any, q_start: Any,
    kv_start: Any, key_padding: Any, scale: float,
) -> tuple[Any, Any]:  # fmt: skip
    batch, heads, q_tokens, width = q.get_size()
    kv_heads, kv_tokens = k.get_size()[1:3]
    device, dtype, width = q.get_device(), q.get_dtype(), compat.static_size(width)
    tile = tuple(compat.static_size(n) for n in tile)
    video = math.prod(grid)
    other_rows, other_keys = q_tokens - video, kv_tokens - video

    lse = compat.new_buffer((batch, heads, q_tokens), torch.float32, device)
    # The template can name the sizes of its inputs and no other symbols, so the grid travels as a shape.
    # A start may be 0, a size may not: hence + 1.
    site = compat.shape_carrier(counts, (*grid, q_start + 1, kv_start + 1))
    inputs = [q, k, v, lse, tiles, counts, site] + ([] if key_padding is None else [key_padding])
    if key_padding is not None:
        inputs[-1] = compat.expanded(key_padding, (batch, kv_tokens))
    has_other_rows = not compat.surely(other_rows, 0)
    constants = {
        **_blocks(tile, width, attend_config(device, dtype, width)),
        "GROUPS": compat.static_size(heads) // compat.static_size(kv_heads),
        "SCALE": scale * math.log2(math.e),
        "LN2": math.log(2),
        "PRECISION": "'ieee'",
        "ALL_REAL": _power_of_two(math.prod(tile)) == math.prod(tile)
        and all(compat.surely(n % t, 0) for n, t in zip(grid, tile, strict=True)),
        "HAS_OTHER_ROWS": has_other_rows,
        "HAS_OTHER_KEYS": has_other_rows or not compat.surely(other_keys, 0),
        "HAS_PADDING": key_padding is not None,
    }
    out = compat.template_buffer(
        template, inputs, mutated=[lse], size=(batch, q_tokens, heads, width), dtype=dtype, device=device,
        launch=(batch, heads, tiles.get_size()[2], other_rows), constants=constants,
    )  # fmt: skip
    return out, lse


def _power_of_two(n: int) -> int:
    """The least power of two >= n that a matrix instruction takes: 16 or more."""
    return max(16, 1 << (n - 1).bit_length())


def _blocks(tile: tuple[int, ...], width: int, config: Config) -> dict[str, int]:
    slots = _power_of_two(math.prod(tile))
    return {
        "TILE_F": tile[0],
        "TILE_R": tile[1],
        "TILE_C": tile[2],
        "SLOTS": slots,
        "BLOCK_Q": min(config.block_q, slots),
        "BLOCK_K": min(config.block_k, slots),
        "D": width,
        "D_PADDED": _power_of_two(width),
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


@functools.cache
def _say_what_is_still_eager() -> None:
    _log.info("vsa::attend is a Triton kernel; vsa::select and vsa::attend_backward run through chunked ATen")


@functools.cache
def _warn_once(reason: str) -> None:
    _log.warning("vsa::attend runs through chunked ATen, which is slower: %s", reason, exc_info=True)
