"""What is true of the calls that were converted, found by running the graph.

A conversion claims that queries and keys [start, start + tokens) are the video's tokens in raster order, and
that it computes what the model does when every tile is kept. The first is tried with a dye: where the patches
of a set of places are changed a little, the tokens of those places have to change. Attention between the
tokens is taken out for this (a query goes through as it is), so that a token is its own place's alone; and
sines, and what values are padded with, are moved off 0, since a token that a rotary table multiplies by 0
would show nothing of its own.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from compare import assert_same_output
from torch import Tensor
from torch.fx import GraphModule, Node

import vsa_compile
from vsa_compile.analysis.graph_facts import module_path
from vsa_compile.convert.judge import Conversion, block_indices

from .captured import Captured, modules, play

SDPA = torch.nn.functional.scaled_dot_product_attention
OURS = torch.ops.vsa_compile.attention.default
SETS = 2
OFF_ZERO = 0.01


@dataclass(frozen=True)
class Claim:
    """What was believed of one call."""

    grid: tuple[int, int, int]
    q_start: int
    kv_start: int


class _Stop(Exception):
    """All that is asked for has been seen."""


def options(captured: Captured, hinted: bool) -> vsa_compile.Options:
    grid = {"grid": captured.plan.grid} if hinted else {}
    return vsa_compile.Options.read({"min_tokens": 0, "sparsity": 1e-6} | grid)


def assert_true(captured: Captured, module: GraphModule, settings: vsa_compile.Options) -> dict[str, Claim]:
    """Converts a played graph, and holds what was converted, by module path, against the truth."""
    wanted = attention_outputs(captured, module)
    decisions = vsa_compile.backend.convert(module, settings)
    believed = {
        d.name: Claim(tuple(d.grid), d.q_start, d.kv_start) for d in decisions if isinstance(d, Conversion)
    }
    if believed:
        assert_raster(captured, module, believed)
        assert_numbers(captured, module, wanted)
    return believed


def assert_raster(captured: Captured, module: GraphModule, believed: dict[str, Claim]) -> None:
    """Queries and keys of every converted call are the video's tokens in raster order.

    Where the model takes bare tokens, the video is what their rotary positions say, or else what the model
    makes of them in the end.
    """
    plan = captured.plan
    for name, claim in believed.items():
        assert claim.grid == plan.grid, f"{name}: {claim} of a video {plan.grid}"
    bare = plan.patch == "tokens"
    unclear = set(believed) if bare and not _keeps_places(captured, module) else set()
    clean = _queries_and_keys(captured, module, believed, captured.inputs[captured.latents])
    for places in _sets(plan.tokens):
        changed = _changed(captured, module, believed, clean, places)
        rest = _changed(captured, module, believed, clean, ~places)
        for name in believed:
            (q, k), (q_rest, _) = changed[name], rest[name]
            if bare:
                _assert_places(name, "a key that is not its query's", ~k & q & ~q_rest)
                unclear |= {name} if (places & ~q).any() else set()
            else:
                _assert_places(name, "a query of another place", places & ~q)
                _assert_places(name, "a key of another place", places & ~k)
    unclear -= _turned_by_their_places(captured, module, believed, clean) if unclear else set()
    for name in sorted(unclear):
        _assert_output_order(captured, module, believed[name], name)


def _assert_places(name: str, what: str, wrong: Tensor) -> None:
    assert not wrong.any(), f"{name}: {what}, (batch, token) {wrong.nonzero()[0].tolist()}"


def _changed(
    captured: Captured,
    module: GraphModule,
    believed: dict[str, Claim],
    clean: dict[str, tuple[Tensor, Tensor]],
    places: Tensor,
) -> dict[str, list[Tensor]]:
    """(B, tokens) of queries and of keys: which ones change with the patches of these places."""
    dyed = _queries_and_keys(captured, module, believed, _dyed(captured, places))
    return _differing(captured, believed, clean, dyed)


def _differing(
    captured: Captured,
    believed: dict[str, Claim],
    clean: dict[str, tuple[Tensor, Tensor]],
    dyed: dict[str, tuple[Tensor, Tensor]],
) -> dict[str, list[Tensor]]:
    """(B, tokens) of queries and of keys: which ones are not the same."""
    found: dict[str, list[Tensor]] = {}
    for name, claim in believed.items():
        for start, before, after in zip(
            (claim.q_start, claim.kv_start), clean[name], dyed[name], strict=True
        ):
            assert before.shape[0] == captured.plan.batch, f"{name}: its batch is {before.shape[0]}"
            differs = (before != after).any(3).any(1)[:, start : start + captured.plan.tokens]
            found.setdefault(name, []).append(differs)
    return found


def _turned_by_their_places(
    captured: Captured,
    module: GraphModule,
    believed: dict[str, Claim],
    clean: dict[str, tuple[Tensor, Tensor]],
) -> set[str]:
    """The calls whose queries and keys at every place are rotated by its frame, row and column."""
    turned, latents = set(believed), captured.inputs[captured.latents]
    places = torch.arange(captured.plan.tokens).unflatten(0, captured.plan.grid)
    for axis, size in enumerate(captured.plan.grid):
        some = torch.arange(size) % 2 == 0
        wanted = torch.zeros(captured.plan.tokens, dtype=torch.bool)
        wanted[places.movedim(axis, 0)[some].flatten()] = True
        dyed = _queries_and_keys(captured, module, believed, latents, (axis, 0.3 * some))
        for name, (q, k) in _differing(captured, believed, clean, dyed).items():
            if not ((q == wanted).all() and (k == wanted).all()):
                turned.discard(name)
    return turned


def _keeps_places(captured: Captured, module: GraphModule) -> bool:
    """Whether the patches of some tokens are those of the same places in the output, without attention.

    As everywhere, what was added to them from other places does not count.
    """

    def nothing(node: Node, args: tuple, kwargs: dict) -> Tensor:
        return torch.zeros_like(_passed(captured, node, args, kwargs))

    wanted = _output(captured, module, nothing, captured.inputs[captured.latents])
    return not any(
        (dyed & ~_cells(_output(captured, module, nothing, _dyed(captured, dyed)), wanted)).any()
        for places in _sets(captured.plan.tokens)
        for dyed in (places, ~places)
    )


def _assert_output_order(captured: Captured, module: GraphModule, claim: Claim, name: str) -> None:
    """What a call gives its tokens reaches the patches of their places in the model's output."""

    def dyed(half: Tensor) -> Callable[[Node, tuple, dict], Tensor]:
        def attention(node: Node, args: tuple, kwargs: dict) -> Tensor:
            out = _passed(captured, node, args, kwargs)
            if module_path(node) == name:
                out[:, :, claim.q_start : claim.q_start + captured.plan.tokens] += 0.1 * half[:, None]
            return out

        return attention

    wanted = _output(captured, module, partial(_passed, captured))
    for places in _sets(captured.plan.tokens):
        for half in (places, ~places):
            got = _output(captured, module, dyed(half))
            _assert_places(name, "an output of another place", half & ~_cells(got, wanted))


