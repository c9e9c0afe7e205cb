"""The entry point of `torch.compile(model, backend="vsa")`: options -> analysis -> rewrite -> Inductor."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Unpack

from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from . import methods, torch_compat
from .analysis import analyse
from .analysis.graph_facts import example_of
from .convert.edits import Edit, apply
from .convert.judge import Decision, Needs, Refusal, judge, needs
from .convert.refusals import no_guards
from .convert.rewrite import plan
from .errors import (
    ArgumentError,
    OptionError,
    RefusedError,
    VsaError,
    bad_value,
    conversion_failed,
    grid_versions,
    no_triton,
    options_twice,
    refused_but_required,
    schedule_in_export,
    sparse_for_good,
    unknown_name,
)
from .grid import Hint
from .ops import gpu
from .ops.gpu.templates import template_files
from .options import Options, OptionsDict
from .plan.schedule import SparsitySchedule
from .report.announce import announce, count, kernels_of
from .report.site_report import Report, SiteReport, site_report
from .runtime import state

log = logging.getLogger(__name__)


class Backend:
    """The backend: makes the 3D video self-attention of a graph sparse, then compiles it with Inductor.

        torch.compile(model, backend="vsa", options={"sparsity": 0.9})
        torch.compile(model, backend=vsa_compile.vsa.with_options(sparsity=0.9))

    `vsa` takes its options from torch.compile; `vsa.with_options(...)` carries its own. A graph in which
    nothing is converted compiles exactly as with backend="inductor".
    """

    __name__ = "vsa"  # under which torch lists the backend

    def __init__(self, options: Options | None = None) -> None:
        self.options = options

    def __call__(
        self,
        module: GraphModule,
        example_inputs: list[Any],
        *,
        options: Mapping[str, object] | Options | None = None,
        mode: str | None = None,
        **_: object,
    ) -> Callable:
        """`options` are the fields of `vsa_compile.Options`. Raises OptionError, or RefusedError under
        fallback="error"."""
        with torch_compat.unwrapped(VsaError):
            settings = self.read_options(options=options, mode=mode)
            convert(module, settings)
            return _compiled(module, example_inputs, settings)

    def with_options(self, **options: Unpack[OptionsDict]) -> Backend:
        """This backend with options, for `torch.compile(model, backend=vsa_compile.vsa.with_options(...))`.

        `options` are the fields of `vsa_compile.Options`, by name. Raises OptionError for unknown options and
        impossible values.
        """
        return Backend(read_options(options))

    def read_options(
        self, *, options: Mapping[str, object] | Options | None = None, mode: str | None = None
    ) -> Options:
        """The checked options. Raises OptionError for bad ones, and if both sides give some."""
        if self.options is None:
            return read_options(options, mode=mode)
        if options:
            raise OptionError(options_twice())
        return read_options(self.options, mode=mode)

    def reset(self) -> None:
        """Called by torch._dynamo.reset(): frees what CUDA graphs keep of our graphs."""
        torch_compat.reset_inductor()

    def __eq__(self, other: object) -> bool:
        """Dynamo compares backends to decide whether to compile again."""
        return isinstance(other, Backend) and self.options == other.options

    def __hash__(self) -> int:
        return hash(self.__name__)

    def __repr__(self) -> str:
        return "vsa" if self.options is None else f"vsa.with_options({self.options})"


vsa = Backend()
torch_compat.check_in_compile(Backend, Backend.read_options)


def _compiled(module: GraphModule, example_inputs: list[Any], settings: Options) -> Callable:
    """Compile a converted graph with Inductor."""
    patches = torch_compat.mode_patches(settings.mode) | dict(settings.inductor)
    # Also without a conversion: a model may call vsa_compile.attention itself.
    if _our_operators(module):
        gpu.register()
        own = "post_grad_custom_pre_pass"
        patches[own] = torch_compat.keyed_pass(_cache_key(module), patches.get(own))
        # Fuse into our kernels first; otherwise Inductor may use another kernel, which costs one more pass.
        patches.setdefault("epilogue_fusion_first", True)
    try:
        return torch_compat.compile_with_inductor(module, example_inputs, patches)
    except torch_compat.triton_missing() as error:
        error.add_note(no_triton())
        raise


def read_options(options: Mapping[str, object] | Options | None, *, mode: str | None = None) -> Options:
    """Read options and check every name in them, of Inductor settings, modes and methods, before any work."""
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


def convert(
    module: GraphModule, settings: Options, look: Callable[[list[Decision]], object] = lambda _: None
) -> list[Decision]:
    """Analyse a captured graph and rewrite it in place; count and log the decisions.

    `look` is called with the decisions before the graph is edited. The graph is edited last, and completely
    or not at all. An unexpected failure leaves it dense, with the traceback in the log: a defect of ours must
    not break a working model. Raises RefusedError where fallback="error" asks for it.
    """
    done: list[Decision] = []
    kernels: list[str] = []
    with _harmless(settings):
        decisions, edits = _decided(module, settings)
        _refuse_if_asked(decisions, settings)
        look(decisions)
        kernels = kernels_of(decisions, settings)
        apply(edits)
        done = decisions
    count(done)
    announce(done, kernels)
    if any(needs(decision) is Needs.THIS_HINT for decision in done):
        _warn_of_the_limit()
    return done


@contextmanager
def _harmless(settings: Options) -> Iterator[None]:
    """Log unexpected errors instead of raising them, unless fallback="error"."""
    try:
        yield
    except VsaError:
        raise
    except Exception as error:
        torch_compat.counters()["vsa_compile"]["failed"] += 1
        log.exception("%s", conversion_failed(error))
        if settings.fallback == "error":
            raise RefusedError(conversion_failed(error)) from error


def _refuse_if_asked(decisions: list[Decision], settings: Options) -> None:
    for decision in decisions if settings.fallback == "error" else ():
        if isinstance(decision, Refusal) and decision.reason.asked:
            raise RefusedError(refused_but_required(decision.name, decision.reason.text))


def _decided(module: GraphModule, settings: Options) -> tuple[list[Decision], list[Edit]]:
    """Decide what to do with a graph, and install guards on the state that the decisions depend on."""
    wanted = state.wanted(settings)
    decisions = judge(analyse(module), wanted.options, hint=wanted.hint, why=wanted.why)
    guarded = torch_compat.guards_hold()
    if not guarded:
        decisions = [_unguarded(decision, wanted) for decision in decisions]
    decisions, edits = plan(module, decisions, wanted)
    if edits and not guarded and wanted.sparsity:
        warnings.warn(sparse_for_good(), stacklevel=2)
    if edits:
        state.guard_sparsity(settings)
        methods.guard_version(settings.method)
        for edit in edits:
            state.place_share(settings, example_of(edit.node).device)
    most = max(map(needs, decisions), default=Needs.NO_HINT)
    if most is not Needs.NO_HINT:
        state.guard_hint(which=most is Needs.THIS_HINT)
    return decisions, edits


def _unguarded(decision: Decision, wanted: state.Wanted) -> Decision:
    """The decision under a compiler that drops guards (aot_compile): a call that needs one is refused."""
    if isinstance(decision, Refusal):
        return decision
    what = "a SparsitySchedule" if wanted.schedule >= 0 else ""
    what = "a hinted grid" if needs(decision) is not Needs.NO_HINT and wanted.hint else what
    if not what:
        return decision
    return Refusal(decision.call, decision.name, decision.segments, no_guards(what))


_hints: dict[object, set[Hint]] = {}  # frame -> the hints that it was compiled for


def _warn_of_the_limit() -> None:
    """Warn when Dynamo reaches its recompile limit.

    A hinted grid is a constant of its graph, so each needs a compilation. Dynamo itself reports the limit
    only in its log, when it has already given up.
    """
    frame, hint = torch_compat.frame_version(), state.now.hint
    if frame is None or hint is None:
        return
    name, versions, limit = frame
    hints = _hints.setdefault(name, set())
    hints.add(hint)
    if versions >= limit:
        warnings.warn(grid_versions(limit, len(hints)), stacklevel=2)


def convert_exported(program: ExportedProgram, options: Mapping[str, object] | None = None) -> Report:
    """Make an exported program's video self-attention sparse, in place; returns a report of what was done.

        program = torch.export.export(model, (), inputs)
        print(vsa_compile.convert_exported(program, {"sparsity": 0.9}))

    Call it after `torch.export.export` and before `run_decompositions` or AOTInductor. The program can be
    saved, and loaded wherever vsa_compile is imported. `options` are those of the backend, except `mode` and
    `inductor`, which AOTInductor takes itself. Raises ArgumentError if `program` is no exported program,
    OptionError for bad options, and for a SparsitySchedule, which a process that loads the program would not
    have.
    """
    if not isinstance(program, ExportedProgram):
        way_out = "Make one with torch.export.export(model, args), or torch.export.load a file."
        raise ArgumentError(
            bad_value("program", type(program).__name__, "a torch.export.ExportedProgram", way_out)
        )
    settings = read_options(options)
    if isinstance(settings.sparsity, SparsitySchedule):
        raise OptionError(schedule_in_export())
    rows: list[SiteReport] = []

    def look(decisions: list[Decision]) -> None:
        rows.extend(site_report(decision, settings) for decision in decisions)

    done: list[Decision] = []
    with _harmless(settings):
        torch_compat.restore_aliases(program.graph_module)
        torch_compat.note_numbers(program)
        done = convert(program.graph_module, settings, look)
    _name_outputs(program)
    gpu.register()
    return Report(tuple(rows) if done else (), settings)


def _name_outputs(program: ExportedProgram) -> None:
    """Update the program's signature, which names its output nodes, for the nodes that were replaced."""
    signature = program.graph_signature
    (outputs,) = (node.args[0] for node in program.graph.nodes if node.op == "output")
    for spec, node in zip(signature.output_specs, outputs, strict=True):  # pyright: ignore[reportArgumentType]
        if isinstance(node, Node) and spec.arg.name != node.name:
            signature.replace_all_uses(spec.arg.name, node.name)


def _our_operators(module: GraphModule) -> list[Node]:
    """The nodes of a captured graph, bodies included, that call our operators."""
    nodes = (n for part in module.modules() if isinstance(part, GraphModule) for n in part.graph.nodes)
    return [n for n in nodes if n.op == "call_function" and str(n.target).startswith("vsa_compile.")]


def _cache_key(module: GraphModule) -> bytes | None:
    """Our part of the cache keys; None (no caching) if the source of a method cannot be read."""
    literals = (x for node in _our_operators(module) for x in node.args if isinstance(x, str))
    return source_hash() if all(map(methods.readable, literals)) else None


@cache
def source_hash() -> bytes:
    """One hash over our sources, kernels and templates: a change to any of them invalidates all caches."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    sources = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".cpp", ".h"))
    for path in [*sources, *template_files()]:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.digest()
