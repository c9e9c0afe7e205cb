"""Where gates go: the layers that make the queries of a model's sparse attention calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from ..analysis import Analysis, analyse
from ..analysis.algebra import includes
from ..analysis.backward_slice import nearest
from ..analysis.graph_facts import argument, example_of, sizes_of
from ..convert.judge import Conversion, attention_arguments, judge
from ..options import Options
from ..runtime.state import now
from ..torch_compat import compiled_by, explaining_compile
from .texts import no_projection, projection_not_called, projection_not_plain


@dataclass(frozen=True, eq=False)
class Projection:
    """The layer that makes the queries of one sparse call; channels = H * D of these queries.

    weight: an example of what it multiplies the hidden states with: a parameter, or what weight_norm,
        pruning and the like compute from parameters at every call.
    """

    module: nn.Module
    weight: Tensor
    channels: int

    def zero_linear(self) -> nn.Linear:
        """A gate that changes nothing yet."""
        inputs, weight = self.weight.shape[-1], self.weight
        gate = nn.Linear(inputs, self.channels, device=weight.device, dtype=weight.dtype)
        for parameter in gate.parameters():
            nn.init.zeros_(parameter)
        return gate


def find_projections(
    model: nn.Module, args: tuple, kwargs: Mapping[str, object], settings: Options
) -> tuple[list[Projection], list[str]]:
    """The projection of every sparse call, each once; and which calls have none, with the reason.

    Runs one dense forward, and another if what a projection takes and returns has to be seen.
    """
    modules = {id(module): module for module in model.modules()}
    sites = [
        (decision.name or "a call", _projection(analysis, decision, modules))
        for analysis in _graphs(model, args, kwargs)
        for decision in judge(analysis, settings, hint=now.hint, guard=False)
        if isinstance(decision, Conversion)
    ]
    found: dict[nn.Module, Projection] = {}
    for _, site in sites:
        if isinstance(site, Projection):
            found.setdefault(site.module, site)
    misfits = _misfits(model, args, kwargs, [one for one in found.values() if not _is_plain(one.module)])
    without: list[str] = []
    for name, site in sites:
        reason = site if isinstance(site, str) else projection_not_plain() if site.module in misfits else None
        if reason is not None:
            without.append(f"{name}: {reason}")
    fitting = [projection for module, projection in found.items() if module not in misfits]
    return fitting, list(dict.fromkeys(without))


def hidden_states(given: Iterable[object], output: object, width: int) -> Tensor | None:
    """What a gate of `width` inputs multiplies, out of what a projection is called with: the only tensor with
    this width and with the tokens of the projection's output; None if there is none, or another."""
    if not isinstance(output, Tensor):
        return None
    found: list[Tensor] = []
    for value in given:
        if not isinstance(value, Tensor) or value.dim() == 0 or value.shape[-1] != width:
            continue
        if value.shape[:-1] == output.shape[:-1] and not any(value is one for one in found):
            found.append(value)
    return found[0] if len(found) == 1 else None


_seen: list[Analysis] = []
_adding = Lock()


def _note(module: GraphModule, example_inputs: list[object]) -> Callable:
    """A backend that runs the graph as it is and records its analysis. A function at module level, because
    Dynamo keys compiled code by it."""
    analysis = analyse(module)

    def run(*inputs: object) -> object:
        _seen.append(analysis)
        return module.forward(*inputs)

    return run


def _graphs(model: nn.Module, args: tuple, kwargs: Mapping[str, object]) -> list[Analysis]:
    with _adding:
        try:
            with compiled_by(model, partial(explaining_compile, backend=_note)) as noted:
                noted(*args, **kwargs)
            return list(_seen)
        finally:
            _seen.clear()


def _is_plain(module: nn.Module) -> bool:
    """Whether a layer takes one tensor and returns one, as nn.Linear does."""
    return type(module).forward is nn.Linear.forward and "forward" not in vars(module)


def _misfits(
    model: nn.Module, args: tuple, kwargs: Mapping[str, object], projections: list[Projection]
) -> set[nn.Module]:
    """The projections that are called at least once in a way that a gate cannot follow. Runs the model
    without compiling, because a graph does not show what layers take and return, only what they compute."""
    if not projections:
        return set()
    width = {projection.module: projection.weight.shape[-1] for projection in projections}
    misfits: set[nn.Module] = set()

    def see(module: nn.Module, given: tuple, named: Mapping[str, Any], output: object) -> None:
        if hidden_states([*given, *named.values()], output, width[module]) is None:
            misfits.add(module)

    hooks = [module.register_forward_hook(see, with_kwargs=True) for module in width]
    try:
        with compiled_by(model, lambda call: call) as plain:
            plain(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return misfits


def _projection(
    analysis: Analysis, conversion: Conversion, modules: Mapping[int, nn.Module]
) -> Projection | str:
    """The layer behind a call's queries that runs over its video tokens, if there is exactly one; else why a
    gate has no place."""
    query = attention_arguments(conversion.call.node)["query"]
    meant = (analysis.tokens(query), conversion.video.axis)
    weights: dict[Node, Tensor] = {}
    for linear in nearest(analysis, query, "linear"):
        tokens, weight = analysis.tokens(linear), example_of(argument(linear, 1, "weight"))
        over_video = tokens is not None and any(axis is not None and includes(axis, tokens) for axis in meant)
        if over_video and isinstance(weight, Tensor):
            weights[linear] = weight
    # A low-rank adapter adds a narrower linear layer to the projection.
    widest = max((weight.shape[-1] for weight in weights.values()), default=0)
    made = {
        _caller(linear, conversion.call.node, modules): weight
        for linear, weight in weights.items()
        if weight.shape[-1] == widest
    }
    if len(made) != 1:
        return no_projection()
    ((module, weight),) = made.items()
    if module is None:
        return projection_not_called()
    _, heads, _, width = sizes_of(example_of(query)) or [0] * 4
    return Projection(module, weight, heads * width)


def _caller(linear: Node, attention: Node, modules: Mapping[int, nn.Module]) -> nn.Module | None:
    """The module whose call made `linear`, and whose hooks see its output; None if a module did that computes
    the attention too, as by F.linear(x, self.to_q.weight) or self.to_q.forward(x).

    Asks who was called, not who owns the weight: the weight may be computed, or shared by two layers.
    """
    calls = _called(linear)
    return None if not calls or calls[-1] in _called(attention) else modules.get(calls[-1])


def _called(node: Node) -> list[int]:
    """The ids of the modules inside whose calls Dynamo made a node, innermost last."""
    keys = node.meta.get("nn_module_stack") or {}  # "id", "id@1" for the second call of a module, ...
    return [int(key) for key in (key.partition("@")[0] for key in keys) if key.isdecimal()]
