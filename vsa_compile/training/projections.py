"""Where gates go: the layers that make the queries of a model's sparse attention calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from threading import Lock

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from ..analysis import Analysis, analyse
from ..analysis.algebra import includes
from ..analysis.backward_slice import nearest
from ..analysis.graph_facts import argument, example_of, sizes_of
from ..convert.judge import Conversion, attention_arguments, judge
from ..options import Options
from ..torch_compat import compiled_by, explaining_compile
from .texts import no_projection, projection_not_called


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

    Runs one dense forward.
    """
    modules = {id(module): module for module in model.modules()}
    found: dict[nn.Module, Projection] = {}
    without: list[str] = []
    for analysis in _graphs(model, args, kwargs):
        for decision in judge(analysis, settings, guard=False):
            if isinstance(decision, Conversion):
                projection = _projection(analysis, decision, modules)
                if isinstance(projection, str):
                    without.append(f"{decision.name or 'a call'}: {projection}")
                else:
                    found.setdefault(projection.module, projection)
    return list(found.values()), list(dict.fromkeys(without))


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
