"""One call of vsa::attend or vsa::attend_backward, as its templates see it.

May be imported by the lowerings; imports configs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from .configs import Config, family

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDEST_HEAD = 256


@dataclass(frozen=True)
class Call:
    """The arguments that forward and backward share; sizes may be symbolic.

    ir: whose values they are, of Inductor's graph (`graph`) or tensors (`launch`).
    """

    ir: Any
    q: Any
    k: Any
    v: Any
    tiles: Any
    counts: Any
    grid: Any
    tile: Any
    q_start: Any
    kv_start: Any
    key_padding: Any
    scale: Any
    q_grid: Any = None
    q_tile: Any = None

    def unsupported(self) -> str | None:
        """Why no template can serve this call; None if one can."""
        dtype, width = self.q.get_dtype(), self.q.get_size()[-1]
        if dtype not in _DTYPES:
            return f"{dtype} has no tensor core path"
        if not dtype == self.k.get_dtype() == self.v.get_dtype():
            return "q, k and v have different dtypes"
        if self.ir.static_size(width) > _WIDEST_HEAD:
            return f"head width {width} is above {_WIDEST_HEAD}"
        if not isinstance(self.scale, float) or self.scale <= 0:
            return f"the softmax scale is {self.scale}, not a positive constant"
        if self.q_grid is not None:
            return "its queries are packed, which no template reads yet"
        return too_old(self.q.get_device())

    @property
    def heads(self) -> tuple[Any, Any]:
        """(B, H)."""
        return tuple(self.q.get_size()[:2])

    @property
    def kv_heads(self) -> Any:
        return self.k.get_size()[1]

    @property
    def groups(self) -> int:
        """Query heads per key head."""
        return self.ir.static_size(self.heads[1]) // self.ir.static_size(self.kv_heads)

    @property
    def q_tokens(self) -> Any:
        return self.q.get_size()[2]

    @property
    def kv_tokens(self) -> Any:
        return self.k.get_size()[2]

    @property
    def width(self) -> int:
        return self.ir.static_size(self.q.get_size()[-1])

    @property
    def tile_count(self) -> Any:
        """M."""
        return self.tiles.get_size()[2]

    @property
    def other_queries(self) -> Any:
        """How many queries are not video."""
        return self.q_tokens - math.prod(self.grid)

    @property
    def other_keys(self) -> Any:
        return self.kv_tokens - math.prod(self.grid)

    def trailing_inputs(self) -> list[Any]:
        """SITE and, where there is one, PADDING: the last inputs of every template.

        A template can name the sizes of its inputs and no other symbols, so the grid travels as a shape.
        A start may be 0, a size may not: hence + 1.
        """
        site = self.ir.shape_carrier(self.counts, (*self.grid, self.q_start + 1, self.kv_start + 1))
        if self.key_padding is None:
            return [site]
        return [site, self.ir.expanded(self.key_padding, (self.heads[0], self.kv_tokens))]

    def constants(self) -> dict[str, Any]:
        """What is the same for all templates and configurations. HAS_*: there may be some."""
        tile = self._static_tile
        return {
            "TILE_F": tile[0],
            "TILE_R": tile[1],
            "TILE_C": tile[2],
            "SLOTS": self._slots,
            "D": self.width,
            "D_PADDED": power_of_two(self.width),
            "GROUPS": self.groups,
            "SCALE": self.scale * math.log2(math.e),
            "PRECISION": "'ieee'",
            "ALL_REAL": self._slots == math.prod(tile)
            and all(self.ir.surely(n % t, 0) for n, t in zip(self.grid, tile, strict=True)),
            "HAS_PADDING": self.key_padding is not None,
        }

    @property
    def has_other_queries(self) -> bool:
        return not self.ir.surely(self.other_queries, 0)

    @property
    def has_other_keys(self) -> bool:
        return not self.ir.surely(self.other_keys, 0)

    @property
    def _static_tile(self) -> tuple[int, ...]:
        return tuple(self.ir.static_size(n) for n in self.tile)

    @property
    def _slots(self) -> int:
        return power_of_two(math.prod(self._static_tile))

    def launches(self, configs: tuple[Config, ...]) -> list[dict[str, int]]:
        """The constants that configurations stand for; blocks are never larger than a tile."""
        return [
            {
                "BLOCK_Q": min(config.block_q, self._slots),
                "BLOCK_K": min(config.block_k, self._slots),
                "num_warps": config.num_warps,
                "num_stages": config.num_stages,
            }
            for config in configs
        ]


def too_old(device: torch.device) -> str | None:
    """Why this GPU runs no template."""
    return "the GPU is older than compute capability 8.0" if family(device) is None else None


def power_of_two(n: int, least: int = 16) -> int:
    """The least power of two >= n; a matrix instruction takes no less than 16."""
    return max(least, 1 << (n - 1).bit_length())
