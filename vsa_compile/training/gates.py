"""`add_gates(model)`: a trainable gate for the coarse output of every sparse attention call.

The gate of VSA (arXiv 2505.13389, section 2.2) is a linear layer on the hidden states that the query
projection gets. It is named as in FastVideo, and starts at zero, so that the model's output does not change.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, bad_value
from ..options import Options
from ..runtime import state
from .loading import NAME, GateLoader, UnclaimedGates, load_hooks
from .projections import Projection, find_projections, hidden_states
from .texts import gates_left_out, no_gate_site
from .untrained import expect_training

Model = TypeVar("Model", bound=nn.Module)


def add_gates(
    model: nn.Module, *args: Any, options: Mapping[str, object] | None = None, **kwargs: Any
) -> list[nn.Parameter]:
    """Give every sparse self-attention call of `model` a gate; returns the new parameters.

        parameters = vsa_compile.add_gates(model, **inputs)
        optimizer = torch.optim.AdamW(model.parameters())

    Runs one dense forward with the given inputs to find the calls, and another if a projection is no
    torch.nn.Linear, to see what it takes and returns; `options` are those of the backend. A gate
    (VSA, arXiv 2505.13389, section 2.2) is a linear layer (C -> H * D, zero weight and bias) named
    `to_gate_compress`, on the transformer block, on the attention module if a block has two, or on the query
    projection if these are an nn.Sequential, which would run it. It affects only what
    `torch.compile(model, backend="vsa")` computes: gate(hidden states) * coarse output is added.
    Gates are part of `state_dict()`; from a checkpoint without them they load as zero. Existing gates are
    kept, and missing ones added; a projection that took the place of one with a gate gets this gate, with
    what it has learned. Compiled code is compiled again. Warns of sparse calls that can be given no gate.
    Raises OptionError for bad options, ArgumentError if `model` is no module, or if no call of it can be
    given a gate.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(bad_value("model", type(model).__name__, "a torch.nn.Module"))
    settings = replace(state.wanted(Options.read(options)).options, min_tokens=0)
    found, without = find_projections(model, args, kwargs, settings)
    if not found:
        raise ArgumentError(no_gate_site(without))
    if without:
        warnings.warn(gates_left_out(without), stacklevel=2)
    paths = {module: name for name, module in model.named_modules()}
    added: list[nn.Parameter] = []
    for projection in found:
        if not _is_gated(model, projection.module):
            added += _attach(model, paths[projection.module], projection)
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
        for hook in _unmark(module):
            _drop(hook.owner)
        _drop(module)  # whose projection may have been replaced, marker and all
        for key, hook in load_hooks(module).items():
            if isinstance(hook, UnclaimedGates):
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

    def __call__(self, module: nn.Module, args: tuple, *rest: Any) -> Tensor | None:
        """rest: the keyword arguments and the output; the output alone where somebody registered the hook
        anew without with_kwargs, as torch.ao.quantization does. A layer that is called by keyword then shows
        no input, and has no gate."""
        if not torch.compiler.is_compiling():
            return None
        *named, output = rest
        given = [*args, *(value for kwargs in named for value in kwargs.values())]
        gate = getattr(self.owner, NAME)
        hidden = hidden_states(given, output, gate.in_features)
        return None if hidden is None else torch.ops.vsa_compile.gate(output, gate(hidden))


# --- What is attached to a model -----------------------------------------------------------------


def _attach(model: nn.Module, path: str, projection: Projection) -> list[nn.Parameter]:
    """Give the projection at `path` a gate; returns its parameters if they are new."""
    module = projection.module
    _unmark(module)  # what is left on a copy of a projection marks with a copy of the gate
    owner, again = _place(model, path)
    gate = projection.zero_linear()
    before = getattr(owner, NAME, None) if again else None
    if isinstance(before, nn.Linear) and _alike(before.weight, gate.weight):
        gate = before.to(gate.weight.device, gate.weight.dtype)
    _drop(owner)
    setattr(owner, NAME, gate)
    inside = next(name for name, part in owner.named_modules() if part is module)
    owner.register_load_state_dict_pre_hook(GateLoader(inside))
    module.register_forward_hook(GateMarker(owner), with_kwargs=True)
    if gate is before:
        return []
    expect_training([*gate.parameters()], [*module.parameters()])
    return [*gate.parameters()]


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.is_meta == b.is_meta


# These run, or count, everything that they hold.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _place(model: nn.Module, path: str) -> tuple[nn.Module, bool]:
    """The owner of a new gate for the projection at `path`, and whether it has the gate of the projection
    that was there before.

    Such a gate is an orphan: its marker went with the replaced projection, its loader stayed.
    """
    projection, parent = model.get_submodule(path), model.get_submodule(path.rpartition(".")[0])
    owners = [_block(model, path), parent, projection]
    owners = [owner for owner in owners if not isinstance(owner, _CONTAINERS)]
    in_use = {hook.owner for module in model.modules() for hook in _markers(module).values()}
    orphaned = [owner for owner in owners if owner not in in_use and _loader(owner) is not None]
    for owner in orphaned:
        if _loads_for(owner) is projection:
            return owner, True
    free = (owner for owner in owners if owner in orphaned or not hasattr(owner, NAME))
    return next(free, projection), False


def _is_gated(model: nn.Module, projection: nn.Module) -> bool:
    """Whether a projection has a gate. One that was copied alone has a marker with a copy of the owner, while
    the model's own owner has the gate that the model holds."""
    owners = {owner for owner in model.modules() if _loads_for(owner) is projection}
    return any(not owners or hook.owner in owners for hook in _markers(projection).values())


def _markers(module: nn.Module) -> dict[int, GateMarker]:
    return {key: hook for key, hook in module._forward_hooks.items() if isinstance(hook, GateMarker)}


def _unmark(module: nn.Module) -> list[GateMarker]:
    """Remove a module's markers; returns them."""
    markers = _markers(module)
    for key in markers:
        del module._forward_hooks[key]
        module._forward_hooks_with_kwargs.pop(key, None)
    return [*markers.values()]


def _loader(owner: nn.Module) -> GateLoader | None:
    return next((hook for hook in load_hooks(owner).values() if isinstance(hook, GateLoader)), None)


def _loads_for(owner: nn.Module) -> nn.Module | None:
    """What is now at the place of the projection that a gate was made for; None if `owner` has no gate of
    ours."""
    loader, found = _loader(owner), owner
    for name in filter(None, loader.projection.split(".") if loader is not None else ()):
        found = getattr(found, name, None)
    return found if loader is not None and isinstance(found, nn.Module) else None


def _drop(owner: nn.Module) -> None:
    """Remove an owner's gate; a module that a model calls `to_gate_compress` itself stays."""
    for key, hook in load_hooks(owner).items():
        if isinstance(hook, GateLoader):
            del owner._load_state_dict_pre_hooks[key]
            if hasattr(owner, NAME):
                delattr(owner, NAME)


def _block(model: nn.Module, path: str) -> nn.Module:
    """The transformer block (an element of a ModuleList) around a projection; else its parent module."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if isinstance(model.get_submodule(".".join(parts[: end - 1])), nn.ModuleList):
            return model.get_submodule(".".join(parts[:end]))
    return model.get_submodule(".".join(parts[:-1]))
