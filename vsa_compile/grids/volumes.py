"""The grid of the volume that a model is given, for patch embeddings that are linear layers.

A convolution shows the grid in what it returns; of a linear layer only the size of a patch is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..grid import GridSizes
from .positions import VideoTokens, is_plain

_CHANNELS = ("in_channels", "in_dim", "in_chans", "num_channels_latents")
# For each dimension of (B, ., ., ., .) that may be the channels: where frames, rows and cols are then.
_AXES = {1: (2, 3, 4), 2: (1, 3, 4), 4: (1, 2, 3)}


def of_volume(model: nn.Module, given: Mapping[str, object]) -> VideoTokens | None:
    """The grid of the only five-dimensional argument, or of a list of (C, T, H, W) that are alike, in tokens.

    The model, its configuration or one of its modules says how large a patch is, (frames, rows, cols); the
    model or its configuration how many channels there are, which tells their dimension. None if something is
    not known for sure.
    """
    owners = [_attribute(model, "config"), model]
    counts = [_attribute(owner, name) for owner in owners for name in _CHANNELS]
    channels = {count for count in counts if isinstance(count, int)}
    patches = {patch for owner in (*owners, *model.modules()) if (patch := _patch(owner)) is not None}
    shapes = {shape for value in given.values() if (shape := _shape(value)) is not None}
    if len(patches) != 1 or len(shapes) != 1:
        return None
    (patch,), (shape,) = patches, shapes
    found = [axes for at, axes in _AXES.items() if shape[at] in channels]
    if len(found) != 1:
        return None
    sizes = [(shape[axis], extent) for axis, extent in zip(found[0], patch, strict=True)]
    if any(size % extent for size, extent in sizes):
        return None
    frames, rows, cols = (size // extent for size, extent in sizes)
    return VideoTokens((frames, rows, cols))


def _attribute(owner: object, name: str) -> Any:
    """An attribute of a user's object; None if there is none, or if asking for it fails."""
    try:
        return getattr(owner, name, None)
    except Exception:  # a property or a configuration of theirs
        return None


def _patch(owner: object) -> GridSizes | None:
    """The patch size of a model, a configuration or a module, if it has three axes."""
    value = _attribute(owner, "patch_size")
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        return None
    return tuple(value) if all(isinstance(one, int) and one > 0 for one in value) else None  # pyright: ignore[reportReturnType]


def _shape(value: object) -> tuple[int, ...] | None:
    """(B, ., ., ., .) of a volume, or of a list of alike volumes without a batch."""
    if isinstance(value, Tensor) and is_plain(value) and value.dim() == 5:
        return tuple(value.shape)
    items = value if isinstance(value, (list, tuple)) else ()
    tensors = [one for one in items if isinstance(one, Tensor) and is_plain(one)]
    alike = {tuple(one.shape) for one in tensors if one.dim() == 4}
    return (len(items), *alike.pop()) if len(alike) == 1 and len(tensors) == len(items) else None
