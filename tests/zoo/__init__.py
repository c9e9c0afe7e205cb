"""Tiny random-weight copies of real diffusers and transformers models, with ground truth.

Every case says how many attention calls are 3D self-attention over the video's tokens (and so must
become sparse) and how many are something else (and must stay dense), with the reason.

    case.py        what a case is, and what all are made of
    wan.py ...     one file a family
    negatives.py   models in which nothing may be converted
    page.py        docs/models.md, written from the cases
"""

from . import cogvideox, hunyuan, ltx, negatives, others, wan
from .case import GRID, OTHER_GRIDS, TEXT, Built, Case, Draw, Grid, built, small, text_mask
from .page import PAGE, page

VIDEO = [*wan.CASES, *hunyuan.CASES, *cogvideox.CASES, *ltx.CASES, *others.CASES]
NEGATIVE = negatives.CASES

__all__ = [
    "GRID", "NEGATIVE", "OTHER_GRIDS", "PAGE", "TEXT", "VIDEO", "Built", "Case", "Draw", "Grid", "built",
    "page", "small", "text_mask",
]  # fmt: skip
