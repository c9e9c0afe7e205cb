"""Random small video transformers: exactly the true calls are converted, and the numbers stay."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from compare import assert_same_gradients, assert_same_output, output_and_gradients
from hypothesis import example, given, settings
from hypothesis import strategies as st
from random_models import Block, Plan, RandomModel, Truth, inputs, plans, truths
from torch.fx import GraphModule

import vsa_compile
from vsa_compile.analysis import analyse
from vsa_compile.analysis.graph_facts import module_path
from vsa_compile.convert.judge import Conversion, Decision, Refusal, judge
from vsa_compile.report.site_report import SiteReport, site_report

pytestmark = pytest.mark.no_cover

FEW = settings(max_examples=max(settings().max_examples // 5, 1))
FEWER = settings(max_examples=max(settings().max_examples // 10, 1))  # symbolic sizes take the longest
# Spellings behind the mends of the layout analysis: split atoms, bare tokens, a square grid.
AFTER_WINDOWS = Plan(grid=(3, 4, 6), blocks=(Block(kind="windows"), Block(kind="swin"), Block()))
FRAMES_OF_BARE_TOKENS = Plan(blocks=(Block(kind="spatial"), Block(held="frames")), patch="tokens")
CHANNELS_IN_THREE = Plan(blocks=(Block(kind="temporal", qkv="unbind"), Block()), patch="tokens")
SQUARE_GRID = Plan(grid=(5, 4, 4), blocks=(Block(held="grid"), Block(rope="folded")))

SPARSITIES = st.sampled_from((0, 1e-6))
META = ("nn_module_stack", "stack_trace")


@dataclass
class Watched:
    """What converting the graphs of one model did, and the grids that its calls then ran with."""

    reports: dict[str, SiteReport] = field(default_factory=dict)
    slugs: dict[str, str] = field(default_factory=dict)
    ran: set[tuple[str, tuple[int, ...], tuple[int, int]]] = field(default_factory=set)
    graphs: int = 0


class Watcher:
    """A backend that converts a graph, checks the graph itself, and runs it as it is: no Inductor."""

    def __init__(self, plan: Plan, sparsity: float):
        self.options = vsa_compile.Options.read({"min_tokens": plan.min_tokens, "sparsity": sparsity})
        self.watched = Watched()

    def __call__(self, module: GraphModule, example_inputs: list[Any]) -> Any:
        watched = self.watched
        watched.graphs += 1
        judged = judge(analyse(module), self.options, guard=False)
        watched.reports = {d.name: site_report(d, self.options) for d in judged}
        assert len(watched.reports) == len(judged)
        before = {d.name: dict(d.call.node.meta) for d in judged}

        decisions = vsa_compile.backend.convert(module, self.options)
        watched.slugs = {d.name: d.reason.slug for d in decisions if isinstance(d, Refusal)}
        module.graph.lint()
        self._check_nodes(decisions, before)
        self._check_second_conversion(module, decisions)
        for owner in {d.call.owner for d in decisions}:
            self._watch(owner)
        return module.forward

    def _check_nodes(self, decisions: list[Decision], before: dict[str, dict]) -> None:
        """Each site's node is ours now, and carries what the node before it did."""
        ours = {}
        for owner in {d.call.owner for d in decisions}:
            ours |= {module_path(node): node for node in _ours(owner)}
        assert ours.keys() == {d.name for d in decisions if isinstance(d, Conversion)}
        for name, node in ours.items():
            for key in META:
                assert node.meta[key] == before[name][key]
            new, old = node.meta["example_value"], before[name]["example_value"]
            assert (new.shape, new.dtype, new.device) == (old.shape, old.dtype, old.device)

    def _check_second_conversion(self, module: GraphModule, decisions: list[Decision]) -> None:
        code = module.print_readable(print_output=False)
        again = vsa_compile.backend.convert(module, self.options)
        assert not any(isinstance(d, Conversion) for d in again)
        assert module.print_readable(print_output=False) == code
        assert len(again) == sum(isinstance(d, Refusal) for d in decisions)

    def _watch(self, owner: GraphModule) -> None:
        """Note the sizes that every sparse call really runs with, symbolic ones too."""
        for node in _ours(owner):
            node.target = self._noting(module_path(node))
        owner.recompile()

    def _noting(self, name: str) -> Any:
        def attention(q, k, v, gate, grid, tile, q_start, kv_start, *rest):
            self.watched.ran.add((name, tuple(grid), (q_start, kv_start)))
            return torch.ops.vsa_compile.attention(q, k, v, gate, grid, tile, q_start, kv_start, *rest)

        return attention


def _ours(module: GraphModule) -> list[torch.fx.Node]:
    return [node for node in module.graph.nodes if node.target is torch.ops.vsa_compile.attention.default]


def converted(plan: Plan, model: RandomModel, sparsity: float, *, dynamic: bool | None = False):
    """The model with its sparse calls, and what was watched of them."""
    torch._dynamo.reset()
    watcher = Watcher(plan, sparsity)
    return torch.compile(model, backend=watcher, dynamic=dynamic, fullgraph=True), watcher.watched


