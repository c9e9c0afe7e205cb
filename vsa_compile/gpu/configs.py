"""Launch configurations of the kernels, by architecture family, element size and head width.

One configuration per row for now, chosen so that nothing spills and every GPU of the family has the
shared memory: a step keeps num_stages - 1 or num_stages K and V blocks next to Q. This table is the
place for tuned rows. A second configuration per row would make Inductor benchmark, and it must then
be told how to make valid tile lists (input_gen_fns): it would otherwise invent tile numbers.
May be imported by lowering; imports only the standard library and torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """How one kernel is launched. A tile smaller than a block makes the block smaller.

    block_q: query rows per program. block_k: keys per step. num_stages: depth of the load pipeline.
    """

    block_q: int = 64
    block_k: int = 64
    num_warps: int = 4
    num_stages: int = 2


Row = tuple[int, Config]  # head width up to, configuration

# 64 rows are one warp group of matrix instructions, hence 4 warps. fp32 ("ieee") has no matrix
# instructions on NVIDIA: 8 warps, or the accumulators spill.
_ANY_FAMILY: dict[int, tuple[Row, ...]] = {
    2: ((128, Config()), (256, Config(block_k=32))),
    4: ((128, Config(64, 32, num_warps=8)), (256, Config(32, 16, num_warps=8))),
}
# Families with 163 KiB and more of shared memory per block.
_BY_FAMILY: dict[tuple[str, int], tuple[Row, ...]] = {
    ("ampere", 2): ((256, Config()),),
    ("hopper", 2): ((256, Config()),),
    ("blackwell", 2): ((256, Config()),),
}


_FAMILY = {(8, 0): "ampere", (9, 0): "hopper", (10, 0): "blackwell", (10, 3): "blackwell"}


def family(device: torch.device) -> str | None:
    """The architecture family of a GPU; None if Triton's matrix instructions do not reach it.

    "geforce" are all NVIDIA GPUs with 99 KiB of shared memory per block.
    """
    if device.type == "xpu":
        return "xpu"
    if torch.version.hip is not None:
        return "amd"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return None
    return _FAMILY.get(capability, "geforce")


def attend_config(device: torch.device, dtype: torch.dtype, width: int) -> Config:
    """The forward kernel's configuration for head width `width` on a GPU that has a family."""
    rows = _BY_FAMILY.get((family(device) or "", dtype.itemsize), _ANY_FAMILY[dtype.itemsize])
    return next(config for most, config in rows if width <= most)
