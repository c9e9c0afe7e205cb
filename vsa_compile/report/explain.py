"""`explain(model, ...)`: runs a model once, dense, and reports what happens to each attention call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from .. import methods
from ..analysis import Analysis, analyse
from ..convert.judge import judge
from ..convert.refusals import not_captured
from ..convert.rewrite import plan
from ..errors import ArgumentError, bad_value
from ..grid import Hint
from ..options import Options
from ..runtime import state
from ..torch_compat import compiled_by, compiled_with, depends_on_data, explaining_compile
from .site_report import Report, SiteReport, amounts, site_report


@runtime_checkable
class _Optioned(Protocol):
    """A backend that knows the options it will run with, as ours does."""

    def read_options(
        self, *, options: Mapping[str, object] | Options | None = None, mode: str | None = None
    ) -> Options: ...


@dataclass(frozen=True, eq=False)
class _Run:
    """One run of a graph while a model was explained.

    modules: those whose methods were on the call stack, innermost first. parameters: the ids of parameters
    among the inputs. broken: whether Dynamo broke the graph before the end of its function. hint, why: the
    process's at the time, or the reason why there is none.
    """

    analysis: Analysis
    modules: list[torch.nn.Module]
    parameters: set[int]
    broken: bool
    hint: Hint | None
    why: str

    @property
    def by_data(self) -> bool:
        """Whether numbers of tokens depend on data; these count as 0 in a row."""
        axes = (call.tokens(name) for call in self.analysis.calls for name in ("query", "key"))
        return any(axis is not None and depends_on_data(axis.size) for axis in axes)


_found: list[_Run] = []
_explaining = Lock()


def _collect(module: GraphModule, example_inputs: list[object]) -> Callable:
    """A backend that runs the graph as it is, dense and eager, and records its analysis at every run.

    A function at module level, because Dynamo keys compiled code by it: repeated explains share code.
    """
    analysis = analyse(module)
    end = getattr(module, "compile_subgraph_reason", None)
    broken = getattr(end, "graph_break", True)

    def run(*args: Any) -> Any:
        parameters = {id(x) for x in args if isinstance(x, torch.nn.Parameter)}
        now = state.now
        _found.append(_Run(analysis, _modules_on_stack(), parameters, broken, now.hint, now.why))
        return module.forward(*args)

    return run


def explain(
    model: torch.nn.Module | Callable, *args: Any, options: Mapping[str, object] | None = None, **kwargs: Any
) -> Report:
    """What `torch.compile(model, backend="vsa", options=options)` does to every attention call, and why.

        print(vsa_compile.explain(model, **inputs, options={"sparsity": 0.9}))

    options: None means those that the model was compiled with, or the defaults.

    Runs one dense forward with the given inputs; if Dynamo breaks the model into several graphs, also one
    without Dynamo, to find the calls that are in no graph. `model` may be compiled already, and stays so;
    if its blocks are (compile_repeated_blocks), their graphs are explained. Data-dependent numbers of tokens
    (text selected by its mask) count as 0. On the "meta" device, models need no weights.
    Raises OptionError for bad options, ArgumentError if `model` cannot be called.
    """
    if not callable(model) or isinstance(model, type):
        shown = model if isinstance(model, type) else type(model).__name__
        allowed = "a torch.nn.Module, or a function, pipeline or compiled form of one"
        raise ArgumentError(bad_value("model", shown, allowed, "For example explain(model, **inputs)."))
    settings = state.wanted(_options(model, options)).options
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


def _options(model: object, options: Mapping[str, object] | None) -> Options:
    """The given options, else those that the model was compiled with."""
    compiled = compiled_with(model) if options is None else None
    if compiled is not None and isinstance(compiled[0], _Optioned):
        backend, keywords = compiled
        return backend.read_options(**keywords)
    return Options.read(options)


def _is_whole(run: _Run, model: object) -> bool:
    """Whether the graph is the whole model: not broken, and called directly by the model."""
    return not run.broken and all(getattr(m, "_orig_mod", m) is model for m in run.modules)


def _rows(run: _Run, settings: Options, names: Mapping[int, str]) -> list[SiteReport]:
    """The rows of one graph with full module paths. `names`: module id -> path."""
    owner = next((names[id(m)] for m in run.modules if id(m) in names), "")
    decisions = judge(run.analysis, settings, hint=run.hint, guard=False, why=run.why)
    decisions, _ = plan(run.analysis.module, decisions, state.wanted(settings))
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
    """While entered, records every attention call that runs, as a row "not captured by Dynamo"."""

    def __init__(self, model: object) -> None:
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
        tokens, kv_tokens, per_pair = amounts(query.shape, key.shape)
        name = next((self.names[id(m)] for m in _modules_on_stack() if id(m) in self.names), "")
        flops, reason = per_pair * tokens * kv_tokens, not_captured()
        row = SiteReport(name, False, reason.text, reason.slug, None, (), tokens, 0, 0, flops, flops)
        self.calls.append(row)

    def fits(self, call: SiteReport, run: _Run, site: SiteReport) -> int:
        """How well a row matches this call: 3 by path, 2 by the module's parameters, 1 by size, 0 not."""
        alike = (site.tokens, site.flops_dense) == (call.tokens, call.flops_dense)
        if not alike and not (run.by_data and site.tokens <= call.tokens):
            return 0
        if site.name == call.name:
            return 3
        shorter, longer = sorted((site.name, call.name), key=len)
        if shorter and not longer.endswith(f".{shorter}"):
            return 0
        module = self.modules.get(call.name)
        return 2 if module and any(id(p) in run.parameters for p in module.parameters()) else 1


def _with_uncaptured(rows: list[tuple[_Run, SiteReport]], census: _Census) -> list[SiteReport]:
    """All calls in the order in which they ran: as the graphs describe them, else as uncaptured.

    A graph that begins inside a function knows only the end of a module's path, so the best matches go first.
    """
    left, merged = list(rows), list(census.calls)
    for sure in (3, 2, 1):
        for i, call in enumerate(census.calls):
            found = next((row for row in left if merged[i] is call and census.fits(call, *row) == sure), None)
            if found is not None:
                left.remove(found)
                merged[i] = replace(found[1], name=max(call.name, found[1].name, key=len))
    return merged + [site for _, site in left]
