"""Launch configurations of the kernels, by architecture family, element size and head width.

The first of a row is used: it is chosen so that nothing spills (tests/gpu_offline/golden.py) and every GPU of
the family has enough shared memory. The others are timed against it if the user asks for autotuning. Tuned
rows belong into this table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """How one kernel is launched. For a tile smaller than a block the block is made smaller.

    block_q: query rows per program. block_k: keys per step. num_stages: depth of the load pipeline.
    tma: read tiles through tensor maps, if GPU and call allow it: no address arithmetic, no masks.
    """

    block_q: int = 64
    block_k: int = 64
    num_warps: int = 4
    num_stages: int = 2
    tma: bool = True


ConfigTuple = tuple[int, int, int, int]
Row = tuple[int, tuple[Config, ...]]  # largest head width, configurations


def _row(width: int, *configs: ConfigTuple, pointers: Sequence[ConfigTuple] = ()) -> Row:
    """Configurations as (block_q, block_k, num_warps, num_stages); `pointers`: those without tensor maps."""
    return width, (*(Config(*x) for x in configs), *(Config(*x, tma=False) for x in pointers))


# For families without a row below: 99 KiB of shared memory. 64 rows are one warp group of matrix
# instructions, hence 4 warps. fp32 ("ieee") has no matrix instructions on NVIDIA and needs 8 warps, or
# accumulators spill. It also spills without a load pipeline, as operands of products then wait in registers,
# and under tensor maps, which keep the fp32 query block in registers.
_ANY_FAMILY: dict[tuple[str, int], tuple[Row, ...]] = {
    ("forward", 2): (_row(128, (64, 64, 4, 2), (64, 32, 4, 2)), _row(256, (64, 32, 4, 2))),
    ("forward", 4): (_row(128, pointers=[(64, 32, 8, 2)]), _row(256, pointers=[(32, 16, 8, 2)])),
    ("dq", 2): (
        _row(64, (64, 64, 4, 2), (64, 64, 4, 1)),
        _row(128, (64, 32, 4, 2), (64, 64, 8, 2)),
        _row(256, (64, 32, 8, 1)),
    ),
    ("dq", 4): (
        _row(64, pointers=[(64, 32, 8, 2)]),
        _row(128, pointers=[(32, 16, 8, 2)]),
        _row(256, pointers=[(16, 16, 8, 2)]),
    ),
    ("dkdv", 2): (
        _row(64, (32, 64, 4, 2), (64, 64, 8, 2)),
        _row(128, (32, 64, 8, 2), (64, 64, 8, 2)),
        _row(256, (16, 32, 8, 1)),
    ),
    ("dkdv", 4): (
        _row(64, pointers=[(16, 64, 8, 2)]),
        _row(128, pointers=[(16, 32, 8, 2)]),
        _row(256, pointers=[(16, 16, 8, 2)]),
    ),
}
# 163 KiB of shared memory and more. Matrix instructions of Hopper and Blackwell read it, which leaves more
# registers. On AMD stages cost registers; 256 of them allow two waves on a SIMD.
_BY_FAMILY: dict[tuple[str, str, int], tuple[Row, ...]] = {
    ("forward", "ampere", 2): (_row(256, (64, 64, 4, 2), (64, 64, 4, 3)),),
    ("forward", "hopper", 2): (
        _row(128, (64, 64, 4, 2), (64, 64, 4, 1), (64, 64, 4, 3), pointers=[(64, 64, 4, 2)]),
        _row(256, (64, 64, 4, 2)),
    ),
    ("forward", "blackwell", 2): (
        _row(128, (64, 64, 4, 2), (64, 64, 4, 1), (64, 64, 4, 3), pointers=[(64, 64, 4, 2)]),
        _row(256, (64, 64, 4, 2)),
    ),
    # Its matrix instructions read registers alone, where a query block from a tensor map stays: it spills.
    ("forward", "geforce_blackwell", 2): (
        _row(64, (64, 64, 4, 2), pointers=[(64, 64, 4, 2)]),
        _row(128, pointers=[(64, 64, 4, 2), (64, 32, 4, 2)]),
        _row(256, pointers=[(64, 32, 4, 2)]),
    ),
    ("dq", "ampere", 2): (
        _row(64, (64, 64, 4, 2), (64, 64, 4, 1)),
        _row(128, (64, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 2)),
        _row(256, (64, 32, 8, 2)),
    ),
    ("dq", "hopper", 2): (
        _row(128, (64, 64, 4, 2), (64, 64, 4, 1), (64, 64, 8, 2), pointers=[(64, 64, 4, 2)]),
        _row(256, (64, 32, 8, 2), (64, 32, 4, 2)),
    ),
    ("dq", "blackwell", 2): (_row(128, (64, 64, 4, 2), (64, 64, 4, 1)), _row(256, (64, 32, 8, 2))),
    ("dq", "geforce_blackwell", 2): (
        _row(64, (64, 32, 4, 2), pointers=[(64, 64, 4, 2)]),
        _row(128, (64, 32, 4, 2), pointers=[(64, 64, 8, 2)]),
        _row(256, (64, 32, 8, 1)),
    ),
    ("dq", "amd", 2): (
        _row(64, (64, 64, 4, 1), (64, 32, 4, 1)),
        _row(128, (64, 32, 4, 1), (64, 64, 4, 1)),
        _row(256, (32, 32, 4, 1)),
    ),
    ("dkdv", "ampere", 2): (
        _row(64, (32, 64, 4, 2), (64, 64, 8, 2)),
        _row(128, (64, 64, 8, 2), (32, 64, 8, 2), (32, 64, 4, 2)),
        _row(256, (32, 32, 8, 1)),
    ),
    ("dkdv", "hopper", 2): (
        _row(64, (64, 64, 4, 1), (32, 64, 4, 2), (64, 64, 8, 2), pointers=[(64, 64, 4, 1)]),
        _row(128, (32, 64, 4, 2), (32, 64, 4, 1), (64, 64, 8, 2), (32, 64, 8, 2), pointers=[(32, 64, 4, 2)]),
        _row(256, (32, 32, 8, 1)),
    ),
    ("dkdv", "blackwell", 2): (
        _row(128, (64, 64, 4, 1), (32, 64, 4, 2), (32, 64, 4, 1)),
        _row(256, (32, 32, 8, 1)),
    ),
    ("dkdv", "amd", 2): (
        _row(64, (32, 64, 4, 1), (64, 64, 4, 1)),
        _row(128, (32, 64, 8, 1), (32, 64, 4, 1)),
        _row(256, (16, 32, 8, 1)),
    ),
}


_FAMILY = {
    (8, 0): "ampere",
    (9, 0): "hopper",
    (10, 0): "blackwell",
    (10, 3): "blackwell",
    (12, 0): "geforce_blackwell",
    (12, 1): "geforce_blackwell",
}


def family(device: torch.device) -> str | None:
    """The architecture family of a GPU; None if Triton has no matrix instructions for it.

    "geforce" stands for all other NVIDIA GPUs with 99 KiB of shared memory per block.
    """
    if device.type == "xpu":
        return "xpu"
    if torch.version.hip is not None:
        return "amd"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return None
    return _FAMILY.get(capability, "geforce")


def has_tma(device: torch.device) -> bool:
    """Whether the GPU reads boxes through tensor maps: NVIDIA, compute capability 9.0 and newer."""
    if family(device) in (None, "xpu", "amd"):
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def choices(kernel: str, device: torch.device, dtype: torch.dtype, width: int) -> tuple[Config, ...]:
    """The configurations of a kernel for a head width, on a GPU that has a family.

    kernel: "forward", "dq" or "dkdv". The first is the default; the others are timed against it under
    mode="max-autotune".
    """
    size = dtype.itemsize
    rows = _BY_FAMILY.get((kernel, family(device) or "", size), _ANY_FAMILY[kernel, size])
    return next(configs for most, configs in rows if width <= most)
