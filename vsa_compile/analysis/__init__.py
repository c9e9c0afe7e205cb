"""Which dimension of every value is the video token axis, and what are its (frames, rows, cols)?

    axes.py     the algebra: products, concatenations, unification
    regroup.py  a reshape in that algebra
    sizes.py    ints and sympy expressions
    values.py   what a rule sees of a graph node: its arguments, their axes, its sizes
    rules.py    the table of rules, one per op, filled by views.py, indexing.py and compute.py
    walk.py     applies the rules to a graph and to its checkpointed bodies
    masks.py    proves which keys a boolean mask lets through
    counts.py   sizes that are data, and equal
    tokens.py   reads a token axis as segments: video with its grid, or other

Rules look at ops and shapes, never at a model's name. Sizes come from `example_value` and may be
sympy expressions; no rule adds a guard. An op without a rule gives axes about which nothing is
known, so that what is missing here leaves a call dense and never converts a wrong one.
"""

from .tokens import Segment, read_segments, same_tokens
from .walk import Analysis, analyse

__all__ = ["Analysis", "Segment", "analyse", "read_segments", "same_tokens"]
