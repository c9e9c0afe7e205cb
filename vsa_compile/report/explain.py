"""What was done to a model and why: the rows behind explain(), the log and the counters."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from .. import methods
from ..analysis import Analysis, Segment, analyse
from ..analysis.algebra import Size
from ..analysis.graph_facts import example_of, sizes_of
from ..convert.judge import Refusal, Site, attention_arguments, judge
from ..convert.refusals import not_captured
from ..grid import Grid, TileGrid, kept_tiles
from ..ops.flops import attended_pairs
from ..options import Options
from ..runtime import state
from ..torch_compat import compiled_by, explaining_compile, shape_environment, size_hint


@dataclass(frozen=True)
class SiteReport:
    """One attention call. Sizes are those of the example inputs, in tokens and tiles.

    name: module path. converted: whether it is made sparse. reason: why not, else ""; slug: its short name.
    grid: (frames, rows, cols) of its video tokens, or None. segments: the query tokens, in order.
    tokens: of the query. kept_tiles of total_tiles: what each query tile keeps; 0 of 0 if refused.
    flops_dense, flops_sparse: of the attention itself, forward (4 B H D per query-key pair).
    """

    name: str
    converted: bool
    reason: str
    slug: str
    grid: tuple[int, int, int] | None
    segments: tuple[str, ...]
    tokens: int
    kept_tiles: int
    total_tiles: int
    flops_dense: int
    flops_sparse: int


@dataclass(frozen=True)
class Report:
    """What `explain` found. `print(report)` is a table; `.to_json()` the same for programs."""

    sites: tuple[SiteReport, ...]
    options: Options

    @property
    def converted(self) -> int:
        return sum(site.converted for site in self.sites)

    @property
    def flops_dense(self) -> int:
        return sum(site.flops_dense for site in self.sites)

    @property
    def flops_sparse(self) -> int:
        return sum(site.flops_sparse for site in self.sites)

    def to_json(self) -> str:
        """One object, whose names only ever grow:

        "options": the fields of `Options`;
        "totals": {"converted", "refused", "flops_dense", "flops_sparse"}, integers;
        "sites": one object for each attention call, in order, with the fields of `SiteReport`.
        """
        totals = {
            "converted": self.converted,
            "refused": len(self.sites) - self.converted,
            "flops_dense": self.flops_dense,
            "flops_sparse": self.flops_sparse,
        }
        options = asdict(self.options) | {"inductor": dict(self.options.inductor)}
        sites = [asdict(site) for site in self.sites]
        return json.dumps({"options": options, "totals": totals, "sites": sites}, indent=2, default=str)

    def __str__(self) -> str:
        header = (
            "attention",
            "",
            "grid",
            "tokens",
            "tiles kept",
            "GFLOP dense",
            "sparse",
            "why it stays dense",
        )
        rows = [header, *map(_row, self.sites)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header) - 1)]
        lines = [
            "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([*lines, "", self._summary()])

    def _summary(self) -> str:
        if not self.sites:
            return "No attention call was seen. Is scaled_dot_product_attention inside the compiled part?"
        saved = self.flops_dense / self.flops_sparse if self.flops_sparse else 1.0
        return (
            f"{self.converted} of {len(self.sites)} attention calls sparse; attention FLOPs "
            f"{_giga(self.flops_dense)} -> {_giga(self.flops_sparse)} GFLOP ({saved:.1f}x less)."
        )


def _giga(flops: int) -> str:
    giga = flops / 1e9
    return f"{giga:,.0f}" if giga >= 100 else f"{giga:.3g}"


def _row(site: SiteReport) -> tuple[str, ...]:
    return (
        site.name or "(no module path)",
        "sparse" if site.converted else "dense",
        str(Grid(*site.grid)) if site.grid else "",
        f"{site.tokens:,}",
        f"{site.kept_tiles} of {site.total_tiles}" if site.converted else "",
        _giga(site.flops_dense),
        _giga(site.flops_sparse),
        site.reason,
    )


def site_report(decision: Site | Refusal, options: Options) -> SiteReport:
    """One decision with its numbers on the example inputs. To be asked before the graph is rewritten."""
    environment = shape_environment(decision.call.owner)

    def hint(size: Size) -> int:
        return size_hint(size, environment)

    arguments = attention_arguments(decision.call.node)
    queries, keys = (
        [hint(s) for s in sizes_of(example_of(arguments.get(n))) or [1]] for n in ("query", "key")
    )
    q_tokens, kv_tokens, per_pair = _amounts(queries, keys)
    dense = per_pair * q_tokens * kv_tokens
    grid, kept, total, sparse = None, 0, 0, dense
    if isinstance(decision, Site):
        grid = Grid(*map(hint, decision.grid))
        total = TileGrid(grid, options.tile).tiles
        kept = kept_tiles(total, state.sparsity_now(options))
        sparse = per_pair * attended_pairs(q_tokens, kv_tokens, grid, options.tile, kept)
    return SiteReport(
        name=decision.name,
        converted=isinstance(decision, Site),
        reason=decision.reason.text if isinstance(decision, Refusal) else "",
        slug=decision.reason.slug if isinstance(decision, Refusal) else "",
        grid=tuple(grid) if grid else None,
        segments=tuple(_segment_text(segment, hint) for segment in decision.segments),
        tokens=q_tokens,
        kept_tiles=kept,
        total_tiles=total,
        flops_dense=dense,
        flops_sparse=sparse,
    )


def _amounts(queries: Sequence[int], keys: Sequence[int]) -> tuple[int, int, int]:
    """Query tokens, key tokens, and the FLOPs of one query-key pair over all batches and heads."""
    batch, heads, q_tokens, width = [1, 1, 1, *queries][-4:]
    return q_tokens, [1, *keys][-2], 4 * batch * heads * width


def _segment_text(segment: Segment, hint: Callable[[Size], int]) -> str:
    if segment.grid:
        return f"video {Grid(*map(hint, segment.grid))}"
    return f"other {hint(segment.size)}"


def describe(decision: Site | Refusal) -> str:
    """One line for the log."""
    segments = " | ".join(map(str, decision.segments))
    name = decision.name or decision.call.node.name
    if isinstance(decision, Site):
        return f"{name}: sparse, [{segments}]"
    return f"{name}: dense, [{segments}], {decision.reason.slug}: {decision.reason.text}"


@dataclass(frozen=True, eq=False)
class _Run:
    """A graph that ran while a model was explained.

    modules: those whose methods were on the call stack, innermost first. parameters: ids of those that it
    was given. broken: whether Dynamo broke the graph off before the end of its function. hint, why: what
    the process knew of its grid.
    """

    analysis: Analysis
    modules: list[torch.nn.Module]
    parameters: set[int]
    broken: bool
    hint: tuple[int, int, int] | None
    why: str


_found: list[_Run] = []
_explaining = Lock()


def _collect(module: GraphModule, example_inputs: list[Any]) -> Callable:
    """A backend that runs the graph as it is, dense and eager, and notes its analysis at every run.

    One object at module level: Dynamo keys compiled code by it, so repeated explains share code.
    """
    analysis = analyse(module)
    end = getattr(module, "compile_subgraph_reason", None)
    broken = getattr(end, "graph_break", True)

    def run(*args: Any) -> Any:
        parameters = {id(x) for x in args if isinstance(x, torch.nn.Parameter)}
        now = state.state
        _found.append(_Run(analysis, _modules_on_stack(), parameters, broken, now.grid, now.why))
        return module.forward(*args)

    return run


def explain(
    model: torch.nn.Module | Callable, *args: Any, options: Mapping[str, Any] | None = None, **kwargs: Any
) -> Report:
    """What `torch.compile(model, backend="vsa", options=options)` does to every attention call, and why.

    Runs one dense forward with the given inputs, and a second without Dynamo where Dynamo does not take the
    model as one graph: that one finds the calls that are in no graph. `model` may be compiled already, and
    stays so; where its blocks are (compile_repeated_blocks), their graphs are explained.
    Raises OptionError for bad options.
    """
    settings = state.hinted(Options.read(options))
    methods.get(settings.method)
    with _explaining:
        try:
            with compiled_by(model, partial(explaining_compile, backend=_collect)) as explained:
                explained(*args, **kwargs)
                runs = list(_found)
                owner = getattr(model, "_orig_mod", model)
                owner = getattr(owner, "__self__", owner)
                whole = len(runs) == 1 and _is_whole(runs[0], owner)
                census = None if whole else _Census(owner)
                if census is not None:
                    with census, torch.compiler.set_stance("force_eager"):
                        explained(*args, **kwargs)
        finally:
            _found.clear()
    rows = [(run, row) for run in runs for row in _rows(run, settings, census.names if census else {})]
    sites = _with_uncaptured(rows, census) if census else [row for _, row in rows]
    return Report(tuple(sites), settings)


def _is_whole(run: _Run, model: Any) -> bool:
    """Whether the graph is all of the model: not broken off, and entered from nothing but the model."""
    return not run.broken and all(getattr(m, "_orig_mod", m) is model for m in run.modules)


def _rows(run: _Run, settings: Options, names: Mapping[int, str]) -> list[SiteReport]:
    """The rows of one graph. `names` are the paths of modules by id; the graph's begin at its own module."""
    owner = next((names[id(m)] for m in run.modules if id(m) in names), "")
    if run.hint is not None:
        settings = replace(settings, grid=Grid(*run.hint))
    decisions = judge(run.analysis, settings, guard=False, why=run.why)
    rows = [site_report(decision, settings) for decision in decisions]
    return [replace(row, name=".".join(filter(None, (owner, row.name)))) for row in rows]


