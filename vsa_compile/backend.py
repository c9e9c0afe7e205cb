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
from .analysis.graph_facts import example_of, sizes_of
from .convert.edits import Edit, apply
from .convert.judge import Conversion, Decision, Refusal, attention_arguments, judge, kernel_of, wants_hint
from .convert.refusals import OF_SPEED, no_guards
from .convert.rewrite import plan
from .errors import (
    OptionError,
    RefusedError,
    VsaError,
    conversion_failed,
    grid_versions,
    no_triton,
    options_twice,
    refused_but_required,
    schedule_in_export,
    sparse_for_good,
    unknown_name,
)
from .grid import GridSizes
from .ops import gpu
from .ops.gpu.templates import template_files
from .options import Options, OptionsDict
from .plan.schedule import SparsitySchedule
from .report.site_report import Report, SiteReport, describe, site_report
from .runtime import state

log = logging.getLogger(__name__)


class Backend:
    """The backend: makes 3D video self-attention of a graph sparse and hands it to Inductor.

    A graph in which nothing is converted compiles exactly as with backend="inductor". One object per set of
    options: `vsa` takes them from torch.compile, `vsa.with_options(sparsity=0.9)` brings its own along.
    """

    __name__ = "vsa"  # what torch calls a backend by

    def __init__(self, options: Options | None = None) -> None:
        self.options = options

    def __call__(
        self,
        module: GraphModule,
        example_inputs: list[Any],
        *,
        options: Mapping[str, Any] | Options | None = None,
        mode: str | None = None,
        **_: Any,
    ) -> Callable:
        """`options` are the fields of `vsa_compile.Options`. Raises OptionError, or RefusedError under
        fallback="error"."""
        with torch_compat.unwrapped(VsaError):
            settings = self.read_options(options=options, mode=mode)
            convert(module, settings)
            return _compiled(module, example_inputs, settings)

    def with_options(self, **options: Unpack[OptionsDict]) -> Backend:
        """This backend with options, for `torch.compile(model, backend=vsa_compile.vsa.with_options(...))`.

        Raises OptionError for options that are unknown or have impossible values.
        """
        return Backend(read_options(options))

    def read_options(
        self, *, options: Mapping[str, Any] | Options | None = None, mode: str | None = None
    ) -> Options:
        """The options of a call, checked. Raises OptionError, also where both sides have some."""
        if self.options is None:
            return read_options(options, mode=mode)
        if options:
            raise OptionError(options_twice())
        return read_options(self.options, mode=mode)

    def reset(self) -> None:
        """torch._dynamo.reset() calls this; else what CUDA graphs keep of our graphs would stay behind."""
        torch_compat.reset_inductor()

    def __eq__(self, other: object) -> bool:
        """Dynamo compiles again for another backend."""
        return isinstance(other, Backend) and self.options == other.options

    def __hash__(self) -> int:
        return hash(self.__name__)

    def __repr__(self) -> str:
        return "vsa" if self.options is None else f"vsa.with_options({self.options})"


vsa = Backend()
torch_compat.check_in_compile(Backend, Backend.read_options)


def _compiled(module: GraphModule, example_inputs: list[Any], settings: Options) -> Callable:
    """What Inductor makes of a converted graph."""
    patches = torch_compat.mode_patches(settings.mode) | dict(settings.inductor)
    # Not only what was converted: a model may call vsa_compile.attention itself.
    if _our_operators(module):
        gpu.register()
        own = "post_grad_custom_pre_pass"
        patches[own] = torch_compat.keyed_pass(_cache_key(module), patches.get(own))
        # Else what could end in a kernel of ours may end in another kernel, which takes a pass more.
        patches.setdefault("epilogue_fusion_first", True)
    try:
        return torch_compat.compile_with_inductor(module, example_inputs, patches)
    except torch_compat.triton_missing() as error:
        error.add_note(no_triton())
        raise


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


def convert(
    module: GraphModule, settings: Options, look: Callable[[list[Decision]], Any] = lambda _: None
) -> list[Decision]:
    """Analyse a captured graph and rewrite it in place; counts and logs what was done. `look` sees the
    decisions while the graph is still as it was.

    The graph is edited last, and wholly or not at all. A failure of ours on the way leaves it dense, with the
    traceback in the log: a working model never stops working because of us. Raises RefusedError where
    fallback="error" asks for it.
    """
    done: list[Decision] = []
    kernels: list[str] = []
    with _harmless(settings):
        decisions, edits = _decided(module, settings)
        _refuse_if_asked(decisions, settings)
        look(decisions)
        if log.isEnabledFor(logging.INFO):
            kernels = sorted({kernel_of(x, settings).name for x in decisions if isinstance(x, Conversion)})
        apply(edits)
        done = decisions
    _count(done)
    _log(done, kernels)
    if any(map(wants_hint, done)):
        _warn_of_the_limit()
    return done


