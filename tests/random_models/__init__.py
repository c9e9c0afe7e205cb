"""Random small video transformers with a known truth about each of their attention calls."""

from .kinds import KINDS, Truth
from .model import RandomModel, inputs, truths
from .plan import Block, Plan, plans

__all__ = ["KINDS", "Block", "Plan", "RandomModel", "Truth", "inputs", "plans", "truths"]
