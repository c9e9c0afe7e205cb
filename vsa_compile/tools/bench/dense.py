"""Dense attention by one of torch's SDPA kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .block import Attend, make_block, tokens
from .clock import Task
from .work import Work, fresh, timed

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def unavailable(name: str, work: Work) -> str | None:
    """Why the kernel cannot run here, as far as known without running it."""
    if name == "cudnn" and work.plan.device.type != "cuda":
        return "cuDNN's attention needs --device cuda"
    return None


def task(name: str, part: str, work: Work) -> Task:
    """SDPA: eager, as models call it; in a block, compiled by Inductor."""
    attend = attention(name)
    if not part.startswith("block"):
        return timed(part, attend, work.inputs, work.grad)
    block = make_block(work, attend)
    x, grad = tokens(work)
    compiled = torch.compile(fresh(lambda x: block(x)), fullgraph=True, dynamic=False)
    return timed(part, compiled, (x,), grad)


def attention(name: str) -> Attend:
    """SDPA by this kernel alone."""
    backend = BACKENDS[name]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return attend