@contextmanager
def _harmless(settings: Options) -> Iterator[None]:
    """Errors that are not meant for the user end up in the log, unless fallback="error"."""
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
    """What is to be done to a graph, and guards on what that was decided by."""
    wanted = state.wanted(settings)
    decisions = judge(analyse(module), wanted.options, why=wanted.why)
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
    if any(map(wants_hint, decisions)):
        state.guard_grid()
    return decisions, edits


def _unguarded(decision: Decision, wanted: state.Wanted) -> Decision:
    """The decision where guards are dropped: what needs one is refused."""
    if isinstance(decision, Refusal):
        return decision
    needs = "a hinted grid" if wants_hint(decision) and wanted.hinted else ""
    needs = needs or ("a SparsitySchedule" if wanted.schedule >= 0 else "")
    if not needs:
        return decision
    return Refusal(decision.call, decision.name, decision.segments, no_guards(needs))


_grids: dict[Any, set[GridSizes]] = {}  # that were hinted while a frame was compiled, by frame


def _warn_of_the_limit() -> None:
    """A hinted grid is a constant of its graph. Dynamo stops compiling at its limit, and says so in its log
    alone, after the fact."""
    frame, grid = torch_compat.frame_version(), state.now.grid
    if frame is None or grid is None:
        return
    name, versions, limit = frame
    grids = _grids.setdefault(name, set())
    grids.add(grid)
    if versions >= limit:
        warnings.warn(grid_versions(limit, len(grids)), stacklevel=2)


def convert_exported(program: ExportedProgram, options: Mapping[str, Any] | None = None) -> Report:
    """Make an exported program's video self-attention sparse, in place; says what it did.

    For `torch.export.export(model, ...)` before `run_decompositions` and before AOTInductor. The program can
    be saved, and loaded where vsa_compile is imported. Options are those of the backend; `mode` and
    `inductor` belong to AOTInductor itself. Raises OptionError, also for a SparsitySchedule, which other
    processes do not have.
    """
    settings = read_options(options)
    if isinstance(settings.sparsity, SparsitySchedule):
        raise OptionError(schedule_in_export())
    rows: list[SiteReport] = []

    def look(decisions: list[Decision]) -> None:
        rows.extend(site_report(decision, settings) for decision in decisions)

    done = convert(program.graph_module, settings, look)
    _name_outputs(program)
    gpu.register()
    return Report(tuple(rows) if done else (), settings)


def _name_outputs(program: ExportedProgram) -> None:
    """The signature of a program tells its outputs by the names of nodes, and some nodes are new."""
    signature = program.graph_signature
    (outputs,) = (node.args[0] for node in program.graph.nodes if node.op == "output")
    for spec, node in zip(signature.output_specs, outputs, strict=True):  # pyright: ignore[reportArgumentType]
        if isinstance(node, Node) and spec.arg.name != node.name:
            signature.replace_all_uses(spec.arg.name, node.name)


def _our_operators(module: GraphModule) -> list[Node]:
    """The calls of operators of ours in a captured graph and the bodies inside it."""
    nodes = (n for part in module.modules() if isinstance(part, GraphModule) for n in part.graph.nodes)
    return [n for n in nodes if n.op == "call_function" and str(n.target).startswith("vsa_compile.")]


def _cache_key(module: GraphModule) -> bytes | None:
    """What of us goes into the cache keys; None, for no caching, where a method's source is unknown."""
    literals = (x for node in _our_operators(module) for x in node.args if isinstance(x, str))
    return source_hash() if all(map(methods.readable, literals)) else None


def _count(decisions: list[Decision]) -> None:
    table = torch_compat.counters()["vsa_compile"]
    for decision in decisions:
        if isinstance(decision, Conversion):
            table["converted"] += 1
        else:
            table["refused"] += 1
            table[f"refused.{decision.reason.slug}"] += 1


def _log(decisions: list[Decision], kernels: list[str]) -> None:
    for decision in decisions:
        if isinstance(decision, Refusal):
            _say_once(decision)
    converted = sum(isinstance(decision, Conversion) for decision in decisions)
    through = f", through {' and '.join(kernels)}" if kernels else ""
    log.info("%d of %d attention calls made sparse%s", converted, len(decisions), through)
    for decision in decisions:
        log.debug("%s", describe(decision))


_said: set[str] = set()
_LONG = 1024  # tokens; with fewer no kernel of ours beats dense attention


def _say_once(refusal: Refusal) -> None:
    """Why calls that could be sparse are not, once in the process: else nobody would learn of it.

    Of what may be a video and cannot be read as one, if it is as long as one."""
    reason, query = refusal.reason, attention_arguments(refusal.call.node).get("query")
    of_speed = reason.slug in OF_SPEED
    tokens = [0, *(sizes_of(example_of(query)) or [0])][-2]
    if reason.asked and not isinstance(tokens, int):
        tokens = torch_compat.size_hint(tokens, torch_compat.shape_environment(refusal.call.owner))
    what = reason.text if of_speed else reason.slug
    if what not in _said and (of_speed or (reason.asked and tokens >= _LONG)):
        _said.add(what)
        logging.getLogger("vsa_compile.speed").warning("video attention stays dense: %s", reason.text)


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
