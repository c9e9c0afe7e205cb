"""STA, sliding tile attention (arXiv 2502.04507): a static box of tiles around every query tile.

The paper's tiles are (6, 8, 8), with boxes searched for each head; here all heads have the same box, sized by
the sparsity: options={"method": "sta", "tile": (6, 8, 8)}.
"""

from __future__ import annotations

from .method import Method
from .patterns import SlidingTiles

sta = Method(scorer=None, selector=SlidingTiles())
