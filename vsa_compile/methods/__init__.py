"""Sparse attention methods: each is one short file of plain PyTorch on top of the leaf operators.

A method is a `Method`, a frozen composition of parts, or any function (q, k, v, gate, site) -> out, all
(B, H, N, D). It calls `torch.ops.vsa_compile.select` and `torch.ops.vsa_compile.attend` and names no device.
"""

from __future__ import annotations

from .bsa import bsa
from .method import GatedCoarse, MeanDot, Method
from .patterns import FirstFrames, OwnTiles, SlidingTiles
from .prune import Queries, WindowPruner
from .registry import get, guard_version, literal, names, readable, register_method
from .select import AtLeast, AtMost, GaussQuantile, Intersection, Selector, TopK, TopP, Union
from .site import Site
from .sta import sta
from .vsa import vsa

__all__ = [
    "AtLeast",
    "AtMost",
    "FirstFrames",
    "GatedCoarse",
    "GaussQuantile",
    "Intersection",
    "MeanDot",
    "Method",
    "OwnTiles",
    "Queries",
    "Selector",
    "Site",
    "SlidingTiles",
    "TopK",
    "TopP",
    "Union",
    "WindowPruner",
    "bsa",
    "get",
    "guard_version",
    "literal",
    "names",
    "readable",
    "register_method",
    "sta",
    "vsa",
]
