"""The table of operators: one entry per operator, with layout, mask fact and effects side by side."""

from . import (  # noqa: F401  (they fill the table)
    choices,
    compute,
    factories,
    indexing,
    masks,
    our_operators,
    parts,
    views,
    writes,
)
from .table import Entry, entry_of, name_of, own, value_of, written_by

__all__ = ["Entry", "entry_of", "name_of", "own", "value_of", "written_by"]
