"""FlexAttention over the same lists, with blocks of one tile, tuned on them.

Its blocks consist of adjacent tokens: its inputs are put into tile order, with empty slots in border tiles;
that is not timed. Notation: H heads, M tiles, E tokens of a tile, Kcap width of the lists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .clock import Clock, Task
from .lists import Lists
from .log import reason_of
from .plan import Plan
from .results import Row
from .tiling import Tiling
from .work import Work, fresh, timed

_TUNING_REPEATS = 5
_SQUARE = {"BLOCK_M": 64, "BLOCK_N": 64}
_SQUARES = {"BLOCK_M1": 64, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 64}


def _launches(stages: tuple[int, ...]) -> list[dict[str, int]]:
    return [{"num_warps": warps, "num_stages": stage} for warps in (4, 8) for stage in stages]


CANDIDATES = {
    "forward": [{**_SQUARE, **launch} for launch in _launches((2, 1, 3, 4))],
    "backward": [{**_SQUARES, **launch} for launch in _launches((2, 1, 3))],
}


def unavailable(plan: Plan) -> str | None:
    """Why it cannot take part here, as far as known without trying."""
    if plan.quick and plan.device.type == "cpu":
        return "compiling it for CPU takes longer than --quick is for"
    return None


@dataclass
class Flex:
    """Chooses a launch configuration for each part and head width, by the first lists that it gets."""

    clock: Clock
    chosen: dict[tuple[str, int], Row] = field(default_factory=dict)

    def task(self, part: str, work: Work, lists: Lists) -> Task:
        """The task. Raises what FlexAttention raises if no configuration runs."""
        if work.plan.device.type != "cuda":
            return _task(part, work, lists, {})
        key = (part, work.width)
        if key not in self.chosen:
            self.chosen[key] = self._tuned(part, work, lists)
        return _task(part, work, lists, self._options(part, work, self.chosen[key]["options"]))

    def _options(self, part: str, work: Work, options: dict[str, int]) -> dict[str, int]:
        """kernel_options; for a backward with those of its forward."""
        if part == "forward":
            return {f"fwd_{name}": value for name, value in options.items()}
        forward = self.chosen.get(("forward", work.width), {}).get("options", CANDIDATES["forward"][0])
        return self._options("forward", work, forward) | {
            f"bwd_{name}": value for name, value in options.items()
        }

    def _tuned(self, part: str, work: Work, lists: Lists) -> Row:
        """The fastest candidate, with the times of all; with --quick, the first."""
        if work.plan.quick:
            return {"options": CANDIDATES[part][0], "tried": "the first alone, by --quick"}
        tried: list[Row] = []
        for options in CANDIDATES[part]:
            entry: Row = {"options": options}
            try:
                task = _task(part, work, lists, self._options(part, work, options))
                self.clock.warm_up(task)
                entry["median_ms"] = self.clock.measure({part: task}, _TUNING_REPEATS)[part].median_ms
            except Exception as error:  # for instance too much shared memory: another one may run
                entry["error"] = reason_of(error)
            tried.append(entry)
        runs = [entry for entry in tried if "median_ms" in entry]
        if not runs:
            raise RuntimeError(f"no configuration runs; the first: {tried[0]['error']}")
        return {"options": min(runs, key=lambda entry: entry["median_ms"])["options"], "tried": tried}


def _task(part: str, work: Work, lists: Lists, options: dict[str, int]) -> Task:
    inputs, grad = tuple(in_tiles(x, work) for x in work.inputs), in_tiles(work.grad, work)
    return timed(part, attention(work, lists, options), inputs, grad)


def in_tiles(x: Tensor, work: Work) -> Tensor:
    """(1, H, N, D) -> (1, H, M * E, D), contiguous, zero in the empty slots."""
    tiling = Tiling.of(work.boxes, x.device)
    return tiling.to_tiles(x)[:, :, :-1].flatten(2, 3)


def in_raster(x: Tensor, work: Work) -> Tensor:
    """The inverse of `in_tiles`."""
    tiling = Tiling.of(work.boxes, x.device)
    return tiling.to_tokens(x.unflatten(2, (-1, work.boxes.tile_tokens)))


def attention(work: Work, lists: Lists, options: dict[str, int]) -> Callable[..., Tensor]:
    """FlexAttention for inputs in tile order."""
    mask = block_mask(work, lists)
    # Before it takes our configuration, Inductor checks its default ones for the backward, none of which may
    # divide a block of 64. With max_autotune it has more of them, and ours replaces each.
    settings: Any = dict(options) or None
    patches: dict[str, Any] = {"max_autotune": True} if any(o.startswith("bwd") for o in options) else {}

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return flex_attention(q, k, v, block_mask=mask, kernel_options=settings)

    return torch.compile(fresh(attend), fullgraph=True, dynamic=False, options=patches or None)


def block_mask(work: Work, lists: Lists) -> BlockMask:
    """The lists as blocks: full tiles without a mask, border tiles with a mask over their empty slots."""
    real = Tiling.of(work.boxes, lists.tiles.device).real[:-1]
    whole, slots = real.all(-1), real.flatten()
    listed = torch.arange(lists.tiles.shape[-1], device=real.device) < lists.counts[..., None]
    full = listed & whole[lists.tiles.long()]
    return BlockMask.from_kv_blocks(
        *_ordered(lists, listed & ~full), *_ordered(lists, full), BLOCK_SIZE=work.boxes.tile_tokens,
        mask_mod=lambda b, h, query, key: slots[key],
    )  # fmt: skip


def _ordered(lists: Lists, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles of a row are chosen, and (1, H, M, M) indices that begin with those."""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    *rows, listed = lists.tiles.shape
    indices = lists.tiles.new_zeros((*rows, rows[-1]))
    indices[..., :listed] = lists.tiles.gather(-1, order)
    return chosen.sum(-1, dtype=torch.int32), indices
