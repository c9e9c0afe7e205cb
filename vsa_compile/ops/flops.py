"""FLOP formulas of the leaf operators, for torch.utils.flop_counter.FlopCounterMode.

torch's flop counter imports triton, which importing this package must not do. So the formulas are registered
when the flop counter is loaded, be that before or after this module.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from ..grid import Grid, Size, TileGrid
from .args import AttendArgs, BackwardArgs

_COUNTER = "torch.utils.flop_counter"


def attended_pairs(
    q_tokens: Size,
    kv_tokens: Size,
    grid: Sequence[Size],
    tile: Sequence[Size],
    listed: Size,
    queries: Size | None = None,
) -> Size:
    """The query-key pairs that one head computes if every query tile lists `listed` tiles.

    queries: how many video queries attend; None: all. A listed tile counts with the mean number of tokens per
    tile, so that listing all tiles gives exactly the dense number.
    """
    boxes = TileGrid(Grid(*grid), tuple(tile))  # pyright: ignore[reportArgumentType]
    video = boxes.grid.tokens
    queries = video if queries is None else queries
    sparse = queries * video * listed // boxes.tiles
    return sparse + queries * (kv_tokens - video) + (q_tokens - video) * kv_tokens


def _attend(*arguments: Any, out_val: object = None, **more: Any) -> int:
    return _flops(AttendArgs(*arguments, **more))


def _attend_backward(*arguments: Any, out_val: object = None, **more: Any) -> int:
    """Five products: the scores again, dP, dV, dQ and dK."""
    return _flops(BackwardArgs.of(*arguments, **more).call) * 5 // 2


def _flops(call: AttendArgs) -> int:
    """Two products of 2 D FLOPs per query-key pair; a listed tile counts with the mean tokens per tile.

    The lists are summed if they hold numbers (which synchronises a GPU); otherwise all rows count as full.
    """
    (batch, heads, q_tokens, width), kv_tokens = call.q.shape, call.k.shape[2]
    video, video_q = call.boxes.grid.tokens, call.query_boxes.grid.tokens
    listed, counts = call.tiles.numel(), call.counts
    if type(counts) is torch.Tensor and counts.device.type != "meta":
        listed = int(counts.clamp(0, call.tiles.shape[-1]).sum())
    sparse = listed * video_q * video // (counts.shape[-1] * call.boxes.tiles)
    dense = video_q * (kv_tokens - video) + (q_tokens - video_q) * kv_tokens
    return 4 * width * (sparse + batch * heads * dense)


def _register() -> None:
    counter = sys.modules[_COUNTER]
    counter.register_flop_formula(torch.ops.vsa_compile.attend, get_raw=True)(_attend)  # pyright: ignore
    counter.register_flop_formula(torch.ops.vsa_compile.attend_backward, get_raw=True)(_attend_backward)  # pyright: ignore


class _WhenLoaded:
    """An import finder that registers the formulas right after the flop counter's first import, then removes
    itself."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)  # pyright: ignore[reportArgumentType]
        spec = importlib.util.find_spec(name)
        loader: Any = spec and spec.loader
        if loader is not None:
            load = loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                _register()

            loader.exec_module = load_and_register
        return spec


if _COUNTER in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WhenLoaded())  # pyright: ignore[reportArgumentType]
