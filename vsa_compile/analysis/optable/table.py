"""The table of layout rules: op name -> function(call) -> axes of the result.

A rule returns one axis per output dimension (a tuple of such lists for several outputs), or None to
say that it does not know. The walk checks every axis against the size of the real output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from ..graph_facts import Call, Value

Rule = Callable[[Call], Value]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of every op called one of `names`."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


@cache
def is_pointwise(name: str) -> bool:
    """Whether aten tags any overload of this op as pointwise."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    return any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())
