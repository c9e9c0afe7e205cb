"""`add_gates(model)`: a trainable gate for the coarse output of every sparse attention call.

The gate of VSA (arXiv 2505.13389, section 2.2) is a linear layer on the hidden states that the query
projection gets. It is named as in FastVideo, and starts at zero, so that the model's output does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from ..analysis import Analysis, analyse
from ..analysis.algebra import includes
from ..analysis.backward_slice import nearest
from ..analysis.graph_facts import example_of, sizes_of
from ..convert.judge import Conversion, attention_arguments, judge
from ..errors import ArgumentError, bad_value, no_gate_site
from ..options import Options
from ..runtime import state
from ..torch_compat import compiled_by, explaining_compile
from .loading import NAME, GateLoader, UnclaimedGates, load_hooks
from .untrained import expect_training

Model = TypeVar("Model", bound=nn.Module)


def add_gates(
    model: nn.Module, *args: Any, options: Mapping[str, object] | None = None, **kwargs: Any
) -> list[nn.Parameter]:
    """Give every sparse self-attention call of `model` a gate; returns the new parameters.

        parameters = vsa_compile.add_gates(model, **inputs)
        optimizer = torch.optim.AdamW(model.parameters())

    Runs one dense forward with the given inputs to find the calls; `options` are those of the backend. A gate
    (VSA, arXiv 2505.13389, section 2.2) is a linear layer (C -> H * D, zero weight and bias) named
    `to_gate_compress`, on the transformer block, or on the attention module if a block has two. It affects
    only what `torch.compile(model, backend="vsa")` computes: gate(hidden states) * coarse output is added.
    Gates are part of `state_dict()`; from a checkpoint without them they load as zero. Existing gates are
    kept, and missing ones added. Compiled code is compiled again.
    Raises ArgumentError if `model` is no module, or if no call of it can be given a gate.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(bad_value("model", type(model).__name__, "a torch.nn.Module"))
    settings = replace(state.wanted(Options.read(options)).options, min_tokens=0)
    owners = {id(module): name for name, module in model.named_modules()}
    added: list[nn.Parameter] = []
    found = _projections(model, args, kwargs, settings)
    for projection in found:
        owner = _owner(model, owners[id(projection.module)])
        if projection.module in _gated(model):
            continue
        gate = _zero_linear(projection)
        if hasattr(owner, NAME):
            owner = model.get_submodule(owners[id(projection.module)].rpartition(".")[0])
        setattr(owner, NAME, gate)
        inside = next(name for name, module in owner.named_modules() if module is projection.module)
        owner.register_load_state_dict_pre_hook(GateLoader(inside))
        projection.module.register_forward_hook(GateMarker(owner), with_kwargs=True)
        added += gate.parameters()
        expect_training([*gate.parameters()], projection.weight)
    if not found:
        raise ArgumentError(no_gate_site())
    if not any(isinstance(hook, UnclaimedGates) for hook in load_hooks(model).values()):
        model.register_load_state_dict_pre_hook(UnclaimedGates())
    state.now.gates += 1
    return added


def remove_gates(model: Model) -> Model:
    """Undo `add_gates(model)`: removes the gates and their hooks; returns the model.

    Compiled code is compiled again. A model without gates stays as it is.
    Raises ArgumentError if `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(bad_value("model", type(model).__name__, "a torch.nn.Module"))
    for module in [*model.modules()]:
        for key, hook in [*module._forward_hooks.items()]:
            if isinstance(hook, GateMarker):
                del module._forward_hooks[key], module._forward_hooks_with_kwargs[key]
                if hasattr(hook.owner, NAME):
                    delattr(hook.owner, NAME)
        for key, hook in load_hooks(module).items():
            if isinstance(hook, (GateLoader, UnclaimedGates)):
                del module._load_state_dict_pre_hooks[key]
    state.now.gates += 1
    return model


class GateMarker:
    """A forward hook of a query projection: marks its output with the gate of the same hidden states.

    An object that holds the gate's owner, instead of a closure, so that copy.deepcopy and pickle give the
    copied projection the copied gate. Does nothing unless something compiles.
    """

    def __init__(self, owner: nn.Module) -> None:
        self.owner = owner

    def __call__(
        self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        if not torch.compiler.is_compiling():
            return None
        hidden = args[0] if args else next(iter(kwargs.values()))
        return torch.ops.vsa_compile.gate(output, getattr(self.owner, NAME)(hidden))


def _gated(model: nn.Module) -> set[nn.Module]:
    """The projections that have a gate."""
    return {
        module
        for module in model.modules()
        if any(isinstance(hook, GateMarker) for hook in module._forward_hooks.values())
    }


def _owner(model: nn.Module, path: str) -> nn.Module:
    """The transformer block (an element of a ModuleList) around a projection; else its parent module."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if isinstance(model.get_submodule(".".join(parts[: end - 1])), nn.ModuleList):
            return model.get_submodule(".".join(parts[:end]))
    return model.get_submodule(".".join(parts[:-1]))