def _output(
    captured: Captured,
    module: GraphModule,
    attention: Callable[[Node, tuple, dict], Tensor],
    latents: Tensor | None = None,
) -> Tensor:
    """The model's output with something else for attention."""

    def run(node: Node, args: tuple, kwargs: dict) -> Any:
        return attention(node, args, kwargs) if node.target in (SDPA, OURS) else NotImplemented

    with torch.no_grad():
        return play(module, captured.fresh_inputs(latents), run, note=False)[0]


def _cells(got: Tensor, wanted: Tensor) -> Tensor:
    """(B, tokens): whose patches, of 2 x 2 pixels, differ in two videos."""
    cells = (got != wanted).any(1).unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).any(-1).any(-2)
    return cells.flatten(1)


def _sets(tokens: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(SETS):
        yield torch.rand(tokens, generator=generator) < 0.5


def _dyed(captured: Captured, places: Tensor) -> Tensor:
    """The latents with the patches of these places changed a little."""
    plan, latents = captured.plan, captured.inputs[captured.latents]
    noise = 1e-2 * (1 + torch.rand(latents.shape, generator=torch.Generator().manual_seed(1)))
    if plan.patch == "tokens":
        return latents + noise * places[None, :, None]
    volume = places.view(1, 1, *plan.grid)
    for axis, size in enumerate(latents.shape[2:], 2):
        volume = volume.repeat_interleave(size // volume.shape[axis], axis)
    return latents + noise * volume


def _queries_and_keys(
    captured: Captured,
    module: GraphModule,
    believed: dict[str, Claim],
    latents: Tensor,
    moved: tuple[int, Tensor] | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """`moved`: an axis of the grid, and by how much rotary positions along it are others."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    axes = itertools.cycle(range(3))

    def run(node: Node, args: tuple, kwargs: dict) -> Any:
        if moved and node.target is torch.arange and kwargs.get("dtype") == torch.float32:
            positions = torch.arange(*args, **kwargs)  # of frames, rows and columns (random_models/rope.py)
            return positions + moved[1] if next(axes) == moved[0] else positions
        if node.target in (torch.sin, "sin"):
            return args[0].sin() + OFF_ZERO
        if node.target is torch.nn.functional.pad and len(args) == 2 and not kwargs:
            whole = not (args[0].is_floating_point() or args[0].is_complex())
            return NotImplemented if whole else torch.nn.functional.pad(*args, value=OFF_ZERO)
        if node.target not in (SDPA, OURS):
            return NotImplemented
        if module_path(node) in believed:
            q, k = (_argument(node, args, kwargs, i) for i in range(2))
            seen[module_path(node)] = q.clone(), k.clone()
        if len(seen) == len(believed):
            raise _Stop
        return _passed(captured, node, args, kwargs)

    try:
        with torch.no_grad():
            play(module, captured.fresh_inputs(latents), run, note=False)
    except _Stop:
        pass
    assert seen.keys() == believed.keys(), "what is converted is no attention call"
    return seen


def _passed(captured: Captured, node: Node, args: tuple, kwargs: dict) -> Tensor:
    """A stand-in for attention: every query goes through as it is; for that between channels, every value,
    since there the values' columns are the tokens."""
    q, _, v = (_argument(node, args, kwargs, i) for i in range(3))
    block = next(iter(block_indices(module_path(node))), None)
    if block is not None and captured.plan.blocks[block].kind == "channels" and q.shape == v.shape:
        return v.clone()
    return q.clone() if q.shape[-1] == v.shape[-1] else q.new_zeros(*q.shape[:-1], v.shape[-1])


def _argument(node: Node, args: tuple, kwargs: dict, position: int) -> Any:
    return args[position] if position < len(args) else kwargs[("query", "key", "value")[position]]


def assert_numbers(captured: Captured, module: GraphModule, wanted: dict[str, list[Tensor]]) -> None:
    """Every attention call of a converted graph gives what it gave: every tile is kept."""
    for part in modules(module):
        part.graph.lint()
    got = attention_outputs(captured, module)
    assert got.keys() == wanted.keys()
    for name, values in got.items():
        for value, right in zip(values, wanted[name], strict=True):
            assert_same_output(value, right)


def attention_outputs(captured: Captured, module: GraphModule) -> dict[str, list[Tensor]]:
    seen: dict[str, list[Tensor]] = {}

    def run(node: Node, args: tuple, kwargs: dict) -> Any:
        if node.target not in (SDPA, OURS):
            return NotImplemented
        torch.manual_seed(0)
        value = node.target(*args, **kwargs)
        seen.setdefault(module_path(node), []).append(value.clone())
        return value

    with torch.no_grad():
        play(module, captured.fresh_inputs(), run, note=False)
    return seen


def reads_blank_memory(captured: Captured, module: GraphModule) -> bool:
    """Whether what attention gives depends on memory that nobody wrote to: then it is nothing to judge by."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    wanted = attention_outputs(captured, module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(
            True, warn_only=True
        )  # torch.empty gives NaN, True and large numbers
        try:
            got = attention_outputs(captured, module)
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    pairs = ((a, b) for name in wanted for a, b in zip(got[name], wanted[name], strict=True))
    return not all(a.isfinite().all() and torch.equal(a, b) for a, b in pairs)


def sdpa_calls(module: GraphModule) -> list[Node]:
    return [node for part in modules(module) for node in part.graph.nodes if node.target is SDPA]
