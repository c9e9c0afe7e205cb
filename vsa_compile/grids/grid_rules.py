"""Rules that tell where the video of a model's call lies: one file for each library, and users' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..errors import ArgumentError, bad_value
from ..grid import GridSizes
from ..options import read_grid
from . import diffusers
from .positions import Reader, VideoTokens

Rule = Callable[[Any, Mapping[str, Any]], VideoTokens | GridSizes | None]

_rules: dict[type, Rule] = {}


def register_grid_rule(cls: type[nn.Module], rule: Rule | None) -> None:
    """How `prepare` learns the token grid of a call of models of class `cls`, and of classes made of it.

    rule(model, arguments) gets the arguments of the call by name and returns (frames, rows, cols) in tokens,
    in raster order, if the sequence of the blocks is that video alone; or `VideoTokens(grid, start, length)`
    if it is tokens start.. of a sequence of `length`; or None where this call shows none. It runs before
    every call outside of all graphs, so that it may read values of tensors (which waits for a GPU).

        vsa_compile.register_grid_rule(MyDiT, lambda model, given: given["grid_sizes"][0].tolist())

    A later rule for the same class replaces the earlier one; None removes it.
    Raises ArgumentError unless `cls` is a class of modules and `rule` can be called.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ArgumentError(bad_value("cls", cls, "a class of torch.nn.Module"))
    if rule is not None and not callable(rule):
        raise ArgumentError(bad_value("rule", rule, "a function (model, arguments) -> (frames, rows, cols)"))
    if rule is None:
        _rules.pop(cls, None)
    else:
        _rules[cls] = rule


def learn(model: nn.Module, given: Mapping[str, Any], reader: Reader | None) -> VideoTokens:
    """Where the video is, by a user's rule, by positions, by shapes; `reader` reads values, None may not.

    Raises OptionError for a grid of a user's rule that is none.
    """
    rule = next((_rules[cls] for cls in type(model).__mro__ if cls in _rules), None)
    if rule is not None and reader is not None:
        found = rule(model, given)
        if found is not None:
            video = found if isinstance(found, VideoTokens) else VideoTokens(found)
            sizes: Any = video.grid.tolist() if isinstance(video.grid, Tensor) else video.grid
            return video if sizes is None else replace(video, grid=tuple(read_grid(sizes)))
    video = None if reader is None else reader.video(diffusers.POSITIONS, given)
    return video or diffusers.by_shapes(model, given) or VideoTokens(None)
