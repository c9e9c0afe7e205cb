"""`prepare(model)`: tells graphs that hide the grid of their tokens what it is, and keeps graphs whole.

Blocks that are compiled one by one, graphs after a break, and models that get positions as data do not show
(frames, rows, cols). A prepared model learns them at every call, as a value of that call: its blocks mark
their input while the call runs, in its thread, and while a backward recomputes it; never later.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..convert.refusals import not_learned, not_learned_of_these
from ..errors import ArgumentError, bad_value, captured_in_vain
from ..grid import GridSizes
from ..runtime.calls import ModelCall, running
from ..torch_compat import capture_failures, capturing, forget_compiled, known_equal, no_frame, own_code
from .grid_rules import learn
from .interception import Prepared, intercept, prepared_as, release
from .positions import VideoTokens
from .recompute import resume_in_backward
from .volumes import of_volume

Model = TypeVar("Model", bound=nn.Module)


def prepare(model: Model) -> Model:
    """Make `model` tell its graphs the token grid, whichever part of it is compiled; returns the model.

        vsa_compile.prepare(model)
        model.compile_repeated_blocks(backend="vsa")

    Call it once, before anything runs, for a transformer that is compiled block by block, or whose grid is
    hidden according to `explain`. The grid of a call is learned from the model's inputs if there is a rule
    (`register_grid_rule`), if their shapes show it, or if one of them, also in a dataclass, a dictionary or a
    list, holds positions of three axes in raster order, whatever its name; else from the patch embedding
    (the first convolution whose kernel is its stride), or, where that is a linear layer, from the size of its
    patches and the only five-dimensional argument. Positions that are data (coordinates, rotary tables,
    token indices) are read once per tensor, for which the host waits; compile the model itself or its blocks
    in that case, not code that calls it.

    The grid belongs to the call that learned it and to backwards that recompute this call, so threads and
    resolutions do not mix. It applies to everything inside this call: if that includes another compiled model
    with as many tokens, in an order that no graph shows, prepare that one too. If something bypasses the
    model's forward (by assigning another one to the module), the blocks learn nothing and stay dense, with
    that reason; call `prepare` again afterwards.

    Dynamo also captures `.item()` and `nonzero` inside the model, which keeps models in one graph that select
    text tokens by a mask; if Dynamo fails at that, a warning says so and the model runs without. And Dynamo
    splits no graph at the buckets of DistributedDataParallel; compile the blocks there, so that communication
    overlaps with computation. The uncompiled model computes what it did. Copies and pickles are prepared too,
    independently of the original. `unprepare(model)` undoes it.

    The model and its blocks become instances of subclasses of their classes, of the same names: `isinstance`
    holds, `type(block) is Block` does not. What needs the very classes comes first, or after `unprepare`:
    torch.fx.symbolic_trace, torch.jit.script, remove_parametrizations, torch.func.stack_module_state.
    Raises ArgumentError if `model` is no torch.nn.Module.
    """
    inner = _plain(model)
    prepared = prepared_as(inner, _learning) or Prepared()
    for block in _blocks(inner):
        intercept(block, _marking, prepared)
    _watch_patches(inner, prepared)
    intercept(inner, _learning, prepared)
    return model


def unprepare(model: Model) -> Model:
    """Undo `prepare(model)`; returns the model. A model that is not prepared stays as it is.

    Raises ArgumentError if `model` is no torch.nn.Module.
    """
    inner = _plain(model)
    prepared = prepared_as(inner, _learning)
    if prepared is not None:
        prepared.undone = True
        for module in inner.modules():
            release(module, prepared)
            for key, hook in [*module._forward_hooks.items()]:
                if isinstance(hook, _PatchWatcher) and hook.prepared is prepared:
                    del module._forward_hooks[key]
    return model


def preparation_of(model: nn.Module) -> Prepared | None:
    """What the blocks of a prepared model share; None if the model is not prepared.

    Raises ArgumentError if `model` is no torch.nn.Module.
    """
    return prepared_as(_plain(model), _learning)


def attention_of(model: object) -> Callable[..., Tensor] | None:
    """What runs the eager attention calls of a model, or of its compiled form, that `patch_attention` got."""
    plain = getattr(model, "_orig_mod", model)
    prepared = preparation_of(plain) if isinstance(plain, nn.Module) else None
    return prepared.attention if prepared is not None else None


def _plain(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ArgumentError(bad_value("model", type(model).__name__, "a torch.nn.Module"))
    return getattr(model, "_orig_mod", model)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost module lists, except plain layers, which get what a block computed."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            plain = (getattr(block, "_orig_mod", block) for block in child)
            yield from (block for block in plain if any(True for _ in block.children()))
        else:
            yield from _blocks(child)


# --- Learning ------------------------------------------------------------------------------------


def _learning(forward: Callable, prepared: Prepared, cls: type) -> Callable:
    names = [*inspect.signature(cls.forward).parameters][1:]
    handed = own_code(_handed(forward), prepared.name(cls))
    whole = no_frame(_whole(handed, prepared))
    disable: Any = torch.compiler.disable
    begin, end = disable(_begin), disable(_end)

    def learning_forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if prepared.undone:
            return forward(model, *args, **kwargs)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if torch.compiler.is_compiling():
            call, before = ModelCall(prepared.number, attention=prepared.attention), running.now
            _tell(call, learn(model, given, None))
            running.now = call
            try:
                return handed(model, call, *args, **kwargs)
            finally:
                running.now = before
        call, leave = begin(model, prepared, given)
        out = None
        try:
            out = whole(model, call, *args, **kwargs)
        finally:
            end(call, leave, out)
        return out

    # Uncompiled, it can read values. If compiled code calls the model, it is traced nevertheless.
    return no_frame(learning_forward)


def _begin(
    model: nn.Module, prepared: Prepared, given: dict[str, object]
) -> tuple[ModelCall, Callable[[], None]]:
    call = ModelCall(prepared.number, attention=prepared.attention)
    video = learn(model, given, prepared.reader)
    if video.grid is None and not video.why and not prepared.watches:
        video = of_volume(model, given) or video
    _tell(call, video)
    return call, running.begin(call)


def _end(call: ModelCall, leave: Callable[[], None], out: object) -> None:
    leave()
    resume_in_backward(call, out)


def _tell(call: ModelCall, video: VideoTokens) -> None:
    call.grid, call.start, call.length = video.grid, video.start, video.length
    call.why = not_learned(video.why) if video.grid is None else not_learned_of_these()


def _handed(forward: Callable) -> Callable:
    """Pass what was learned as an argument: Dynamo can make ints of an argument symbolic, while ints that it
    first meets in a closure or on a module are constants."""

    def handed(module: nn.Module, call: ModelCall, *args: Any, **kwargs: Any) -> Any:
        return forward(module, *args, **kwargs) if call.met else None

    return handed


def _whole(handed: Callable, prepared: Prepared) -> Callable:
    """`handed`, with Dynamo capturing data-dependent sizes unless it fails at that. No graph is split at the
    buckets of DistributedDataParallel, which would separate marks from their attention calls."""

    settings = no_frame(capturing)  # under fullgraph=True, Dynamo fails at frames that it would else skip

    def whole(*args: Any, **kwargs: Any) -> Any:
        if prepared.captures:
            try:
                with settings(sizes_that_are_data=True):
                    return handed(*args, **kwargs)
            except capture_failures() as error:
                forget_compiled()  # else frames that were compiled before the failure lead to it again
                with settings(sizes_that_are_data=False):
                    out = handed(*args, **kwargs)  # raises again if capturing is not the cause
                prepared.captures = False
                warnings.warn(captured_in_vain(type(args[0]).__name__, str(error)), stacklevel=3)
                return out
        with settings(sizes_that_are_data=False):
            return handed(*args, **kwargs)

    return whole


class _PatchWatcher:
    """A forward hook of the first convolution whose kernel is its stride: learns the grid from its output."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        call = running.now
        if call is None or call.model != self.prepared.number or call.grid is not None:
            return
        if isinstance(module, nn.Conv3d):
            _tell(call, VideoTokens(tuple(output.shape[-3:])))  # pyright: ignore[reportArgumentType]
        else:
            call.images = (output.shape[0], output.shape[-2], output.shape[-1])


