"""How the arguments of diffusers' models determine the grid, and by which class it knows their blocks.

Most do by shapes or integers. Positions do by their values; the names of their arguments stand for classes: a
model that takes `video_coords` is an LTX.
"""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..convert import refusals
from ..grid import GridSizes
from .positions import VideoTokens, largest_raster, raster, runs

# --- By shapes and integers -----------------------------------------------------------------------

# The axes of frames, rows and cols in a five-dimensional `hidden_states`.
_AXES = {
    "CogVideoXTransformer3DModel": (1, 3, 4),
    "ConsisIDTransformer3DModel": (1, 3, 4),
    "AnyFlowTransformer3DModel": (1, 3, 4),
    "Kandinsky5Transformer3DModel": (1, 2, 3),
}
_PACKED = ("num_frames", "height", "width")  # arguments of classes whose hidden_states are (B, N, C)


def by_shapes(model: nn.Module, given: Mapping[str, object]) -> VideoTokens | None:
    """From what is also known in a traced call: the model's configuration, shapes and integers."""
    hidden = given.get("hidden_states")
    if not isinstance(hidden, Tensor):
        return None
    packed = tuple(given.get(name) for name in _PACKED)
    if hidden.dim() == 3 and all(isinstance(size, (int, torch.SymInt)) for size in packed):
        return VideoTokens(packed)  # pyright: ignore[reportArgumentType]
    patch = _patch_size(getattr(model, "config", None))
    if hidden.dim() != 5 or patch is None:
        return None
    axes = _AXES.get(type(model).__name__, (2, 3, 4))
    frames, rows, cols = (hidden.shape[axis] for axis in axes)
    return VideoTokens((-(-frames // patch[0]), rows // patch[1], cols // patch[2]))


def _patch_size(config: object) -> GridSizes | None:
    """(frames, rows, cols) of a patch in a diffusers configuration."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, (tuple, list)) and len(patch) == 3:
        return tuple(patch)
    if isinstance(patch, int):
        return getattr(config, "patch_size_t", None) or 1, patch, patch
    return None


# --- By positions ---------------------------------------------------------------------------------


def _cosmos3(shapes: Sequence, indices: Tensor, text: int, length: int) -> VideoTokens:
    """Items of vision in sequence, each a grid: the largest is the video. Text has blocks of its own."""
    sizes = [math.prod(shape) for shape in shapes]
    item = sizes.index(max(sizes))
    before = sum(sizes[:item])
    if len(runs(indices[before : before + sizes[item], None].cpu())) != 1:
        return VideoTokens(None, why=refusals.scattered("vision_sequence_indexes"))
    frames, rows, cols = map(int, shapes[item])
    return VideoTokens((frames, rows, cols), int(indices[before]) - text, length - text)


def _minimax_h3(positions: Tensor, indices: Tensor) -> VideoTokens:
    """Tokens of all kinds, packed by index."""
    return largest_raster(positions[indices].cpu(), indices.cpu(), len(positions))


def _coordinates(coords: Tensor) -> VideoTokens:
    """(B, 3, N), or (B, 3, N, 2) with the end of each patch."""
    tokens = coords.shape[2]
    places = coords.movedim(2, 0).reshape(tokens, coords.shape[0], 3, -1)[..., 0].cpu()
    if (places != places[:, :1]).any():
        return VideoTokens(None, why=refusals.not_one_grid("video_coords"))
    return largest_raster(places[:, 0], torch.arange(tokens), tokens)


def _tables(hidden: Tensor, tables: Sequence[Tensor]) -> VideoTokens:
    """Rotary tables, for all tokens of hidden (B, N, C): every channel varies along one axis."""
    tokens = hidden.shape[1]
    table = tables[0]
    axis = next((axis for axis in (table.dim() - 2, 1) if table.shape[axis] == tokens), None)
    grid = None if axis is None else raster(table.movedim(axis, 0).reshape(tokens, -1))
    return VideoTokens(grid, why=refusals.not_one_grid("video_rotary_emb"))


# Rules with the names of their arguments; the first rule with all arguments present is used.
POSITIONS = {
    _cosmos3: ("vision_token_shapes", "vision_sequence_indexes", "und_len", "sequence_length"),
    _minimax_h3: ("position_ids", "video_indices"),
    _coordinates: ("video_coords",),
    _tables: ("hidden_states", "video_rotary_emb"),
}


# --- By class -------------------------------------------------------------------------------------


def know_as(made: type, base: type) -> None:
    """Caches (FirstBlockCache, MagCache, SEACache, layer skipping) look blocks up by class: `made`, which
    stands for `base`, is found as that."""
    name = "diffusers.hooks._helpers"
    if base.__module__.startswith("diffusers.") or name in sys.modules:
        try:
            registry = importlib.import_module(name).TransformerBlockRegistry
            registry.register(made, copy.copy(registry.get(base)))
        except (ImportError, AttributeError, ValueError):  # another version, or a block that no cache knows
            pass
