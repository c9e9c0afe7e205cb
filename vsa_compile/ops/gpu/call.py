"""One call of vsa_compile::attend or vsa_compile::attend_backward, as its templates see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...grid import Size
from ..args import AttendArgs
from .configs import Config, family, has_tma
from .target import IR, Target

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST_HEAD = 256


@dataclass(frozen=True)
class KernelCall:
    """The arguments shared by forward and backward, with what templates derive from them.

    target: where the kernels go, which also decides what the values are: Inductor IR (`graph`) or tensors
    (`launch`). Sizes may be symbolic.
    """

    target: Target
    args: AttendArgs

    def unsupported(self) -> str | None:
        """Why no template can serve this call; None if one can."""
        dtype, width = self.args.q.get_dtype(), self.args.q.get_size()[-1]
        if dtype not in DTYPES:
            return f"{dtype} has no tensor core path"
        if self.target.static_size(width) > WIDEST_HEAD:
            return f"head width {width} is above {WIDEST_HEAD}"
        if not isinstance(self.args.scale, float) or self.args.scale <= 0:
            return f"the softmax scale is {self.args.scale}, not a positive constant"
        return too_old(self.args.q.get_device())

    @property
    def heads(self) -> tuple[Size, Size]:
        """(B, H)."""
        return tuple(self.args.q.get_size()[:2])

    @property
    def kv_heads(self) -> Size:
        return self.args.k.get_size()[1]

    @property
    def groups(self) -> int:
        """Query heads per key head."""
        return self.target.static_size(self.heads[1]) // self.target.static_size(self.kv_heads)

    @property
    def q_tokens(self) -> Size:
        return self.args.q.get_size()[2]

    @property
    def kv_tokens(self) -> Size:
        return self.args.k.get_size()[2]

    @property
    def width(self) -> int:
        return self.target.static_size(self.args.q.get_size()[-1])

    @property
    def q_tiles(self) -> Size:
        """Number of query tiles."""
        return self.args.tiles.get_size()[2]

    @property
    def kv_tiles(self) -> Size:
        """Number of key tiles."""
        if self.args.q_grid is None:
            return self.q_tiles
        return math.prod(self.target.ceil_div(n, t) for n, t in zip(self.args.grid, self._tile, strict=True))

    @property
    def other_queries(self) -> Size:
        """The number of non-video queries."""
        return self.q_tokens - math.prod(self._q_grid)

    @property
    def other_keys(self) -> Size:
        return self.kv_tokens - math.prod(self.args.grid)

    def trailing_inputs(self) -> list[IR]:
        """SITE and, if there is one, PADDING: the last inputs of every template.

        A template can refer to the sizes of its inputs but to no other symbols, so the grid is passed as a
        shape. A start may be 0, but a size may not: hence + 1.
        """
        args = self.args
        sizes = (*args.grid, *self._q_grid, args.q_start + 1, args.kv_start + 1)
        site = self.target.shape_carrier(args.counts, sizes)
        if args.key_padding is None:
            return [site]
        return [site, self.target.expanded(args.key_padding, (self.heads[0], self.kv_tokens))]

    def constants(self) -> dict[str, object]:
        """The constants of all templates and configurations. HAS_*: there may be such."""
        tile, q_tile = self._tile, self._q_tile
        return {
            **dict(zip(("TILE_F", "TILE_R", "TILE_C"), tile, strict=True)),
            **dict(zip(("Q_TILE_F", "Q_TILE_R", "Q_TILE_C"), q_tile, strict=True)),
            "SLOTS": slots(tile),
            "Q_SLOTS": slots(q_tile),
            "D": self.width,
            "D_PADDED": power_of_two(self.width),
            "GROUPS": self.groups,
            "SCALE": self.args.scale * math.log2(math.e),
            "PRECISION": "'ieee'",
            "ALL_REAL": self._all_real(self.args.grid, tile),
            "ALL_ROWS_REAL": self._all_real(self._q_grid, q_tile),
            "HAS_PADDING": self.args.key_padding is not None,
        }

    @property
    def has_other_queries(self) -> bool:
        return not self.target.surely_equal(self.other_queries, 0)

    @property
    def has_other_keys(self) -> bool:
        return not self.target.surely_equal(self.other_keys, 0)

    @property
    def _q_grid(self) -> Sequence[Size]:
        return self.args.grid if self.args.q_grid is None else self.args.q_grid

    @property
    def _tile(self) -> tuple[int, ...]:
        return tuple(self.target.static_size(n) for n in self.args.tile)

    @property
    def _q_tile(self) -> tuple[int, ...]:
        return (
            self._tile
            if self.args.q_tile is None
            else tuple(self.target.static_size(n) for n in self.args.q_tile)
        )

    def _all_real(self, grid: Sequence[Size], tile: tuple[int, ...]) -> bool:
        """Whether every slot of every tile holds a token."""
        whole = all(self.target.surely_equal(n % t, 0) for n, t in zip(grid, tile, strict=True))
        return slots(tile) == math.prod(tile) and whole

    def launches(self, configs: tuple[Config, ...], read: tuple[IR, ...]) -> list[dict[str, object]]:
        """The constants of each configuration, without repetition; blocks are never larger than a tile.

        read: the tensors whose tiles the kernel reads in its loop.
        """
        maps = all(map(self.target.has_tensor_map, read)) and has_tma(self.args.q.get_device())
        return list({tuple(one.items()): one for one in (self._launch(x, maps) for x in configs)}.values())

    def _launch(self, config: Config, maps: bool) -> dict[str, object]:
        block_q = min(config.block_q, slots(self._q_tile))
        block_k = min(config.block_k, slots(self._tile))
        return {
            "BLOCK_Q": block_q,
            "BLOCK_K": block_k,
            "TMA": maps and config.tma and _is_box(self._q_tile, block_q) and _is_box(self._tile, block_k),
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
        }


def slots(tile: tuple[int, ...]) -> int:
    """Places of a tile in a kernel: its number of tokens, rounded up to a power of two."""
    return power_of_two(math.prod(tile))


def _is_box(tile: tuple[int, ...], block: int) -> bool:
    """Whether a tensor map can read a tile in blocks: sides are powers of two, blocks are whole frames."""
    no_padding = slots(tile) == math.prod(tile) and all(n & (n - 1) == 0 for n in tile)
    return no_padding and block % (tile[1] * tile[2]) == 0


def too_old(device: torch.device) -> str | None:
    """Why no template runs on this GPU; None if they do."""
    return "the GPU is older than compute capability 8.0" if family(device) is None else None


def power_of_two(n: int, least: int = 16) -> int:
    """The least power of two >= n, and at least 16, which matrix instructions need."""
    return max(least, 1 << (n - 1).bit_length())
