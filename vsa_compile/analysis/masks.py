"""Proves which keys a boolean mask lets through, from the ops that built it. Never looks at data.

A text mask over a joint sequence is built in the graph: ones, cut at video + text length, or a text
mask padded or concatenated in front. What such a chain says about the video keys can be proved; a
mask that comes from outside, or is built otherwise, proves nothing.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ..torch_compat import depends_on_data, known_at_least, size_expression
from .algebra import Size, equal
from .graph_facts import example_of, op_name, sizes_of
from .walk import Analysis

_CONSTANTS = {
    "ones": True,
    "new_ones": True,
    "ones_like": True,
    "zeros": False,
    "new_zeros": False,
    "zeros_like": False,
}
_CARRIERS = (
    "unsqueeze", "squeeze", "view", "reshape", "expand", "repeat", "to", "bool", "int", "long", "contiguous",
    "clone", "getitem", "type_as", "detach", "tile", "broadcast_to", "_to_copy", "alias", "slice",
)  # fmt: skip
# comparison -> (index on the left: the value it has below the bound), and with the index on the right
_COMPARISONS = {"ge": (False, None), "lt": (True, None), "gt": (None, True), "le": (None, False)}


def all_true(analysis: Analysis, mask: Any, start: Size, stop: Size) -> bool:
    """Whether a boolean mask (..., keys) is True on every key of [start, stop), whatever the data."""
    return _Proof(analysis, start, stop).holds(mask, True)


def padding_of_both(mask: Any) -> Node | None:
    """The (B or 1, 1, 1, N) padding p of a mask `p & p.transpose(2, 3)`: padding sees nobody."""
    node: Any = _without_copies(mask)
    if not isinstance(node, Node) or op_name(node) not in ("and_", "logical_and", "bitwise_and"):
        return None
    arguments: list[Any] = list(node.args[:2])
    for rows, columns in (arguments, arguments[::-1]):
        if _is_transpose(columns, rows):
            padding = rows.args[0] if op_name(rows) in ("repeat", "expand", "broadcast_to", "tile") else rows
            sizes = sizes_of(example_of(padding)) or []
            flat = len(sizes) == 4 and equal(sizes[1], 1) and equal(sizes[2], 1)
            return padding if flat and _same_keys(padding, node) else None
    return None


def _without_copies(argument: Any) -> Any:
    while isinstance(argument, Node) and op_name(argument) in ("bool", "to", "contiguous", "clone", "detach"):
        argument = argument.args[0]
    return argument


def _is_transpose(node: Any, of: Any) -> bool:
    """Whether a node is another one with its last two of four dimensions swapped."""
    if not isinstance(node, Node) or not isinstance(of, Node) or node.args[0] is not of or _rank(of) != 4:
        return False
    dims = {dim % 4 for dim in node.args[1:3] if isinstance(dim, int)}
    swapped = op_name(node) in ("transpose", "swapaxes", "swapdims") and dims == {2, 3}
    return swapped or op_name(node) == "mT" or (op_name(node) == "getattr" and node.args[1] == "mT")


class _Proof:
    """One question: what a mask says about the keys of [start, stop)."""

    def __init__(self, analysis: Analysis, start: Size, stop: Size) -> None:
        self.analysis, self.start, self.stop = analysis, start, stop

    def resolved(self, argument: Any) -> Any:
        """The node outside a checkpointed body that a placeholder stands for."""
        while isinstance(argument, Node) and argument in self.analysis.outer:
            argument = self.analysis.outer[argument]
        return argument

    def holds(self, argument: Any, value: bool) -> bool:
        """Whether every entry on those keys (the last dimension) is `value`."""
        node = self.resolved(argument)
        if not isinstance(node, Node):
            return isinstance(node, (bool, int)) and bool(node) is value
        if node.op not in ("call_function", "call_method"):
            return False
        name, args = op_name(node), node.args
        if name in _CONSTANTS:
            return _CONSTANTS[name] is value
        if name in ("full", "full_like", "new_full"):
            return bool(_argument(node, 1, "fill_value")) is value
        if name in _CARRIERS:
            return _same_keys(self.resolved(args[0]), node) and self.holds(args[0], value)
        if name in ("logical_not", "invert", "bitwise_not"):
            return self.holds(args[0], not value)
        if name in ("and_", "logical_and", "bitwise_and", "or_", "logical_or", "bitwise_or"):
            every = ("and" in name) is value
            return (all if every else any)(self.holds(argument, value) for argument in args[:2])
        if name == "masked_fill":
            return self._masked_fill(node, value)
        if name in _COMPARISONS:
            return self._comparison(node, name, value)
        return self._assembled(node, name, value)

    def _masked_fill(self, node: Node, value: bool) -> bool:
        untouched, filled = node.args[1], bool(_argument(node, 2, "value"))
        if filled is value:
            return self.holds(node.args[0], value) or self.holds(untouched, True)
        return self.holds(node.args[0], value) and self.holds(untouched, False)

    def _comparison(self, node: Node, name: str, value: bool) -> bool:
        """position < bound, with a bound that is known to be at least `stop`, in any spelling."""
        left, right = node.args[:2]
        index_left, index_right = _COMPARISONS[name]
        if index_left is value and self.is_position(left):
            return self._reaches(right)
        return index_right is value and self.is_position(right) and self._reaches(left)

    def _reaches(self, bound: Any) -> bool:
        least = self.lower_bound(bound)
        return least is not None and self.at_least(least, self.stop)

    def _assembled(self, node: Node, name: str, value: bool) -> bool:
        """The pieces of a concatenation, or of padding, that cover the keys."""
        if name == "pad":
            fill, before = _argument(node, 3, "value"), self.lower_bound(_argument(node, 1, "pad")[0])
            inner = (sizes_of(example_of(self.resolved(node.args[0]))) or [0])[-1]
            if before is None or bool(fill) is not value:
                return False
            return self.at_least(before, self.stop) or self.at_least(self.start, before + inner)
        if name not in ("cat", "concat") or _argument(node, 1, "dim", 0) not in (-1, _rank(node) - 1):
            return False
        begin: Size = 0
        covered = False
        for piece in _argument(node, 0, "tensors"):
            end = begin + (sizes_of(example_of(piece)) or [0])[-1]
            inside = covered or equal(begin, self.start)
            if inside and not _Proof(self.analysis, 0, end - begin).holds(piece, value):
                return False
            if inside and equal(end, self.stop):
                return True
            begin, covered = end, inside
        return False

    def is_position(self, argument: Any) -> bool:
        """Whether the value at key i is i itself: an arange from 0, reshaped."""
        node = self.resolved(argument)
        if not isinstance(node, Node):
            return False
        if op_name(node) == "arange":
            starts_at = node.kwargs.get("start", 0) if len(node.args) < 2 else node.args[0]
            return bool(starts_at == 0 and node.kwargs.get("step", 1) == 1 and len(node.args) < 3)
        carried = op_name(node) in _CARRIERS and _same_keys(self.resolved(node.args[0]), node)
        return carried and self.is_position(node.args[0])

    def lower_bound(self, argument: Any) -> Size | None:
        """A size that every entry is at least.

        A sum in integers counts a mask's entries, so it is at least 0. (HunyuanVideoPipeline makes the mask
        float, the model adds it up with dtype=torch.int.)
        """
        node = self.resolved(argument)
        example = example_of(node)
        if sizes_of(example) is None:
            return self._size(example) if hasattr(example, "__index__") else None
        name = op_name(node)
        if name in ("add", "iadd"):
            bounds = [self.lower_bound(argument) for argument in node.args[:2]]
            return None if bounds[0] is None or bounds[1] is None else bounds[0] + bounds[1]
        if name in ("sum", "count_nonzero"):
            return None if example.is_floating_point() else 0
        return self.lower_bound(node.args[0]) if name in _CARRIERS else None

    def at_least(self, a: Size, b: Size) -> bool:
        """a >= b for all values of the symbols that the graph is for."""
        difference = a - b
        if isinstance(difference, int):
            return difference >= 0
        known = bool(difference.is_nonnegative) or equal(a, b)
        return known or known_at_least(a, b, self.analysis.environment)

    def _size(self, example: Any) -> Size:
        size: Size = size_expression(example)
        return size.subs(self.analysis.equal_counts) if depends_on_data(size) else size


def _argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    return node.kwargs.get(name, node.args[position] if position < len(node.args) else default)


def _rank(node: Node) -> int:
    return len(sizes_of(example_of(node)) or [])


def _same_keys(before: Any, after: Node) -> bool:
    """Whether a reshaping left the last dimension, the keys, alone."""
    sizes = sizes_of(example_of(before)), sizes_of(example_of(after))
    return bool(sizes[0]) and bool(sizes[1]) and equal(sizes[0][-1], sizes[1][-1])
