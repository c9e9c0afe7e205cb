"""Rules of ops that compute: pointwise, reductions, contractions, convolutions, creation."""

from __future__ import annotations

from ..algebra import Axis, derived, equal, mark_origins, unify, unit
from ..graph_facts import Call, Value, broadcast
from .table import rule


def pointwise(call: Call) -> Value:
    """Broadcast all tensor arguments against each other."""
    arguments = [*call.node.args, *call.node.kwargs.values()]
    layouts = [layout for layout in map(call.layout, arguments) if layout is not None]
    return broadcast(layouts, call.sizes) if layouts else None


for _name in (
    "iadd", "isub", "imul", "itruediv", "truediv", "floordiv", "and_", "or_", "xor", "invert", "neg", "mod",
    "ge", "gt", "le", "lt", "eq", "ne", "polar", "complex", "where", "masked_fill", "addcmul",
):  # fmt: skip
    rule(_name)(pointwise)


@rule(
    "to", "float", "half", "bfloat16", "double", "bool", "int", "long", "type", "type_as", "contiguous",
    "clone", "detach", "alias", "_to_copy", "dropout", "alpha_dropout", "feature_dropout", "softmax",
    "log_softmax", "_softmax", "layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm",
    "normalize", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "cumsum",
    "requires_grad", "conj", "real", "imag",
)  # fmt: skip
def _like_input(call: Call) -> Value:
    """Same shape, same tokens, in the same order."""
    return call.input


@rule(
    "sum",
    "mean",
    "any",
    "all",
    "amax",
    "amin",
    "norm",
    "linalg_vector_norm",
    "var",
    "std",
    "prod",
    "logsumexp",
)
def _reduce(call: Call) -> Value:
    layout = call.input
    if layout is None:
        return None
    position = 2 if "norm" in call.name else 1
    dims = call.arg(position, "dim")
    if dims is None:
        return [unit() for _ in call.sizes]
    dims = {d % len(layout) for d in (dims if isinstance(dims, (tuple, list)) else [dims])}
    if len(call.sizes) == len(layout):
        return [unit() if d in dims else axis for d, axis in enumerate(layout)]
    return [axis for d, axis in enumerate(layout) if d not in dims]


@rule("linear")
def _linear(call: Call) -> Value:
    layout = call.input
    return layout and [*layout[:-1], Axis(call.sizes[-1])]


@rule("embedding")
def _embedding(call: Call) -> Value:
    """F.embedding(indices, table), aten.embedding(table, indices). Looked-up ids are text, so one axis."""
    arguments = [call.layout(call.arg(0, "input")), call.layout(call.arg(1, "weight"))]
    indices = [a for a in arguments if a is not None and len(a) == len(call.sizes) - 1]
    if not indices:
        return None
    mark_origins(indices[0], call.node)
    return [*indices[0], Axis(call.sizes[-1])]


@rule("matmul", "bmm", "mm")
def _matmul(call: Call) -> Value:
    left, right = call.input, call.layout(call.arg(1, "other", call.arg(1, "mat2")))
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    unify(left[-1], right[-2])
    batch = broadcast([left[:-2], right[:-2]], call.sizes[:-2])
    return [*batch, left[-2], right[-1]]


@rule("outer", "ger")
def _outer(call: Call) -> Value:
    left, right = call.input, call.layout(call.arg(1, "vec2", call.arg(1, "other")))
    return [left[0], right[0]] if left and right else None


@rule("einsum")
def _einsum(call: Call) -> Value:
    equation, operands = call.node.args[0], call.node.args[1:]
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = operands[0]
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        return None
    inputs, output = equation.replace(" ", "").split("->")
    known: dict[str, Axis] = {}
    for letters, operand in zip(inputs.split(","), operands, strict=False):
        layout = call.layout(operand)
        if layout is None or len(layout) != len(letters):
            return None
        for letter, axis in zip(letters, layout, strict=True):
            unify(known.setdefault(letter, axis), axis)
    return [known[letter] for letter in output]


@rule("scaled_dot_product_attention")
def _attention(call: Call) -> Value:
    q = call.layout(call.arg(0, "query"))
    k = call.layout(call.arg(1, "key"))
    v = call.layout(call.arg(2, "value"))
    if q is None or k is None or v is None:
        return None
    unify(k[-2], v[-2])
    for dim in range(len(q) - 3):
        unify(q[dim], k[dim])
        unify(k[dim], v[dim])
    return [*q[:-1], v[-1]]


@rule(
    "conv1d", "conv2d", "conv3d", "avg_pool2d", "avg_pool3d", "max_pool2d", "max_pool3d", "interpolate",
    "conv_transpose2d", "conv_transpose3d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
)  # fmt: skip
def _spatial(call: Call) -> Value:
    """Pixel axes at another resolution still run in the same order: derive them.

    The axes of a result with three of them are also marked as axes of one value, for an input whose
    own axes were cut together from pieces.
    """
    layout = call.input
    if layout is None or len(layout) != len(call.sizes) or len(layout) < 3:
        return None
    spatial = [derived(axis, size) for axis, size in zip(layout[2:], call.sizes[2:], strict=True)]
    if len(spatial) == 3:
        mark_origins(spatial, call.node)
    channels = layout[1] if equal(layout[1].size, call.sizes[1]) and "conv" not in call.name else None
    return [layout[0], channels or Axis(call.sizes[1]), *spatial]


@rule("meshgrid")
def _meshgrid(call: Call) -> Value:
    """Every output runs over all operands; the operands are axes of one grid, in their order."""
    operands = call.node.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    layouts = [call.layout(operand) for operand in operands]
    if not all(layouts) or not isinstance(call.example, (tuple, list)):
        return None
    axes = [layout[0] for layout in layouts if layout]
    mark_origins(axes, call.node)
    if call.node.kwargs.get("indexing", "ij") == "xy":
        axes[:2] = axes[1::-1]
    return tuple(list(axes) for _ in call.example)