def assert_true(watched: Watched, wanted: dict[str, Truth]) -> None:
    """Exactly the true calls are converted, with their runs and grids, and ran so."""
    assert watched.reports.keys() == wanted.keys()
    for name, truth in wanted.items():
        report = watched.reports[name]
        if truth.grid is None:
            assert watched.slugs.get(name) in truth.slugs, f"{name}: {report}"
            continue
        assert name not in watched.slugs, f"{name} stays dense: {watched.slugs[name]}"
        assert report.grid == truth.grid, name
        assert report.segments == tuple(map(_run, truth.runs)), name
    assert_ran(watched, wanted)


def assert_ran(watched: Watched, wanted: dict[str, Truth]) -> None:
    """The calls of the last forward were given their own grid and place."""
    assert watched.ran == {(name, t.grid, t.starts) for name, t in wanted.items() if t.grid}


def _run(length: int | tuple[int, ...]) -> str:
    return f"other {length}" if isinstance(length, int) else "video " + "x".join(map(str, length))


def seeded(model, **arguments):
    """Output and gradients with dropout of a fixed seed."""
    torch.manual_seed(0)
    return output_and_gradients(model, **arguments)


@given(plan=plans(), sparsity=SPARSITIES)
@example(plan=AFTER_WINDOWS, sparsity=1e-6)
@example(plan=FRAMES_OF_BARE_TOKENS, sparsity=1e-6)
@example(plan=CHANNELS_IN_THREE, sparsity=1e-6)
def test_exactly_the_true_calls_convert_and_numbers_and_gradients_stay(plan, sparsity):
    model, arguments = RandomModel(plan), inputs(plan)
    sparse, watched = converted(plan, model, sparsity)
    got, got_grads = seeded(sparse, **arguments)
    assert_true(watched, truths(plan))
    wanted, wanted_grads = seeded(model, **arguments)
    assert_same_output(got, wanted)
    assert_same_gradients(got_grads, wanted_grads)


def test_bare_tokens_with_symbolic_sizes_convert():
    plan = Plan(grid=(2, 2, 2), blocks=(Block(),), width=8, patch="tokens", unpatch=True)
    sparse, watched = converted(plan, RandomModel(plan), 0, dynamic=True)
    seeded(sparse, **inputs(plan))
    assert_true(watched, truths(plan))


@FEWER
@given(plan=plans(symbolic=True, depth=2), sparsity=SPARSITIES)
@example(plan=SQUARE_GRID, sparsity=1e-6)
def test_symbolic_sizes_are_judged_the_same(plan, sparsity):
    model, arguments = RandomModel(plan), inputs(plan)
    sparse, watched = converted(plan, model, sparsity, dynamic=True)
    got, got_grads = seeded(sparse, **arguments)
    assert_true(watched, truths(plan))
    wanted, wanted_grads = seeded(model, **arguments)
    assert_same_output(got, wanted)
    assert_same_gradients(got_grads, wanted_grads)


@FEW
@given(
    plan=plans(symbolic=True, depth=2),
    swap=st.sampled_from(("frames", "cols")),
    dynamic=st.sampled_from((None, True)),
)
def test_landscape_and_portrait_each_run_with_their_own_grid(plan, swap, dynamic):
    """Two grids of equal N in one compiled model."""
    frames, rows, cols = plan.grid
    other = (frames, cols, rows) if swap == "cols" else (rows, frames, cols)
    model = RandomModel(plan)
    sparse, watched = converted(plan, model, 1e-6, dynamic=dynamic)
    for grid in (plan.grid, other, plan.grid):
        watched.ran.clear()
        with torch.no_grad():
            torch.manual_seed(0)
            got = sparse(**inputs(plan, grid))
            torch.manual_seed(0)
            assert_same_output(got, model(**inputs(plan, grid)))
        assert_ran(watched, truths(plan, grid))


@FEW
@given(plan=plans(autocast=True, depth=2))
def test_autocast_adds_no_error_of_its_own(plan):
    """Error against the fp32 model: at most twice that of the eager model under autocast."""
    model, arguments = RandomModel(plan), inputs(plan)
    full = RandomModel(replace(plan, blocks=tuple(replace(block, autocast=False) for block in plan.blocks)))
    sparse, watched = converted(plan, model, 1e-6)
    got, got_grads = seeded(sparse, **arguments)
    assert_true(watched, truths(plan))
    exact, exact_grads = seeded(full, **arguments)
    rounded, rounded_grads = seeded(model, **arguments)
    assert_no_further(got, rounded, exact)
    assert_no_further(_flat(got_grads), _flat(rounded_grads), _flat(exact_grads))


def assert_no_further(got, rounded, exact) -> None:
    """`got` is as close to the exact values as a rounded computation is, within a factor of 2."""
    assert (got - exact).norm() <= 2 * (rounded - exact).norm() + 1e-4 * exact.norm()


def _flat(grads: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([grads[name].flatten() for name in sorted(grads)])


@settings(max_examples=1, derandomize=True)
@given(plan=plans(depth=1))
def test_through_inductor(plan):
    model, arguments = RandomModel(plan).eval(), inputs(plan)
    torch._dynamo.reset()
    options = {"min_tokens": plan.min_tokens, "sparsity": 1e-6}
    got, got_grads = output_and_gradients(torch.compile(model, backend="vsa", options=options), **arguments)
    wanted, wanted_grads = output_and_gradients(model, **arguments)
    assert_same_output(got, wanted)
    assert_same_gradients(got_grads, wanted_grads)
