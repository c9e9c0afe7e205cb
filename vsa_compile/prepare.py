"""`prepare(model)`: tells graphs that hide the grid of their tokens what it is, and keeps graphs whole.

Blocks that are compiled one by one, graphs behind a break, and models that get their positions as data show
no (frames, rows, cols). A prepared model learns them at run time and marks what enters its blocks.
May be imported by everything above ops; imports errors, state and torch_compat.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .errors import ArgumentError, bad_value
from .state import state
from .torch_compat import capturing_data_dependent, known_equal

Model = TypeVar("Model", bound=nn.Module)
Grid = tuple[int, int, int]


class Learned:
    """The grid of the call that runs. A plain object, no module: Dynamo makes its ints symbolic."""

    def __init__(self) -> None:
        self.grid: Grid | None = None
        self.images: tuple[int, int, int] | None = None  # batch * frames, rows, cols

    def learn(self, grid: Grid) -> None:
        self.grid = grid
        state.grid = grid  # for graphs that hold nothing but q, k and v


def prepare(model: Model) -> Model:
    """Make `model` tell its graphs the token grid, whichever part of it is compiled; returns the model.

    Call it once, before anything runs, on a transformer that is compiled block by block
    (`compile_repeated_blocks`), or that `explain` says hides its grid. The grid of a call is read from the
    model's inputs where its class has a rule, or from its patch embedding (the first convolution whose kernel
    is its stride). Also lets Dynamo capture `.item()` and `nonzero` inside the model, which keeps models
    whole that pick their text tokens by a mask. The uncompiled model computes what it did.
    Raises ArgumentError if `model` is no torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(bad_value("model", type(model).__name__, "a torch.nn.Module"))
    inner: nn.Module = getattr(model, "_orig_mod", model)
    if not hasattr(inner, _PREPARED):
        learned = Learned()
        object.__setattr__(inner, _PREPARED, learned)
        for block in _blocks(inner):
            _wrap(block, lambda forward: _marking(forward, learned))
        _watch_patches(inner, learned)
        _wrap(inner, lambda forward: _learning(forward, learned))
    return model


_PREPARED = "_vsa_compile_prepared"


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            yield from module


def _wrap(module: nn.Module, wrapper: Callable[[Callable], Callable]) -> None:
    """Replace the forward of this one module. (Hooks would be frames of their own to Dynamo, where a block
    is compiled alone.)"""
    forward = module.__dict__.get("forward")
    if forward is None:  # bound, so that a deep copy calls its own
        module.forward = types.MethodType(wrapper(type(module).forward), module)
    else:  # somebody has taken its place, with an unbound function
        module.forward = types.MethodType(
            wrapper(lambda _, *args, **kwargs: forward(*args, **kwargs)), module
        )


# --- Learning ------------------------------------------------------------------------------------


def _learning(forward: Callable, learned: Learned) -> Callable:
    forward = capturing_data_dependent(forward)

    @functools.wraps(forward)
    def learning_forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = state.grid
        learned.grid = learned.images = None
        grid = _from_inputs(model, args, kwargs)
        if grid is not None:
            learned.learn(grid)
        try:
            return forward(model, *args, **kwargs)
        finally:
            state.grid = before

    return learning_forward


def _watch_patches(model: nn.Module, learned: Learned) -> None:
    """Learn from the first convolution of two or three dimensions whose kernel is its stride."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.kernel_size == module.stride:

            def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
                if learned.grid is None and isinstance(module, nn.Conv3d):
                    learned.learn(tuple(output.shape[-3:]))  # pyright: ignore[reportArgumentType]
                elif learned.grid is None:
                    learned.images = (output.shape[0], output.shape[-2], output.shape[-1])

            module.register_forward_hook(hook)
            return


# --- Marking -------------------------------------------------------------------------------------


def _marking(forward: Callable, learned: Learned) -> Callable:
    """Marks the first tensor that enters a block and is as long as the video."""

    @functools.wraps(forward)
    def marking_forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            args, kwargs = _mark_first(args, kwargs, learned)
        return forward(block, *args, **kwargs)

    return marking_forward


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
    if not isinstance(value, Tensor) or value.dim() != 3:
        return None
    grid = learned.grid
    if grid is None and learned.images is not None:
        images, rows, cols = learned.images
        grid = (images // value.shape[0], rows, cols)
    if grid is None or not known_equal(value.shape[1], grid[0] * grid[1] * grid[2]):
        return None
    return torch.ops.vsa.hint(value, list(grid))


# --- What classes say of their inputs ------------------------------------------------------------

# Where frames, rows and cols are in the shape of a five-dimensional `hidden_states`.
_AXES = {
    "CogVideoXTransformer3DModel": (1, 3, 4),
    "ConsisIDTransformer3DModel": (1, 3, 4),
    "AnyFlowTransformer3DModel": (1, 3, 4),
    "Kandinsky5Transformer3DModel": (1, 2, 3),
}
_PACKED = ("num_frames", "height", "width")  # of classes whose hidden_states are (B, N, C)


def _from_inputs(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Grid | None:
    """The grid by the model's configuration and the shapes of its inputs, if both are of a known kind."""
    hidden = kwargs.get("hidden_states", args[0] if args else None)
    if not isinstance(hidden, Tensor):
        return None
    packed = tuple(kwargs.get(name) for name in _PACKED)
    if hidden.dim() == 3 and all(isinstance(size, (int, torch.SymInt)) for size in packed):
        return packed  # pyright: ignore[reportReturnType]
    patch = _patch_size(getattr(model, "config", None))
    if hidden.dim() != 5 or patch is None:
        return None
    axes = _AXES.get(type(model).__name__, (2, 3, 4))
    frames, rows, cols = (hidden.shape[axis] for axis in axes)
    return -(-frames // patch[0]), rows // patch[1], cols // patch[2]


def _patch_size(config: Any) -> Grid | None:
    """(frames, rows, cols) of a patch as diffusers' configurations spell it."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, (tuple, list)) and len(patch) == 3:
        return tuple(patch)
    if isinstance(patch, int):
        return getattr(config, "patch_size_t", None) or 1, patch, patch
    return None
