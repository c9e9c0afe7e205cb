"""BSA, bidirectional sparse attention (arXiv 2509.01085): sparse queries and sparse keys.

The paper fixes the parts; each detail that it leaves open is a field, with the reason for its default, in
prune.py and select.py. Work kept is q_keep * kv_keep = 1 - sparsity, with q_keep = max(0.5, 1 - sparsity):
the paper's 0.93 is half of the queries on 0.14 of the tiles, its 0.95 half on 0.10. No new parameters, no
coarse output.
"""

from __future__ import annotations

from .method import Method
from .prune import WindowPruner
from .select import GaussQuantile

bsa = Method(pruner=WindowPruner(), selector=GaussQuantile())
