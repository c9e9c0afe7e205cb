"""Cases for hypothesis: a captured graph and edits of it, each drawn as a kind, a place and a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from random_models import Plan
from torch import Tensor
from torch.fx import GraphModule, Proxy

from . import impostors, keeping, masks, overwrite, reorder  # noqa: F401  (they fill reorder.EDITS)
from .captured import Captured, capture, modules, play
from .sketch import Spot, draw_on, pick, tensors
from .truth import SDPA, reads_blank_memory, sdpa_calls

CHANGING = (*reorder.EDITS, *masks.EDITS, "new mask", "disguise", "foreign attention", "swapped", "mingled")
KEEPING = (*keeping.EDITS, "respelled")
# What a graph shows to be another order. What it only does not understand, a hint may speak of.
SHOWN = (
    "indexed", "index_selected", "gathered", "taken_along", "rolled", "flipped", "sorted_by_value",
    "argsorted", "cut_and_swapped", "split_and_swapped", "grid_transposed", "frames_turned", "in_boxes",
    "stacked_backwards", "filled_by_position",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One edit: what, where among the places that it may be made at, and a seed for the rest."""

    kind: str
    place: int
    seed: int

    def draw(self, captured: Captured, module: GraphModule) -> bool:
        """Makes the edit and plays the graph again; False where there is no place for it.

        Every second edit of a mask is one of a new mask.
        """
        if self.kind in masks.EDITS and self.seed % 2:
            Change("new mask", self.place, self.seed).draw(captured, module)
        if not _draw(self, captured, module):
            return False
        with torch.no_grad():
            play(module, captured.fresh_inputs())
        return True


@dataclass(frozen=True)
class Case:
    plan: Plan
    changes: tuple[Change, ...]
    hinted: bool = False

    def sketch(self) -> tuple[Captured, GraphModule] | None:
        """The edited graph; None where an edit has no place, or what it makes does not run or reads
        memory that nobody wrote to."""
        captured = capture(self.plan)
        module = captured.copy()
        try:
            with torch.no_grad():
                play(module, captured.fresh_inputs())
            if not all(change.draw(captured, module) for change in self.changes):
                return None
            if reads_blank_memory(captured, module):
                return None
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError, UserWarning):
            return None
        return captured, module


def cases(plans: tuple[Plan, ...], kinds: tuple[str, ...], most: int = 3) -> st.SearchStrategy[Case]:
    return st.builds(
        Case, st.sampled_from(plans), st.lists(_changes(kinds), min_size=1, max_size=most).map(tuple)
    )


def hinted_cases(plans: tuple[Plan, ...]) -> st.SearchStrategy[Case]:
    """One edit whose meaning the graph shows, of tokens whose order it knows, or none."""
    known = tuple(plan for plan in plans if plan.patch != "tokens")
    changes = st.lists(_changes(SHOWN), max_size=1).map(tuple)
    return st.builds(Case, st.sampled_from(known), changes, st.just(True))


def _changes(kinds: tuple[str, ...]) -> st.SearchStrategy[Change]:
    number = st.integers(0, 2**16 - 1)
    return st.builds(Change, st.sampled_from(kinds), number, number)


def _draw(change: Change, captured: Captured, module: GraphModule) -> bool:
    plan = captured.plan
    chance = random.Random(change.seed)
    if change.kind == "new mask":
        return _new_mask(change, plan, module, chance)
    if change.kind == "foreign attention":
        calls = sdpa_calls(module)
        impostors.foreign_attention(pick(calls, change.place)) if calls else None
        return bool(calls)
    if change.kind == "swapped":
        return _swapped(change, module, chance)
    if change.kind == "respelled":
        nodes = [
            n
            for part in modules(module)
            for n in part.graph.nodes
            if n.op in ("call_function", "call_method")
        ]
        return any(keeping.respell(pick(nodes, change.place + i)) for i in range(min(len(nodes), 20)))
    masking = change.kind in masks.EDITS
    found = tensors(module, _may_be_mask if masking else lambda x: _dims(x, plan) != [])
    found = [(part, n) for part, n in found if part is not module or n.name not in captured.before]
    if not found:
        return False
    owner, node = pick(found, change.place)
    value = node.meta["example_value"]
    dims = _dims(value, plan) or [max(range(value.dim()), key=lambda d: value.shape[d])]
    spot = Spot(owner, node, chance.choice(dims), plan, chance)
    if change.kind == "disguise":
        if node.op not in ("call_function", "call_method") or node.target is SDPA:
            return False
        impostors.disguise(node, spot.dim)
        return True
    if change.kind == "mingled":
        return _mingled(spot, found)
    edits = masks.EDITS if masking else keeping.EDITS if change.kind in keeping.EDITS else reorder.EDITS
    if spot.size < 2:
        return False
    draw_on(spot, edits[change.kind])
    return True


