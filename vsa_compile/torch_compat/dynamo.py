"""Dynamo: its guards, counters, capture flags, and compiled calls."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch.fx import GraphModule

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

FakeMode: TypeAlias = "FakeTensorMode"


def compiling() -> object:
    """The frame compilation that runs in this thread, as a comparable object; None if none does. Checked on
    torch 2.13."""
    from torch._guards import CompileContext

    return CompileContext.try_get()


def guards_hold() -> bool:
    """Whether guards that are installed now will be checked at run time. `aot_compile` compiles no frame and
    drops guards. Checked on torch 2.13."""
    from torch._guards import CompileContext, TracingContext

    return TracingContext.try_get() is None or CompileContext.current_compile_id() is not None


def guard_on_attribute(package: str, *attributes: str) -> None:
    """Guard the running compilation on `package.attribute...`: when it compares unequal, Dynamo recompiles.

    Does nothing outside of a Dynamo compilation. Checked on torch 2.13.
    """
    from torch._dynamo.guards import GuardBuilder, install_guard
    from torch._dynamo.source import AttrSource, ImportSource
    from torch._guards import TracingContext

    if TracingContext.try_get() is None:
        return
    source: Any = ImportSource(package)
    for attribute in attributes:
        source = AttrSource(source, attribute)
    install_guard(source.make_guard(GuardBuilder.EQUALS_MATCH))


def capturing(*, sizes_that_are_data: bool) -> AbstractContextManager[None]:
    """Settings for what Dynamo compiles within, in this thread: no graph is split at the buckets of
    DistributedDataParallel, and, if `sizes_that_are_data`, `.item()` and `nonzero` are captured as with
    fullgraph=True. No generator, which Dynamo would compile. Checked on torch 2.13.
    """
    changes: dict[str, bool] = {"optimize_ddp": False}
    if sizes_that_are_data:
        changes |= {"capture_scalar_outputs": True, "capture_dynamic_output_shape_ops": True}
    return torch._dynamo.config.patch(changes)


def capture_failures() -> tuple[type[Exception], ...]:
    """The exceptions that mean that Dynamo failed, not the code that it compiles. Checked on torch 2.13."""
    from torch._dynamo import exc

    return (exc.TorchDynamoException,)


def forget_compiled() -> None:
    """Compile every frame anew when it runs next, as if it were new. Checked on torch 2.13."""
    torch._dynamo.reset_code_caches()


def own_code(function: Callable, name: str) -> Callable:
    """Give `function` a code object of its own for each `name`; `function` must be newly made.

    Dynamo counts compiled versions, up to a limit, by code object, and guards on its identity.
    """
    function.__code__ = _named(function.__code__, name)
    return function


@functools.cache
def _named(code: types.CodeType, name: str) -> types.CodeType:
    return code.replace(co_name=name)


def no_frame(function: Callable) -> Callable:
    """Keep Dynamo from compiling a frame for `function` itself; functions that it calls are compiled, and
    where compiled code calls it, it is traced. Checked on torch 2.13."""
    from torch._dynamo.eval_frame import skip_code

    skip_code(function.__code__)
    return function


def scripts_as(function: Callable, builtin: Callable) -> None:
    """Let torch.jit.script take `function` for `builtin`. Checked on torch 2.13."""
    from torch.jit import _builtins

    operator = _builtins._find_builtin(builtin)
    if operator is not None:
        _builtins._register_builtin(function, operator)


class GraphBreak(NamedTuple):
    """Why Dynamo ended a graph within a function, in a line, and the user's code there, outermost first:
    (file, function, line)."""

    why: str
    stack: tuple[tuple[str, str, int], ...]


def graph_break(module: GraphModule) -> GraphBreak | None:
    """Why a captured graph ends before its function does; None if it does not. Checked on torch 2.13."""
    end: Any = getattr(module, "compile_subgraph_reason", None)
    if end is None:
        return GraphBreak("", ())
    if not end.graph_break:
        return None
    resumed = re.compile("torch_dynamo_resume_in_(.*)_at_[0-9]+")
    stack = [(one.filename, resumed.sub(r"\1", one.name), one.lineno or 0) for one in end.user_stack]
    return GraphBreak(end.reason.partition("\n")[0], tuple(stack))


def version_of(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written to; None for inference tensors, which do not count. Checked on 2.13."""
    return None if tensor.is_inference() else tensor._version


def frame_version() -> tuple[object, int, int] | None:
    """Of the frame that Dynamo is compiling: its id, its number of compiled versions including this one, and
    the limit, beyond which Dynamo runs it uncompiled. None outside. Checked on torch 2.13."""
    from torch._guards import CompileContext

    current = CompileContext.current_compile_id()
    versions = getattr(current, "frame_compile_id", None)
    if versions is None:
        return None
    return getattr(current, "frame_id", None), versions + 1, torch._dynamo.config.recompile_limit


@contextmanager
def unwrapped(kind: type[Exception]) -> Iterator[None]:
    """While Dynamo compiles: let errors of `kind` reach the caller of the compiled model unwrapped.

    Dynamo wraps what a backend raises in BackendCompilerFailed, Inductor what a lowering raises in
    InductorError. Only subclasses of ShortenTraceback pass; at the end Dynamo asks them for the error to
    raise. Checked on torch 2.13.
    """
    try:
        yield
    except Exception as raised:
        error: Any = raised
        while not isinstance(error, kind) and isinstance(getattr(error, "inner_exception", None), Exception):
            error = error.inner_exception
        if not isinstance(error, kind):
            raise
        raise _passing(error) from error.__cause__


