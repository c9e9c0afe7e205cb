"""What kernels compile to: ranges that hold for today's Triton, wide enough for its next release.

168 registers are 3 programs of 4 warps on an SM of Hopper, 255 are 2.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest


class Range(NamedTuple):
    """Registers per thread and KiB of shared memory (least, most); spilled bytes at most."""

    registers: tuple[int, int]
    shared_kib: tuple[int, int]
    matrix: str | None = None
    spills: int = 0


# (program, target, template) -> its range
GOLDEN = {
    ("bf16_width_64", "sm_80", "attend_fwd"): Range((140, 168), (24, 25), "HMMA"),
    ("bf16_width_64", "sm_90", "attend_fwd"): Range((105, 128), (32, 33), "HGMMA"),
    ("bf16_width_64", "sm_120", "attend_fwd"): Range((145, 180), (16, 17), "HMMA"),
    ("bf16_width_128", "sm_80", "attend_fwd"): Range((190, 230), (56, 57), "HMMA"),
    ("bf16_width_128", "sm_90", "attend_fwd"): Range((150, 176), (64, 65), "HGMMA"),
    ("bf16_width_128", "sm_100", "attend_fwd"): Range((120, 150), (80, 81), "UTCHMMA"),
    ("bf16_width_128", "sm_120", "attend_fwd"): Range((160, 200), (56, 57), "HMMA"),
    ("bf16_width_128", "gfx942", "attend_fwd"): Range((200, 320), (40, 41), "v_mfma"),
    ("bf16_width_128_ragged", "sm_90", "attend_fwd"): Range((150, 176), (64, 65), "HGMMA"),
    # Two words outside of the loop over tiles.
    ("bf16_width_128_text", "sm_80", "attend_fwd"): Range((220, 255), (56, 57), "HMMA", spills=8),
    ("bf16_width_128_text", "sm_90", "attend_fwd"): Range((150, 176), (80, 82), "HGMMA"),
    ("bf16_width_256", "sm_80", "attend_fwd"): Range((230, 255), (104, 105), "HMMA"),
    ("bf16_width_256", "sm_90", "attend_fwd"): Range((230, 255), (128, 129), "HGMMA"),
    # Exact fp32 has no matrix instruction on NVIDIA.
    ("fp32_width_128", "sm_80", "attend_fwd"): Range((80, 128), (72, 73)),
    ("fp32_width_128", "sm_90", "attend_fwd"): Range((80, 128), (72, 73)),
    # A whole method with its gate in the epilogue; all sizes symbolic; 64-bit offsets; a tile in parts.
    ("method", "sm_90", "attend_fwd"): Range((105, 150), (32, 33), "HGMMA"),
    ("symbolic_sizes", "sm_90", "attend_fwd"): Range((60, 128), (40, 41)),
    ("wide_offsets", "sm_90", "attend_fwd"): Range((60, 128), (16, 17)),
    ("tile_of_several_blocks", "sm_90", "attend_fwd"): Range((60, 128), (16, 17)),
}
# The backward of the same calls: attend_dq, attend_dkdv.
_BACKWARD = {
    ("bf16_width_64", "sm_80"): (
        Range((160, 210), (32, 33), "HMMA"),
        Range((160, 205), (24, 25), "HMMA"),
    ),
    ("bf16_width_64", "sm_90"): (
        Range((105, 145), (48, 49), "HGMMA"),
        Range((150, 195), (32, 33), "HGMMA"),
    ),
    ("bf16_width_64", "sm_120"): (
        Range((150, 185), (24, 25), "HMMA"),
        Range((220, 255), (24, 25), "HMMA"),
    ),
    ("bf16_width_128", "sm_80"): (
        Range((135, 180), (72, 73), "HMMA"),
        Range((145, 190), (72, 73), "HMMA"),
    ),
    ("bf16_width_128", "sm_90"): (
        Range((145, 190), (96, 97), "HGMMA"),
        Range((195, 255), (64, 65), "HGMMA"),
    ),
    ("bf16_width_128", "sm_100"): (
        Range((85, 115), (112, 113), "UTCHMMA"),
        Range((130, 170), (64, 65), "UTCHMMA"),
    ),
    ("bf16_width_128", "sm_120"): (
        Range((155, 190), (52, 53), "HMMA"),
        Range((155, 190), (52, 53), "HMMA"),
    ),
    ("bf16_width_128", "gfx942"): (
        Range((170, 225), (16, 17), "v_mfma"),
        Range((210, 275), (16, 17), "v_mfma"),
    ),
    ("bf16_width_128_ragged", "sm_90"): (
        Range((155, 200), (96, 97), "HGMMA"),
        Range((210, 255), (64, 65), "HGMMA"),
    ),
    ("bf16_width_128_text", "sm_80"): (
        Range((165, 215), (72, 73), "HMMA"),
        Range((220, 255), (72, 73), "HMMA"),
    ),
    ("bf16_width_128_text", "sm_90"): (
        Range((165, 205), (96, 98), "HGMMA"),
        Range((220, 255), (64, 65), "HGMMA"),
    ),
    ("bf16_width_256", "sm_80"): (
        Range((140, 185), (100, 101), "HMMA"),
        Range((150, 195), (80, 81), "HMMA"),
    ),
    ("bf16_width_256", "sm_90"): (
        Range((125, 165), (128, 129), "HGMMA"),
        Range((175, 215), (48, 49), "HMMA"),
    ),
    ("fp32_width_128", "sm_90"): (
        Range((55, 75), (50, 51)),
        Range((75, 100), (50, 51)),
    ),
    ("symbolic_sizes", "sm_90"): (
        Range((80, 120), (20, 21)),
        Range((90, 120), (14, 15)),
    ),
}
for (_name, _target), _ranges in _BACKWARD.items():
    for _kind, _range in zip(("attend_dq", "attend_dkdv"), _ranges, strict=True):
        GOLDEN[f"backward_{_name}", _target, _kind] = _range
for _target in ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942"):
    GOLDEN["backward_bf16_width_128", _target, "transpose_lists"] = Range((32, 80), (1, 4))
    GOLDEN["backward_bf16_width_128", _target, "rank_columns"] = Range((24, 80), (0, 1))
    GOLDEN["select_of_624", _target, "select"] = Range((40, 72), (0, 1))
# A row of 4 warps, and a row in parts.
GOLDEN["select_of_2160", "sm_90", "select"] = Range((80, 110), (1, 3))
GOLDEN["select_of_9000", "sm_90", "select"] = Range((80, 110), (7, 9))


# What `make test` compiles for Hopper; `make slow` compiles the rest, target by target.
_FIRST = ("bf16_width_128", "backward_bf16_width_128", "method", "select_of_624")


def group_of(name: str, target: str) -> str:
    """What is compiled with a program: "first", or all the rest for its target."""
    return "first" if target == "sm_90" and name in _FIRST else target


def kernels_of(group: str) -> list[tuple[str, str, str]]:
    """(program, target, template) of a group; its target is the same for all."""
    return [(name, target, kind) for name, target, kind in GOLDEN if group_of(name, target) == group]


def _mark(group: str) -> tuple[pytest.MarkDecorator, ...]:
    return () if group == "first" else (pytest.mark.slow,)


each_kernel = pytest.mark.parametrize(
    ("name", "target", "kind"),
    [pytest.param(*key, marks=_mark(group_of(*key[:2])), id="-".join(key)) for key in GOLDEN],
)
each_group = pytest.mark.parametrize(
    "group",
    [pytest.param(g, marks=_mark(g)) for g in dict.fromkeys(group_of(*key[:2]) for key in GOLDEN)],
)
