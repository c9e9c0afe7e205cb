"""Operators that compute: pointwise, reductions, contractions, convolutions, attention."""

from __future__ import annotations

from ..algebra import REORDERED, UNKNOWN, Axis, mark_origins, rigid, unit
from ..graph_facts import example_of
from ..pieces import derived
from ..sizes import equal
from ..unify import unify
from ..values import Known, Layout, OpCall, Result, Volume, align, broadcast
from . import carry
from .table import op, own


def pointwise(call: OpCall) -> Layout | None:
    """Broadcast all tensor arguments against each other."""
    tensors = call.tensors
    return broadcast(tensors, call.sizes) if tensors else None


@op(
    "polar", "complex", "addcmul", "addcdiv", "conj", "imag", "real", "truediv", "div", "floordiv",
    "floor_divide", "mod", "remainder", "pow", "xor", "lshift", "rshift", "neg", "pos",
)  # fmt: skip
def _pointwise(call: OpCall) -> Result:
    return pointwise(call)


@op(
    "to", "float", "half", "bfloat16", "double", "bool", "int", "long", "short", "type", "type_as",
    "contiguous", "clone", "detach", "alias", "_to_copy", "lift_fresh_copy", "requires_grad", "cpu", "cuda",
    "lift_fresh",
    fact=carry.copied,
)  # fmt: skip
def _copied(call: OpCall) -> Result:
    """The same entries in the same order."""
    return call.input


@op(
    "dropout", "alpha_dropout", "feature_dropout", "softmax", "log_softmax", "_softmax", "layer_norm",
    "rms_norm", "group_norm", "instance_norm", "normalize", "cumsum", "cumprod", "native_layer_norm",
)  # fmt: skip
def _like_input(call: OpCall) -> Result:
    """Same shape, same tokens, in the same order."""
    return call.input


@op("batch_norm", writes=((1, "running_mean"), (2, "running_var")))
def _batch_norm(call: OpCall) -> Result:
    return call.input


@op(
    "mean", "any", "all", "amax", "amin", "norm", "linalg_vector_norm", "vector_norm", "var", "std", "prod",
    "logsumexp", "argmax", "argmin", "nansum", "median",
)  # fmt: skip
def reduced(call: OpCall) -> Layout | None:
    layout = call.input
    if layout is None or isinstance(call.example, (tuple, list)):
        return None
    if not layout:  # of a number
        return []
    position = 2 if "norm" in call.name else 1
    dims = call.arg(position, "dim")
    if dims is None:
        return [unit() for _ in call.sizes]
    dims = {d % len(layout) for d in (dims if isinstance(dims, (tuple, list)) else [dims])}
    if len(call.sizes) == len(layout):
        return [unit() if d in dims else axis for d, axis in enumerate(layout)]
    return [axis for d, axis in enumerate(layout) if d not in dims]


@op("linear", layer=True)
def _linear(call: OpCall) -> Result:
    layout = call.input
    return layout and [*layout[:-1], Axis(call.sizes[-1])]


def _embedding(call: OpCall, indices: object, table: object) -> Known | None:
    """Looked-up ids are text, so one axis. Rows of something that is no table are tokens in another order."""
    ids, looked_up = call.known(indices), call.known(table)
    if ids is None or looked_up is None or len(ids.axes) != len(call.sizes) - 1:
        return None
    if not looked_up.table:
        order = UNKNOWN if UNKNOWN in map(rigid, looked_up.axes[:1]) else REORDERED
        return Known([*(Axis(axis.size, rigid=order) for axis in ids.axes), looked_up.axes[-1]])
    mark_origins(ids.axes, call.node)
    return Known([*ids.axes, Axis(call.sizes[-1])], None, ids.table)


@op("embedding", layer=True)
def _look_up(call: OpCall) -> Result:
    """F.embedding(indices, table); torch.embedding and aten.embedding take the table first."""
    ids, table = call.arg(0, "input"), call.arg(1, "weight")
    first = example_of(call.node.args[0]) if call.node.args else None
    if "indices" in call.node.kwargs or (first is not None and first.is_floating_point()):
        ids, table = call.arg(1, "indices"), call.arg(0, "weight")
    return _embedding(call, ids, table)


@op("matmul", "bmm", "mm", layer=True)
def _matmul(call: OpCall) -> Result:
    left, right = call.known(call.self_), call.known(call.other)
    if left is None or right is None or len(left.axes) < 2 or len(right.axes) < 2:
        return None
    unify(left.axes[-1], right.axes[-2])
    stacks = [Known(one.axes[:-2], table=one.table) for one in (left, right)]
    return [*broadcast(stacks, call.sizes[:-2]), left.axes[-2], right.axes[-1]]


@op("outer", "ger", layer=True)
def _outer(call: OpCall) -> Result:
    left, right = call.input, call.layout(call.other)
    return [left[0], right[0]] if left and right else None