# --- Where the projections are -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Projection:
    """The linear layer that makes the queries of one sparse call; channels = H * D of these queries."""

    module: nn.Module
    weight: Tensor
    channels: int


def _zero_linear(projection: Projection) -> nn.Linear:
    weight = projection.weight
    gate = nn.Linear(weight.shape[1], projection.channels, device=weight.device, dtype=weight.dtype)
    for parameter in gate.parameters():
        nn.init.zeros_(parameter)
    return gate


_seen: list[tuple[Analysis, tuple]] = []
_adding = Lock()


def _note(module: GraphModule, example_inputs: list[object]) -> Callable:
    """A backend that runs the graph as it is and records its analysis and its inputs. A function at module
    level, because Dynamo keys compiled code by it."""
    analysis = analyse(module)

    def run(*inputs: object) -> object:
        _seen.append((analysis, inputs))
        return module.forward(*inputs)

    return run


def _projections(
    model: nn.Module, args: tuple, kwargs: Mapping[str, object], settings: Options
) -> list[Projection]:
    with _adding:
        try:
            with compiled_by(model, partial(explaining_compile, backend=_note)) as noted:
                noted(*args, **kwargs)
            graphs = list(_seen)
        finally:
            _seen.clear()
    owners = {
        id(parameter): module for module in model.modules() for parameter in module.parameters(recurse=False)
    }
    found: dict[nn.Module, Projection] = {}
    for analysis, inputs in graphs:
        values = dict(zip(_placeholders(analysis.module), inputs, strict=True))
        for decision in judge(analysis, settings, guard=False):
            if isinstance(decision, Conversion):
                projection = _projection(analysis, decision, values, owners)
                if projection is not None:
                    found.setdefault(projection.module, projection)
    return list(found.values())


def _placeholders(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def _projection(
    analysis: Analysis, conversion: Conversion, values: Mapping[Node, Any], owners: Mapping[int, nn.Module]
) -> Projection | None:
    """The linear layer behind a call's queries that runs over its video tokens, if there is exactly one."""
    query = attention_arguments(conversion.call.node)["query"]
    fitting: dict[int, tuple[nn.Module, Tensor]] = {}
    for linear in nearest(analysis, query, "linear"):
        tokens = analysis.tokens(linear)
        meant = (analysis.tokens(query), conversion.video.axis)
        if tokens is None or not any(axis is not None and includes(axis, tokens) for axis in meant):
            continue
        weight: Any = linear.args[1] if len(linear.args) > 1 else linear.kwargs["weight"]
        while weight in analysis.outer:
            weight = analysis.outer[weight]
        value = values.get(weight)
        if value is not None and id(value) in owners:
            fitting[id(value)] = (owners[id(value)], value)
    # A low-rank adapter adds a narrower linear layer to the projection.
    widest = max((weight.shape[1] for _, weight in fitting.values()), default=0)
    widest_ones = [one for one in fitting.values() if one[1].shape[1] == widest]
    if len(widest_ones) != 1:
        return None
    ((module, weight),) = widest_ones
    _, heads, _, width = sizes_of(example_of(query)) or [0] * 4
    return Projection(module, weight, heads * width)
