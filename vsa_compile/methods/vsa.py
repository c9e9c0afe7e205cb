"""VSA, video sparse attention (arXiv 2505.13389, section 2.2; training details 2.3)."""

from __future__ import annotations

from .method import GatedCoarse, Method
from .select import TopK

# fine + gate * coarse: every query tile keeps the key tiles that score best by mean query and mean key (ties:
# lowest id), and attends to their tokens and all non-video keys. Without a gate there is no coarse output.
vsa = Method(selector=TopK(), residual=GatedCoarse())
