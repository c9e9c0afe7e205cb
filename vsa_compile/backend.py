"""The entry point of `torch.compile(model, backend="vsa")`: options -> analysis -> rewrite -> Inductor."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from . import methods, torch_compat
from .analysis import analyse
from .convert.judge import Refusal, Site, judge, wants_hint
from .convert.rewrite import rewrite
from .errors import (
    OptionError,
    RefusedError,
    analysis_failed,
    grid_versions,
    refused_but_required,
    unknown_name,
)
from .ops import gpu
from .ops.gpu.templates import template_files
from .options import Options
from .report.explain import Report, describe, site_report
from .runtime import state

log = logging.getLogger(__name__)


def vsa(
    module: GraphModule,
    example_inputs: list[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
    **_: Any,
) -> Callable:
    """The backend: makes 3D video self-attention of the graph sparse and hands it to Inductor.

    `options` are the fields of `vsa_compile.Options`. A graph in which nothing is converted compiles
    exactly as with backend="inductor". Raises OptionError, or RefusedError under fallback="error".
    """
    settings = read_options(options, mode=mode)
    convert(module, settings)
    patches = torch_compat.mode_patches(settings.mode) | dict(settings.inductor)
    # Not only what was converted: a model may call vsa_compile.attention itself.
    if _our_operators(module):
        gpu.register()
        own = "post_grad_custom_pre_pass"
        patches[own] = torch_compat.keyed_pass(_cache_key(module), patches.get(own))
        # Else what could end in a kernel of ours may end in another kernel, which takes a pass more.
        patches.setdefault("epilogue_fusion_first", True)
    return torch_compat.compile_with_inductor(module, example_inputs, patches)


# torch._dynamo.reset() calls this; without it CUDA graph trees of our graphs would stay behind.
vsa.reset = torch_compat.reset_inductor  # pyright: ignore[reportFunctionMemberAccess]


def read_options(options: Mapping[str, Any] | Options | None, *, mode: str | None = None) -> Options:
    """Check options down to the names that only torch and the methods know, before any work is done."""
    settings = Options.read(options, mode=mode)
    methods.get(settings.method)
    if settings.inductor:
        known = set(torch_compat.inductor_settings())
        for name, _ in settings.inductor:
            if name not in known:
                raise OptionError(unknown_name("Inductor setting", name, known).split(" Known:")[0])
    try:
        torch_compat.mode_patches(settings.mode)
    except RuntimeError as error:
        raise OptionError(str(error)) from error
    return settings


def convert(module: GraphModule, settings: Options) -> list[Site | Refusal]:
    """Analyse a captured graph and rewrite it in place; counts and logs what was done."""
    decisions = _judged(module, state.hinted(settings))
    if any(isinstance(decision, Site) for decision in decisions):
        state.guard_sparsity(settings)
        methods.guard_version(settings.method)
    if any(map(wants_hint, decisions)):
        state.guard_grid()
        _warn_of_the_limit()
    if settings.fallback == "error":
        for decision in decisions:
            if isinstance(decision, Refusal) and decision.reason.asked:
                raise RefusedError(refused_but_required(decision.name, decision.reason.text))
    decisions = rewrite(decisions, settings)
    _count(decisions)
    _log(decisions)
    return decisions


def _judged(module: GraphModule, settings: Options) -> list[Site | Refusal]:
    """The decisions; none, with the traceback in the log, if our own analysis fails.

    A working model never stops working because of us, unless fallback="error" asks for it.
    """
    try:
        return judge(analyse(module), settings, why=state.state.why)
    except Exception:
        if settings.fallback == "error":
            raise
        torch_compat.counters()["vsa_compile"]["failed"] += 1
        log.exception("%s", analysis_failed())
        return []


def _warn_of_the_limit() -> None:
    """A hinted grid is a constant of its graph. Dynamo stops compiling at its limit, and says so in its log
    alone, after the fact."""
    limit = torch_compat.last_version_allowed()
    if limit is not None and state.state.grid is not None:
        warnings.warn(grid_versions(limit), stacklevel=2)


def convert_exported(program: ExportedProgram, options: Mapping[str, Any] | None = None) -> Report:
    """Make an exported program's video self-attention sparse, in place; says what it did.

    For `torch.export.export(model, ...)` before `run_decompositions` and before AOTInductor.
    Options are those of the backend; `mode` and `inductor` belong to AOTInductor itself.
    """
    settings = read_options(options)
    decisions = judge(analyse(program.graph_module), state.hinted(settings))
    report = Report(tuple(site_report(decision, settings) for decision in decisions), settings)
    convert(program.graph_module, settings)
    gpu.register()
    return report


def _our_operators(module: GraphModule) -> list[Node]:
    """The calls of operators of ours in a captured graph and the bodies inside it."""
    nodes = (n for part in module.modules() if isinstance(part, GraphModule) for n in part.graph.nodes)
    return [n for n in nodes if n.op == "call_function" and str(n.target).startswith("vsa_compile.")]


def _cache_key(module: GraphModule) -> bytes | None:
    """What of us goes into the cache keys; None, for no caching, where a method's source is unknown."""
    literals = (x for node in _our_operators(module) for x in node.args if isinstance(x, str))
    return source_hash() if all(map(methods.readable, literals)) else None


def _count(decisions: list[Site | Refusal]) -> None:
    table = torch_compat.counters()["vsa_compile"]
    for decision in decisions:
        if isinstance(decision, Site):
            table["converted"] += 1
        else:
            table["refused"] += 1
            table[f"refused.{decision.reason.slug}"] += 1


def _log(decisions: list[Site | Refusal]) -> None:
    converted = sum(isinstance(decision, Site) for decision in decisions)
    log.info("%d of %d attention calls made sparse", converted, len(decisions))
    for decision in decisions:
        log.debug("%s", describe(decision))


@cache
def source_hash() -> bytes:
    """One hash over all our sources, kernels and templates: a change to any of them misses every cache."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    sources = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".cpp", ".h"))
    for path in [*sources, *template_files()]:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.digest()
