"""VSA, video sparse attention (arXiv 2505.13389, section 2.2; training details 2.3)."""

from __future__ import annotations

from .method import GatedCoarse, Method
from .select import TopK

# fine + gate * coarse: every query tile keeps the best tiles by mean query and mean key (ties: lowest id) and
# attends exactly to their tokens and to all non-video keys. Without a gate no coarse output is computed.
vsa = Method(selector=TopK(), residual=GatedCoarse())