@op("einsum", layer=True)
def _einsum(call: OpCall) -> Result:
    equation, operands = call.node.args[0], call.node.args[1:]
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = operands[0]
    values = [value for value in map(call.known, operands) if value is not None]
    if not isinstance(equation, str) or "->" not in equation or len(values) < len(operands):
        return None
    inputs, output = equation.replace(" ", "").split("->")
    names, result = _spelled_out(inputs.split(","), output, [len(value.axes) for value in values])
    known: dict[str, Axis] = {}
    carriers: dict[str, bool] = {}  # whether the axis comes from a table
    for letters, value in zip(names, values, strict=True):
        if len(value.axes) != len(letters) or len(set(letters)) != len(letters):
            return None
        for letter, axis in zip(letters, value.axes, strict=True):
            if letter not in known or (equal(known[letter].size, 1) and not equal(axis.size, 1)):
                known[letter], carriers[letter] = axis, value.table
                continue
            if equal(axis.size, 1):  # broadcast
                continue
            both = align(known[letter], axis)
            known[letter] = (
                both if carriers[letter] == value.table else axis if carriers[letter] else known[letter]
            )
            carriers[letter] = carriers[letter] and value.table
    return Known([known[letter] for letter in result], None, all(value.table for value in values))


def _spelled_out(inputs: list[str], output: str, ranks: list[int]) -> tuple[list[str], str]:
    """An equation of einsum with digits for the dimensions that "..." stands for, aligned from the right."""
    terms = list(zip(inputs, ranks, strict=True))
    hidden = [rank - len(letters) + 3 if "..." in letters else 0 for letters, rank in terms]
    digits = "0123456789"[: max(hidden)]
    names = [
        letters.replace("...", digits[len(digits) - n :])
        for (letters, _), n in zip(terms, hidden, strict=True)
    ]
    return names, output.replace("...", digits)


@op("scaled_dot_product_attention", layer=True)
def _attention(call: OpCall) -> Result:
    q, k, v = (call.layout(call.arg(i, name)) for i, name in enumerate(("query", "key", "value")))
    if q is None or k is None or v is None or len(q) < 2:
        return None
    unify(k[-2], v[-2])
    for dim in range(len(q) - 3):
        unify(q[dim], k[dim])
        unify(k[dim], v[dim])
    return [*q[:-1], v[-1]]


@own("higher_order::flex_attention", layer=True)
def _flex_attention(call: OpCall) -> Result:
    """(output, lse, maximal scores), all of the queries' tokens."""
    q, v = call.layout(call.arg(0, "query")), call.layout(call.arg(2, "value"))
    if q is None or v is None or not isinstance(call.example, (tuple, list)):
        return None
    return ([*q[:-1], v[-1]], *(list(q[:-1]) for _ in call.example[1:]))


@op(
    "conv1d", "conv2d", "conv3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d",
    "max_pool3d", "interpolate", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", layer=True,
)  # fmt: skip
def _spatial(call: OpCall) -> Result:
    """Spatial axes at another resolution keep their order, so the result's axes are derived from them.

    The three axes of a volume with several channels are axes of one value, a video. With one channel they may
    as well be a picture whose channels stand where frames would be.
    """
    layout = call.input
    if layout is None or len(layout) != len(call.sizes) or len(layout) < 3:
        return None
    first = 1 if call.name.endswith(f"{len(layout) - 1}d") else 2  # without a batch, or with one
    *front, channels = layout[:first]
    volume, sizes = len(layout) - first == 3, zip(layout[first:], call.sizes[first:], strict=True)
    spatial = [derived(axis, size, frames=volume and at == 0) for at, (axis, size) in enumerate(sizes)]
    if volume and not equal(channels.size, 1):
        mark_origins(layout[first:], Volume((call.node, "before")))
        mark_origins(spatial, Volume(call.node))
    kept = equal(channels.size, call.sizes[first - 1]) and "conv" not in call.name
    return [*front, channels if kept else Axis(call.sizes[first - 1]), *spatial]


@op("meshgrid")
def _meshgrid(call: OpCall) -> Result:
    """Every output runs over all operands, which are the axes of one grid, in order."""
    operands = call.node.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    known = [call.known(operand) for operand in operands]
    if not all(one and len(one.axes) <= 1 for one in known) or not isinstance(call.example, (tuple, list)):
        return None
    axes: Layout = [one.axes[0] if one and one.axes else unit() for one in known]
    mark_origins(axes, Volume(call.node) if len(axes) == 3 else call.node)
    if call.node.kwargs.get("indexing", "ij") == "xy":
        axes[:2] = axes[1::-1]
    table = all(one.table for one in known if one)
    return tuple(Known(list(axes), None, table) for _ in call.example)