def _may_be_mask(x: Tensor) -> bool:
    return not x.dtype.is_floating_point and not x.dtype.is_complex and x.dim() > 0 and x.numel() > 1


def _dims(x: Tensor, plan: Plan) -> list[int]:
    """Dimensions of the video's tokens, or of the axes of their grid."""
    tokens = [d for d, size in enumerate(x.shape) if size == plan.tokens]
    if tokens:
        return tokens
    longer = [d for d, size in enumerate(x.shape) if plan.tokens < size <= plan.tokens + plan.text + 2]
    if longer:
        return longer
    shape = tuple(x.shape)
    grids = [d for d in range(x.dim() - 2) if shape[d : d + 3] == plan.grid]
    return [d + i for d in grids for i in range(3) if shape[d + i] > 1]


def _new_mask(change: Change, plan: Plan, module: GraphModule, chance: random.Random) -> bool:
    """A mask for a call that has none or another."""
    calls = [(part, n) for part in modules(module) for n in part.graph.nodes if n.target is SDPA]
    if not calls:
        return False
    owner, node = pick(calls, change.place)
    names = ("query", "key", "value", "attn_mask")
    named = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    q, k = named["query"], named["key"]
    keys = k.meta["example_value"].shape[2]
    others = keys - plan.tokens
    if others < 0 or q.meta["example_value"].shape[0] != plan.batch:
        return False
    spot = Spot(owner, q, 2, plan, chance)
    before = chance.choice((0, others))
    with owner.graph.inserting_before(node):
        laid = masks.Keys(spot, plan.batch, before, plan.tokens, others - before)
        mask = masks.widened(masks.FLAT[chance.choice(list(masks.FLAT))](spot.proxy(q), laid), spot)
    assert isinstance(mask, Proxy)
    if len(node.args) > 3:
        node.args = (*node.args[:3], mask.node, *node.args[4:])
    else:
        node.kwargs = {**node.kwargs, "attn_mask": mask.node}
    return True


def _swapped(change: Change, module: GraphModule, chance: random.Random) -> bool:
    """Keys (or queries, or values) of another place in the graph, of the same shape."""
    calls = [(part, n) for part in modules(module) for n in part.graph.nodes if n.target is SDPA]
    if not calls:
        return False
    owner, node = pick(calls, change.place)
    parts = [n for n in node.all_input_nodes if isinstance(n.meta.get("example_value"), Tensor)]
    old = chance.choice(parts[:3])
    shape = old.meta["example_value"].shape
    before = []
    for other in owner.graph.nodes:
        if other is node:
            break
        value = other.meta.get("example_value")
        if (
            isinstance(value, Tensor)
            and value.shape == shape
            and value.dtype == old.meta["example_value"].dtype
        ):
            before.append(other)
    new = chance.choice(before)
    if new is old:
        return False
    node.replace_input_with(old, new)
    return True


def _mingled(spot: Spot, found: list[tuple[GraphModule, torch.fx.Node]]) -> bool:
    """Two values of one shape meet: in a loss that is not used, in a shared table, or in a sum."""
    others = [
        n for part, n in found
        if part is spot.owner and n is not spot.node and n.meta["example_value"].shape == spot.shape
    ]  # fmt: skip
    if not others:
        return False
    other = spot.random.choice(others)
    nodes = list(spot.owner.graph.nodes)
    later = max((spot.node, other), key=nodes.index)
    if later.op == "placeholder":
        later = [n for n in nodes if n.op == "placeholder"][-1]
    old = set(nodes)
    with spot.owner.graph.inserting_before(later.next):
        a, b = spot.proxy(spot.node), spot.proxy(other)
        way = spot.random.randrange(5)
        if way == 0:
            made = a + 0 * (a - b).mean()
        elif way == 1:
            made = a * (spot.call(torch.nn.functional.mse_loss, a, b) >= 0)  # of a value and itself it is 0
        elif way == 2:
            table = (
                spot.call(torch.ones, spot.shape[-2:])[None]
                if len(spot.shape) > 1
                else spot.call(torch.ones, 1)
            )
            made, _ = a + table, b + table
            for user in [
                user for user in other.users if user in old and nodes.index(user) > nodes.index(later)
            ]:
                user.replace_input_with(other, _.node)
        elif way == 3:
            made = spot.call(torch.where, a == b, a, a)
        else:
            made = spot.call(torch.stack, [a, b])[0]
    for user in [u for u in spot.node.users if u in old and nodes.index(u) > nodes.index(later)]:
        user.replace_input_with(spot.node, made.node)
    return True
