"""Which dimension of every value is the video token axis, and what are its (frames, rows, cols)?

README.md explains the abstraction. Rules look at operators and shapes, never at a model's name. Sizes come
from example values and may be sympy expressions; nothing here adds a guard.

    sizes.py         ints and sympy expressions
    algebra.py       axes and their forms: products, concatenations, runs
    unify.py         unification of the forms of two axes, and the axis of an elementwise result
    regroup.py       reshapes in axis algebra
    pieces.py        pieces of an axis: cutting, finding and replacing them
    overwriting.py   the axis of a value after some of its positions were written
    facts.py         facts about the entries of masks, and proofs from them
    graph_facts.py   what the graph itself says of a node
    values.py        what is known of a value; a call as the table sees it
    optable/         the table of operators: layout, mask fact and effects, one entry each
    effects.py       memory: which values share it, and the effect of a write
    walk.py          applies the table to a graph and to its checkpointed bodies
    tokens.py        reads a token axis as segments: video with its grid, or other
    backward_slice.py  what a value is computed from
"""

from .tokens import Segment, read_segments, same_tokens
from .walk import Analysis, analyse

__all__ = ["Analysis", "Segment", "analyse", "read_segments", "same_tokens"]
