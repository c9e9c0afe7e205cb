"""Which dimension of every value is the video token axis, and what are its (frames, rows, cols)?

README.md explains the abstraction. Rules look at operators and shapes, never at a model's name. Sizes come
from example values and may be sympy expressions; nothing here adds a guard.

    sizes.py         ints and sympy expressions
    algebra.py       axes and their forms: products, concatenations, runs
    unify.py         what two axes that meet learn from each other, and the axis of what has both
    regroup.py       a reshape in that algebra
    pieces.py        pieces of an axis by their places: cut out, found, replaced
    overwriting.py   what an axis becomes where some of its positions are written
    facts.py         what is known of a mask's entries, and proofs of it
    graph_facts.py   what the graph itself says of a node
    values.py        what is known of a value; a call as the table sees it
    optable/         the table of operators: layout, mask fact and effects, one entry each
    effects.py       memory: which values share it, and what a write makes of them
    walk.py          applies the table to a graph and to its checkpointed bodies
    tokens.py        reads a token axis as segments: video with its grid, or other
    backward_slice.py  what a value is computed from
"""

from .tokens import Segment, read_segments, same_tokens
from .walk import Analysis, analyse

__all__ = ["Analysis", "Segment", "analyse", "read_segments", "same_tokens"]
