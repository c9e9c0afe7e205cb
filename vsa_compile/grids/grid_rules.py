"""Rules that find the video in a model's call: one file per library, and users' own rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..errors import ArgumentError, bad_value
from ..grid import GridSizes
from ..options import read_hint
from . import diffusers
from .positions import Reader, VideoTokens

Rule = Callable[[Any, Mapping[str, Any]], VideoTokens | GridSizes | None]

_rules: dict[type, Rule] = {}


def register_grid_rule(cls: type[nn.Module], rule: Rule | None) -> None:
    """Register how `prepare` learns the token grid of calls of models of class `cls` and its subclasses.

        vsa_compile.register_grid_rule(MyDiT, lambda model, given: given["grid_sizes"][0].tolist())

    rule(model, arguments) gets the arguments of the call by name. It returns (frames, rows, cols) in tokens,
    raster order, if the sequence of the blocks is the video alone; `VideoTokens(grid, start, length)` if the
    video is tokens start.. of a sequence of `length`; or None if the call shows no video. It runs before
    every call, outside of all graphs, so it may read the values of tensors (for which the host waits). A call
    raises OptionError if the video of its rule has no valid grid, or does not fit into its sequence.

    A later rule for the same class replaces the earlier one; None removes it.
    Raises ArgumentError unless `cls` is a subclass of torch.nn.Module and `rule` is callable.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ArgumentError(bad_value("cls", cls, "a class of torch.nn.Module"))
    if rule is not None and not callable(rule):
        raise ArgumentError(bad_value("rule", rule, "a function (model, arguments) -> (frames, rows, cols)"))
    if rule is None:
        _rules.pop(cls, None)
    else:
        _rules[cls] = rule


def learn(model: nn.Module, given: Mapping[str, object], reader: Reader | None) -> VideoTokens:
    """Where the video is: by a user's rule, by positions of known names, by shapes, or by whatever tensor has
    the positions of a grid, in this order.

    `reader` reads values; None: values may not be read, as in a traced call.
    Raises OptionError if a user's rule returns no valid grid, or a place where the grid does not fit.
    """
    rule = next((_rules[cls] for cls in type(model).__mro__ if cls in _rules), None)
    if rule is not None and reader is not None:
        found = rule(model, given)
        if found is not None:
            return _checked(found if isinstance(found, VideoTokens) else VideoTokens(found))
    video = None if reader is None else reader.video(diffusers.POSITIONS, given)
    video = video or diffusers.by_shapes(model, given)
    if video is None and reader is not None:
        video = reader.by_any(given)
    return video or VideoTokens(None)


def _checked(video: VideoTokens) -> VideoTokens:
    """What a user's rule returned, as plain numbers. Raises OptionError; a graph would later fail at the
    same, as if by a defect of ours."""
    sizes: Any = video.grid.tolist() if isinstance(video.grid, Tensor) else video.grid
    if sizes is None:
        return video
    grid, start, length = read_hint(sizes, video.start, video.length, "VideoTokens")
    return replace(video, grid=grid, start=start, length=length)