def _modules_on_stack() -> list[torch.nn.Module]:
    """The modules whose methods are being called, innermost first."""
    frame, modules = sys._getframe(1), []
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module):
            modules.append(owner)
        frame = frame.f_back
    return modules


class _Census(TorchFunctionMode):
    """While entered, notes every attention call that is run, as a row that says Dynamo did not capture it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.modules = dict(model.named_modules()) if isinstance(model, torch.nn.Module) else {}
        self.names = {id(module): name for name, module in self.modules.items()}
        self.calls: list[SiteReport] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._note(*(args[i] if i < len(args) else kwargs[n] for i, n in enumerate(("query", "key"))))
        return func(*args, **kwargs)

    def _note(self, query: torch.Tensor, key: torch.Tensor) -> None:
        tokens, kv_tokens, per_pair = _amounts(query.shape, key.shape)
        name = next((self.names[id(m)] for m in _modules_on_stack() if id(m) in self.names), "")
        flops, reason = per_pair * tokens * kv_tokens, not_captured()
        row = SiteReport(name, False, reason.text, reason.slug, None, (), tokens, 0, 0, flops, flops)
        self.calls.append(row)

    def fits(self, call: SiteReport, run: _Run, site: SiteReport) -> int:
        """How surely a row of a graph is this call: 3 by its path, 2 by parameters of the module, 0 not."""
        if (site.tokens, site.flops_dense) != (call.tokens, call.flops_dense):
            return 0
        if site.name == call.name:
            return 3
        shorter, longer = sorted((site.name, call.name), key=len)
        if shorter and not longer.endswith(f".{shorter}"):
            return 0
        module = self.modules.get(call.name)
        return 2 if module and any(id(p) in run.parameters for p in module.parameters()) else 1


def _with_uncaptured(rows: list[tuple[_Run, SiteReport]], census: _Census) -> list[SiteReport]:
    """The calls in the order in which they ran: as the graphs show them, else as they are.

    A graph that begins in mid-function knows the end of a module's path alone, so the surest go first.
    """
    left, merged = list(rows), list(census.calls)
    for sure in (3, 2, 1):
        for i, call in enumerate(census.calls):
            found = next((row for row in left if merged[i] is call and census.fits(call, *row) == sure), None)
            if found is not None:
                left.remove(found)
                merged[i] = replace(found[1], name=max(call.name, found[1].name, key=len))
    return merged + [site for _, site in left]
