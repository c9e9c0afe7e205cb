"""Dynamo: its guards, counters, capture flags, and compiled calls."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.fx import GraphModule


def compiling() -> object:
    """What tells the compilation of a frame that runs in this thread from others; None for none. Checked on
    torch 2.13."""
    from torch._guards import CompileContext

    return CompileContext.try_get()


def guards_hold() -> bool:
    """Whether guards that are installed now will be checked when what is compiled runs: `aot_compile`
    compiles no frame, and drops guards. Checked on torch 2.13."""
    from torch._guards import CompileContext, TracingContext

    return TracingContext.try_get() is None or CompileContext.current_compile_id() is not None


def guard_on_attribute(package: str, *attributes: str) -> None:
    """Make Dynamo compile the frame that it is compiling again when `package.attribute...` compares unequal.

    Nothing happens outside of a Dynamo compilation. Checked on torch 2.13.
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


@contextmanager
def capturing(*, sizes_that_are_data: bool) -> Iterator[None]:
    """For what Dynamo compiles within: whether `.item()` and `nonzero` are captured, as with fullgraph=True;
    and no graph is cut where a bucket of DistributedDataParallel ends. For this thread. Checked on 2.13.
    """
    changes: dict[str, Any] = {"optimize_ddp": False}
    if sizes_that_are_data:
        changes |= {"capture_scalar_outputs": True, "capture_dynamic_output_shape_ops": True}
    with torch._dynamo.config.patch(changes):
        yield


def capture_failures() -> tuple[type[Exception], ...]:
    """What Dynamo raises where it, and not the code that it compiles, fails. Checked on torch 2.13."""
    from torch._dynamo import exc

    return (exc.TorchDynamoException,)


def forget_compiled() -> None:
    """Compile every frame anew when it runs next, and judge anew which sizes change. Checked on torch 2.13."""
    torch._dynamo.reset_code_caches()


def own_code(function: Callable, name: str) -> Callable:
    """`function`, made anew with each call of its maker, with a code object of its own for each `name`.

    By code object Dynamo counts the versions that it compiled, up to a limit; by its identity it guards it.
    """
    function.__code__ = _named(function.__code__, name)
    return function


@functools.cache
def _named(code: types.CodeType, name: str) -> types.CodeType:
    return code.replace(co_name=name)


def no_frame(function: Callable) -> Callable:
    """`function`, which Dynamo never compiles on its own, but only the functions that it calls. Where it is
    called by what Dynamo compiles, it is traced. Checked on torch 2.13."""
    from torch._dynamo.eval_frame import skip_code

    skip_code(function.__code__)
    return function


def version_of(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written to; None where torch does not count. Checked on torch 2.13."""
    return None if tensor.is_inference() else tensor._version


def frame_version() -> tuple[Any, int, int] | None:
    """Of the frame that Dynamo is compiling: what tells it from others, how many versions it has with this
    one, and how many it may have, past which Dynamo runs it uncompiled. Checked on torch 2.13."""
    from torch._guards import CompileContext

    current = CompileContext.current_compile_id()
    versions = getattr(current, "frame_compile_id", None)
    if versions is None:
        return None
    return getattr(current, "frame_id", None), versions + 1, torch._dynamo.config.recompile_limit


@contextmanager
def unwrapped(kind: type[Exception]) -> Iterator[None]:
    """Within this, while Dynamo compiles, errors of `kind` reach who calls the compiled model as they are.

    Dynamo makes a BackendCompilerFailed of what a backend raises, Inductor an InductorError of what a
    lowering does. Errors that are a ShortenTraceback pass, and are asked, at the end, for the error to raise.
    Checked on torch 2.13.
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
    """The error, or within a compilation one of the same type, and more, that Dynamo lets pass."""
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
    """Have torch.compile itself call `check(backend, mode=..., options=...)`, for backends of a type, with
    what it was given. Torch alone would show it to the backend when the first graph is compiled.

    Where torch lacks the means nothing happens. Checked on torch 2.13.
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


def compiled_with(model: Any) -> tuple[Any, dict[str, Any]] | None:
    """The backend of a compiled model or function and the keywords it is called with (options, mode); None
    for what is not compiled. Of a model whose blocks were compiled, those of the first.

    Checked on torch 2.13.
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
    """What torch.compile put before a function: a cell of the function that it made."""
    if not hasattr(function, "_torchdynamo_orig_callable") or not hasattr(function, "__code__"):
        return None
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return next((cell.cell_contents for name, cell in cells if name == "callback"), None)


def counters() -> Any:
    """Dynamo's counter table: counters()["vsa_compile"]["converted"], ..."""
    from torch._dynamo.utils import counters as table

    return table


def fake_mode_of(module: GraphModule) -> Any | None:
    """The FakeTensorMode of a captured graph's example values."""
    from torch._subclasses.fake_tensor import FakeTensor

    for node in module.graph.nodes:
        example = node.meta.get("example_value", node.meta.get("val"))
        if isinstance(example, FakeTensor):
            return example.fake_mode
    return None


def on_examples(mode: Any, target: Callable | str, *args: Any, **kwargs: Any) -> Any:
    """What a call (a function, or a method by its name) gives on example values, as Dynamo itself computes
    them; adds no guard. Checked on torch 2.13."""
    from torch._dispatch.python import enable_python_dispatcher

    function = getattr(torch.Tensor, target) if isinstance(target, str) else target
    environment = getattr(mode, "shape_env", None)
    unguarded = nullcontext() if environment is None else environment.suppress_guards()
    with mode or nullcontext(), enable_python_dispatcher(), torch.no_grad(), unguarded:
        return function(*args, **kwargs)


@contextmanager
def compiled_by(model: Any, compiler: Callable[[Callable], Callable]) -> Iterator[Callable]:
    """The model, with `compiler` in the place of torch.compile: for the whole of it, or, where blocks of it
    were compiled and it was not (compile_repeated_blocks), for these.

    Afterwards the compiled calls are back, still compiled. Checked on torch 2.13.
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
    """torch.compile for a look at the graphs: static sizes, and no share in the recompile limit of code
    that the model already has compiled, where torch can keep them apart (2.13)."""
    isolated = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    extra: dict[str, Any] = {"isolate_recompiles": True} if isolated else {}
    compiled = torch.compile(model, backend=backend, dynamic=False, **extra)

    def run(*args: Any, **kwargs: Any) -> Any:
        limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
        with torch._dynamo.config.patch({limit: 1024}):
            return compiled(*args, **kwargs)

    return run