def _watch_patches(model: nn.Module, prepared: Prepared) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.kernel_size == module.stride:
            prepared.watches = True
            hooks = [hook for hook in module._forward_hooks.values() if isinstance(hook, _PatchWatcher)]
            if not any(hook.prepared is prepared for hook in hooks):
                module.register_forward_hook(_PatchWatcher(prepared))
            return


# --- Marking -------------------------------------------------------------------------------------


def _marking(forward: Callable, prepared: Prepared, cls: type) -> Callable:
    """Marks the first tensor that enters a block and is as long as the video of the running call, unless
    another tensor of its shape enters too."""
    calls, number = running, prepared.number  # in a closure: Dynamo takes ints of globals for constants

    def marking_forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            call = calls.now
            if call is not None and call.model == number:
                args, kwargs = _mark_first(args, kwargs, call)
        return forward(block, *args, **kwargs)

    return own_code(marking_forward, prepared.name(cls))


def _mark_first(args: tuple, kwargs: dict[str, Any], call: ModelCall) -> tuple[tuple, dict[str, Any]]:
    named = {**dict(enumerate(args)), **kwargs}
    fit = [name for name, value in named.items() if _grid_of(value, call) is not None]
    if not fit:
        return args, kwargs
    first, *others = fit
    # Text of the same shape as the video: nothing tells which of the two is the video.
    if any(named[name].shape == named[first].shape and named[name] is not named[first] for name in others):
        return args, kwargs
    start = None if call.length is None else call.start
    named[first] = torch.ops.vsa_compile.hint(named[first], list(_grid_of(named[first], call) or ()), start)
    return tuple(named[index] for index in range(len(args))), {name: named[name] for name in kwargs}


def _grid_of(value: object, call: ModelCall) -> GridSizes | None:
    """The learned grid, if `value`, (B, N, C) or (N, C), is as long as the sequence that holds the video."""
    if not isinstance(value, Tensor) or value.dim() not in (2, 3):
        return None
    grid = call.grid
    if grid is None and call.images is not None and value.dim() == 3:
        images, rows, cols = call.images
        grid = (images // value.shape[0], rows, cols)
    if grid is None:
        return None
    length = grid[0] * grid[1] * grid[2] if call.length is None else call.length
    return grid if known_equal(value.shape[-2], length) else None
