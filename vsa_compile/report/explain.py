"""`explain(model, ...)`: runs a model once, dense, and reports what happens to each attention call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, runtime_checkable

import torch
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from .. import methods
from ..analysis import Analysis, analyse
from ..convert.judge import judge
from ..convert.refusals import not_captured
from ..convert.rewrite import plan
from ..errors import ArgumentError, bad_value
from ..grid import Hint
from ..grids.prepare import attention_of
from ..options import Options
from ..runtime import eager_calls, state
from ..torch_compat import (
    GraphBreak,
    compiled_by,
    compiled_with,
    depends_on_data,
    explaining_compile,
    graph_break,
)
from .site_report import Report, SiteReport, amounts, site_report


@runtime_checkable
class _Optioned(Protocol):
    """A backend that knows the options it will run with, as ours does."""

    def read_options(
        self, *, options: Mapping[str, object] | Options | None = None, mode: str | None = None
    ) -> Options: ...


@runtime_checkable
class _Patched(Protocol):
    """What runs the eager attention calls of a model that `patch_attention` got."""

    options: Options


@dataclass(frozen=True, eq=False)
class _Run:
    """One run of a graph while a model was explained.

    modules: those whose methods were on the call stack, innermost first. parameters: the ids of parameters
    among the inputs. end: why Dynamo ended the graph before its function, None if it did not. hint, why: the
    process's at the time, or the reason why there is none. single: whether it is the graph of an eager call
    of a model that `patch_attention` got.
    """

    analysis: Analysis
    modules: list[torch.nn.Module]
    parameters: set[int]
    end: GraphBreak | None
    hint: Hint | None
    why: str
    single: bool

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
    return _collector(module, single=False)


def _collect_call(module: GraphModule, example_inputs: list[object]) -> Callable:
    """`_collect` for the graph of an eager call."""
    return _collector(module, single=True)


def _collector(module: GraphModule, *, single: bool) -> Callable:
    analysis, end = analyse(module), graph_break(module)

    def run(*args: Any) -> Any:
        parameters = {id(x) for x in args if isinstance(x, torch.nn.Parameter)}
        now = state.now
        modules = eager_calls.modules_on_stack()
        _found.append(_Run(analysis, modules, parameters, end, now.hint, now.why, single))
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
    settings = state.wanted(options_of(model, options)).options
    methods.get(settings.method)
    with _explaining:
        try:
            with _explained(model) as explained:
                with eager_calls.compiled_by(partial(explaining_compile, backend=_collect_call)):
                    explained(*args, **kwargs)
                runs = list(_found)
                owner = getattr(model, "_orig_mod", model)
                owner = getattr(owner, "__self__", owner)
                whole = len(runs) == 1 and _is_whole(runs[0], owner)
                ends = [run.end for run in runs if run.end is not None]
                census = None if whole else _Census(owner, ends)
                if census is not None:
                    with census, torch.compiler.set_stance("force_eager"):
                        explained(*args, **kwargs)
        finally:
            _found.clear()
    rows = [(run, row) for run in runs for row in _rows(run, settings, census.names if census else {})]
    sites = _with_uncaptured(rows, census) if census else [row for _, row in rows]
    return Report(tuple(sites), settings)


def _explained(model: Any) -> AbstractContextManager[Callable]:
    """The model as it will run, with its analysis in the place of Inductor: compiled, unless only its eager
    calls are."""
    if compiled_with(model) is None and attention_of(model) is not None:
        return nullcontext(model)
    return compiled_by(model, partial(explaining_compile, backend=_collect))


def options_of(model: object, options: Mapping[str, object] | Options | None) -> Options:
    """The given options, else those that the model was compiled with, or `patch_attention` got."""
    compiled = compiled_with(model) if options is None else None
    if compiled is not None and isinstance(compiled[0], _Optioned):
        backend, keywords = compiled
        return backend.read_options(**keywords)
    patched = attention_of(model) if options is None else None
    return Options.read(patched.options if isinstance(patched, _Patched) else options)


def _is_whole(run: _Run, model: object) -> bool:
    """Whether the graph is the whole model: it was called by the model directly, and has all of it."""
    return (
        run.end is None and not run.single and all(getattr(m, "_orig_mod", m) is model for m in run.modules)
    )


def _rows(run: _Run, settings: Options, names: Mapping[int, str]) -> list[SiteReport]:
    """The rows of one graph with full module paths. `names`: module id -> path."""
    owner = next((names[id(m)] for m in run.modules if id(m) in names), "")
    within = owner if run.single else ""
    decisions = judge(run.analysis, settings, hint=run.hint, guard=False, why=run.why, within=within)
    decisions, _ = plan(run.analysis.module, decisions, state.wanted(settings))
    rows = [site_report(decision, settings) for decision in decisions]
    return rows if within else [replace(row, name=".".join(filter(None, (owner, row.name)))) for row in rows]


class _Census(TorchFunctionMode):
    """While entered, records every attention call that runs, as a row "not captured by Dynamo"."""

    def __init__(self, model: object, ends: list[GraphBreak]) -> None:
        super().__init__()
        self.ends = ends
        self.modules = dict(model.named_modules()) if isinstance(model, torch.nn.Module) else {}
        self.names = {id(module): name for name, module in self.modules.items()}
        self.calls: list[SiteReport] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is eager_calls.original:
            self._note(*(args[i] if i < len(args) else kwargs[n] for i, n in enumerate(("query", "key"))))
        return func(*args, **kwargs)

    def _note(self, query: torch.Tensor, key: torch.Tensor) -> None:
        tokens, kv_tokens, per_pair = amounts(query.shape, key.shape)
        modules = eager_calls.modules_on_stack()
        name = next((self.names[id(m)] for m in modules if id(m) in self.names), "")
        flops, reason = per_pair * tokens * kv_tokens, not_captured(self._where())
        row = SiteReport(name, False, reason.text, reason.slug, None, (), tokens, 0, 0, flops, flops)
        self.calls.append(row)

    def _where(self) -> str:
        """Where the graph breaks that would have this call, and why."""
        stack = eager_calls.code_on_stack()
        for i, (file, function, line) in enumerate(stack):
            broken = [(abs(at - line), at, end.why) for end in self.ends for one, name, at in end.stack
                      if (one, name) == (file, function)]  # fmt: skip
            if broken:
                _, at, why = min(broken)
                called = f", which calls {stack[i - 1][1]}" if i else ""
                return f"at line {at} of {Path(file).name}, in {function}{called}: {why}"
        return ""

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
