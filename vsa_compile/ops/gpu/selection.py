"""Lowers vsa_compile::select to its template: one kernel that writes ascending lists and their counts."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...grid import Size
from ..args import SelectArgs
from .call import power_of_two, too_old
from .target import IR, CeilDiv, Target
from .templates import Template

_LONGEST = 8192  # scores of a row that fit into registers: 32 per thread of 8 warps
_STEP = 2048  # scores per step of a longer row, or of a row of symbolic length


def _programs(rows: Size, meta: Mapping[str, int], *, cdiv: CeilDiv) -> tuple:
    return rows, 1, 1


_SELECT = Template("select", _programs)
TEMPLATES = (_SELECT,)


def unsupported(_: Target, args: SelectArgs) -> str | None:
    """Why the template cannot serve this call; None if it can."""
    scores, threshold = args.scores, args.threshold
    if scores.get_dtype() != torch.float32:
        return f"the scores are {scores.get_dtype()}, not torch.float32"
    if threshold is not None and threshold.get_dtype() != torch.float32:
        return f"the thresholds are {threshold.get_dtype()}, not torch.float32"
    if len(scores.get_size()) != 4:
        return f"the scores have {len(scores.get_size())} dimensions, not 4"
    return too_old(scores.get_device())


def lower(target: Target, args: SelectArgs) -> tuple[IR, IR]:
    """tiles (B, H, M, at_most) and counts (B, H, M), int32."""
    scores, at_most, threshold, count = args.scores, args.at_most, args.threshold, args.count
    batch, heads, rows, length = scores.get_size()
    device = scores.get_device()
    whole = target.is_static(length) and int(length) <= _LONGEST
    block = power_of_two(int(length), 32) if whole else _STEP
    tiles = target.new_buffer((batch, heads, rows, at_most), torch.int32, device)
    counts = target.template_buffer(
        _SELECT, [scores, tiles, *(x for x in (threshold, count) if x is not None)],
        mutated=[tiles], size=(batch, heads, rows), dtype=torch.int32, device=device,
        launch=(batch * heads * rows,),
        constants={
            "BLOCK": block,
            "WHOLE": whole,
            "ROWS": 1,
            "HAS_THRESHOLD": threshold is not None,
            "HAS_COUNT": count is not None,
        },
        # One warp needs no barrier for its 32 sums.
        configs=[{"num_warps": 1 if block <= 1024 else 4 if block <= 4096 else 8, "num_stages": 1}],
    )  # fmt: skip
    return tiles, counts