def _passing(error: Exception) -> Exception:
    """The error; during a compilation, a stand-in for it that Dynamo does not wrap."""
    from torch._dynamo import exc
    from torch._guards import TracingContext

    if TracingContext.try_get() is None or not hasattr(exc, "ShortenTraceback"):
        return error
    kind: type = type(error)

    def init(self: Any) -> None:
        exc.ShortenTraceback.__init__(self, str(error), first_useful_frame=None)

    body = {"__init__": init, "remove_dynamo_frames": lambda _: error, "__module__": kind.__module__}
    passing: Any = type(kind.__name__, (kind, exc.ShortenTraceback), body)
    return passing()


def check_in_compile(backend: type, check: Callable[..., Any]) -> None:
    """Make torch.compile call `check(backend, mode=..., options=...)` at once for backends of this type.

    torch alone passes options to the backend only when the first graph is compiled. Does nothing if torch
    lacks the hook. Checked on torch 2.13.
    """
    wrapper: Any = getattr(torch, "_TorchCompileWrapper", None)
    if wrapper is None:
        return
    make = wrapper.__init__

    @functools.wraps(make)
    def make_and_check(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if isinstance(getattr(self, "compiler_fn", None), backend):
            check(self.compiler_fn, **getattr(self, "kwargs", {}))

    wrapper.__init__ = make_and_check


def compiled_with(model: object) -> tuple[Any, dict[str, Any]] | None:
    """The backend of a compiled model or function, and the keywords it is called with (options, mode).

    None if it is not compiled. For a model whose blocks were compiled, those of the first block. Checked on
    torch 2.13.
    """
    context = getattr(model, "dynamo_ctx", None)
    callback: Any = getattr(context, "callback", None) or _callback_of(model)
    if callback is None and isinstance(model, torch.nn.Module):
        calls = (module._compiled_call_impl for module in model.modules())
        callback = next(filter(None, map(_callback_of, calls)), None)
    while hasattr(callback, "_torchdynamo_orig_backend"):
        callback = callback._torchdynamo_orig_backend  # pyright: ignore[reportOptionalMemberAccess]
    if callback is None:
        return None
    return getattr(callback, "compiler_fn", callback), dict(getattr(callback, "kwargs", {}))


def _callback_of(function: Any) -> Any:
    """The callback that torch.compile put around a function: it is in a closure cell."""
    if not hasattr(function, "_torchdynamo_orig_callable") or not hasattr(function, "__code__"):
        return None
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return next((cell.cell_contents for name, cell in cells if name == "callback"), None)


def counters() -> Any:
    """Dynamo's counter table: counters()["vsa_compile"]["converted"], ..."""
    from torch._dynamo.utils import counters as table

    return table


def fake_mode_of(module: GraphModule) -> FakeMode | None:
    """The FakeTensorMode of a captured graph's example values; None if they are not fake."""
    from torch._subclasses.fake_tensor import FakeTensor

    for node in module.graph.nodes:
        example = node.meta.get("example_value", node.meta.get("val"))
        if isinstance(example, FakeTensor):
            return example.fake_mode
    return None


def on_examples(mode: FakeMode | None, target: Callable | str, *args: Any, **kwargs: Any) -> Any:
    """The result of a call (a function, or a method by name) on example values, computed as Dynamo computes
    it. Adds no guard. Checked on torch 2.13."""
    from torch._dispatch.python import enable_python_dispatcher

    function = getattr(torch.Tensor, target) if isinstance(target, str) else target
    environment = getattr(mode, "shape_env", None)
    unguarded = nullcontext() if environment is None else environment.suppress_guards()
    with mode or nullcontext(), enable_python_dispatcher(), torch.no_grad(), unguarded:
        return function(*args, **kwargs)


@contextmanager
def compiled_by(model: Any, compiler: Callable[[Callable], Callable]) -> Iterator[Callable]:
    """The model with `compiler` in the place of torch.compile: around the whole model, or, if only blocks of
    it were compiled (compile_repeated_blocks), around those blocks.

    Afterwards the compiled calls are restored, still compiled. Checked on torch 2.13.
    """
    plain = getattr(model, "_orig_mod", model)
    modules = list(plain.modules()) if isinstance(plain, torch.nn.Module) else []
    compiled = [(module, module._compiled_call_impl) for module in modules if module._compiled_call_impl]
    in_parts = bool(compiled) and plain is model and not plain._compiled_call_impl
    for module, _ in compiled:
        module._compiled_call_impl = compiler(module._call_impl) if in_parts else None
    try:
        yield plain if in_parts else compiler(plain)
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


def explaining_compile(model: Callable, backend: Callable) -> Callable:
    """torch.compile for inspecting graphs: static sizes, and without counting towards the recompile limit of
    code that the model has compiled, where torch can keep the two apart (2.13)."""
    isolated = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    extra: dict[str, Any] = {"isolate_recompiles": True} if isolated else {}
    compiled = torch.compile(model, backend=backend, dynamic=False, **extra)

    def run(*args: Any, **kwargs: Any) -> Any:
        limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
        with torch._dynamo.config.patch({limit: 1024}):
            return compiled(*args, **kwargs)

    return run
