"""`prepare(model)`: tells graphs that hide the grid of their tokens what it is, and keeps graphs whole.

Blocks that are compiled one by one, graphs behind a break, and models that get their positions as data show
no (frames, rows, cols). A prepared model learns them at run time and marks what enters its blocks.
May be imported by everything above ops; imports errors, inputs, state and torch_compat.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..convert.refusals import not_learned, not_learned_of_these
from ..errors import ArgumentError, bad_value
from ..runtime.state import state
from ..torch_compat import capturing_data_dependent, known_equal, no_frame, own_code, uncut_by_ddp
from .positions import Grid, Reader, Video, by_shapes

Model = TypeVar("Model", bound=nn.Module)


class Learned:
    """Where the video is in the call that runs. A plain object, no module: Dynamo makes its ints symbolic."""

    def __init__(self) -> None:
        self.reader = Reader()
        self.met = True  # see _handed
        self.forget()

    def forget(self) -> None:
        self.grid: Grid | None = None
        self.start = 0
        self.length: int | None = None  # of the sequence; None if that is the video alone
        self.images: tuple[int, int, int] | None = None  # batch * frames, rows, cols

    def learn(self, video: Video) -> None:
        self.grid, self.start, self.length = video.grid, video.start, video.length
        state.why = not_learned(video.why) if video.grid is None else not_learned_of_these()
        if video.grid is not None:
            state.grid = video.grid  # for graphs that hold nothing but q, k and v


def prepare(model: Model) -> Model:
    """Make `model` tell its graphs the token grid, whichever part of it is compiled; returns the model.

    Call it once, before anything runs, on a transformer that is compiled block by block
    (`compile_repeated_blocks`), or that `explain` says hides its grid. The grid of a call is read from the
    model's inputs where its class has a rule, or from its patch embedding (the first convolution whose kernel
    is its stride). Positions that are data (coordinates, rotary tables, token indices) are read once for each
    tensor, which waits for the device; compile the model itself or its blocks for that, not what calls it.
    Also lets Dynamo capture `.item()` and `nonzero` inside the model, which keeps models whole that pick
    their text tokens by a mask, and lets Dynamo cut no graph by the buckets of DistributedDataParallel: there
    compile the blocks, so that gradients are sent while others are computed. The uncompiled model computes
    what it did.
    Raises ArgumentError if `model` is no torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(bad_value("model", type(model).__name__, "a torch.nn.Module"))
    inner: nn.Module = getattr(model, "_orig_mod", model)
    if not hasattr(inner, _PREPARED):
        learned = Learned()
        object.__setattr__(inner, _PREPARED, learned)
        for block in _blocks(inner):
            _wrap(block, _marking, learned)
        _watch_patches(inner, learned)
        _wrap(inner, _learning, learned)
    return model


_PREPARED = "_vsa_compile_prepared"


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost module lists, but for plain layers: those are handed what a block computed."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.children()))
        else:
            yield from _blocks(child)


def _wrap(module: nn.Module, wrapper: Callable[..., Callable], learned: Learned) -> None:
    """Replace the forward of this one module. (Hooks would be frames of their own to Dynamo, where a block
    is compiled alone.)"""
    forward, name = module.__dict__.get("forward"), f"{type(module).__name__}_forward"
    if forward is None:  # bound, so that a deep copy calls its own
        wrapped = wrapper(type(module).forward, learned, name)
    else:  # somebody has taken its place, with an unbound function
        wrapped = wrapper(lambda _, *args, **kwargs: forward(*args, **kwargs), learned, name)
    module.forward = types.MethodType(wrapped, module)


# --- Learning ------------------------------------------------------------------------------------


def _learning(forward: Callable, learned: Learned, name: str) -> Callable:
    names = [*inspect.signature(forward).parameters][1:]
    uncompiled: Callable = torch.compiler.disable(_learn_from)
    handed = capturing_data_dependent(_handed(forward), name)
    uncut = uncut_by_ddp(handed)

    @functools.wraps(forward)
    def learning_forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = state.grid, state.why
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if torch.compiler.is_compiling():
            run = handed
            _learn_from(learned, model, given, read=False)
        else:
            run = uncut
            uncompiled(learned, model, given, read=True)  # pyright: ignore[reportCallIssue]
        try:
            return run(model, learned, *args, **kwargs)
        finally:
            state.grid, state.why = before

    # Uncompiled, it can read values. Where compiled code calls the model it is traced all the same.
    return no_frame(learning_forward)


def _handed(forward: Callable) -> Callable:
    """Takes what was learned as an argument. To Dynamo the ints of an argument may be symbolic, those that it
    first meets in a closure or behind a module are constants."""

    def handed(module: nn.Module, learned: Learned, *args: Any, **kwargs: Any) -> Any:
        return forward(module, *args, **kwargs) if learned.met else None

    return handed


def _learn_from(learned: Learned, model: nn.Module, given: dict[str, Any], *, read: bool) -> None:
    """`read`: whether the values of tensors may be looked at."""
    learned.forget()
    video = learned.reader.video(given) if read else None
    learned.learn(video or by_shapes(model, given) or Video(None))


def _watch_patches(model: nn.Module, learned: Learned) -> None:
    """Learn from the first convolution of two or three dimensions whose kernel is its stride."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.kernel_size == module.stride:

            def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
                if learned.grid is None and isinstance(module, nn.Conv3d):
                    learned.learn(Video(tuple(output.shape[-3:])))  # pyright: ignore[reportArgumentType]
                elif learned.grid is None:
                    learned.images = (output.shape[0], output.shape[-2], output.shape[-1])

            module.register_forward_hook(hook)
            return


# --- Marking -------------------------------------------------------------------------------------


def _marking(forward: Callable, learned: Learned, name: str) -> Callable:
    """Marks the first tensor that enters a block and is as long as the video."""

    @functools.wraps(forward)
    def marking_forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            args, kwargs = _mark_first(args, kwargs, learned)
        return forward(block, *args, **kwargs)

    return own_code(marking_forward, name)


def _mark_first(args: tuple, kwargs: dict[str, Any], learned: Learned) -> tuple[tuple, dict[str, Any]]:
    for index, value in enumerate(args):
        marked = _marked(value, learned)
        if marked is not None:
            return (*args[:index], marked, *args[index + 1 :]), kwargs
    for name, value in kwargs.items():
        marked = _marked(value, learned)
        if marked is not None:
            return args, {**kwargs, name: marked}
    return args, kwargs


def _marked(value: Any, learned: Learned) -> Tensor | None:
    """(B, N, C) or (N, C), marked if N is the length of the sequence that holds the video."""
    if not isinstance(value, Tensor) or value.dim() not in (2, 3):
        return None
    grid = learned.grid
    if grid is None and learned.images is not None and value.dim() == 3:
        images, rows, cols = learned.images
        grid = (images // value.shape[0], rows, cols)
    if grid is None:
        return None
    alone = learned.length is None
    length = grid[0] * grid[1] * grid[2] if alone else learned.length
    if not known_equal(value.shape[-2], length):
        return None
    return torch.ops.vsa_compile.hint(value, list(grid), None if alone else learned.start)
