"""Exported programs: example values that share memory, and numbers that became inputs."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from .operators import storage_of


def restore_aliases(module: GraphModule) -> None:
    """Let the example values of an exported graph share memory where its operators say so; those of a program
    that was loaded from a file share none. Leaves a graph as it is if they do. Checked on torch 2.13.
    """
    if any(_is_apart(node) for node in _calls(module)):
        _restore(module, None)


_NUMBER = "vsa_compile_number"


def note_numbers(program: ExportedProgram) -> None:
    """Let `number_of` know the numbers of a program that export made inputs, as it does of m[...] = True.
    Checked on torch 2.13."""
    names = program.graph_signature.inputs_to_lifted_tensor_constants
    for node in program.graph_module.graph.nodes:
        value = program.constants.get(names.get(node.name, ""))
        if isinstance(value, torch.Tensor) and value.dim() == 0:
            node.meta[_NUMBER] = value.item()


def number_of(node: Node) -> bool | int | float | None:
    """The number that an input of an exported program is, if it is one."""
    return node.meta.get(_NUMBER)


def _calls(module: GraphModule) -> list[Node]:
    graphs = [part.graph for part in module.modules() if isinstance(part, GraphModule)]
    return [node for graph in graphs for node in graph.nodes if node.op == "call_function"]


def _is_apart(node: Node) -> bool:
    """Whether the result of a view or of a write in place has memory of its own."""
    value, first = _value(node), _value(node.args[0]) if node.args else None
    if not (isinstance(value, torch.Tensor) and isinstance(first, torch.Tensor) and _returns_alias(node)):
        return False
    must = node.target is torch.ops.aten.view.default or str(node.target).split(".")[-2].endswith("_")
    return must and storage_of(value) != storage_of(first)


def _returns_alias(node: Node) -> bool:
    called = node.target
    return isinstance(called, torch._ops.OpOverload) and any(one.alias_info for one in called._schema.returns)


def _value(argument: object) -> Any:
    return argument.meta.get("val") if isinstance(argument, Node) else argument


def _restore(module: GraphModule, arguments: tuple[object, ...] | None) -> object:
    """Compute views and writes again, in order; returns the output. `arguments`: of a body's call."""
    given = iter(arguments or ())
    for node in module.graph.nodes:
        if node.op == "placeholder" and arguments is not None:
            node.meta["val"] = next(given)
        elif node.op == "output":
            return map_arg(node.args[0], _value)
        elif node.op == "call_function":
            args, kwargs = map_arg(node.args, _value), map_arg(node.kwargs, _value)
            body = next((one for one in node.args if isinstance(one, Node) and one.op == "get_attr"), None)
            graph = getattr(module, str(body.target), None) if body is not None else None
            if _returns_alias(node):
                node.meta["val"] = node.target(*args, **kwargs)
            elif node.target is operator.getitem:
                node.meta["val"] = args[0][args[1]]
            elif body is not None and isinstance(graph, GraphModule):
                node.meta["val"] = _restore(graph, args[node.args.index(body) + 1 :])
    return None
