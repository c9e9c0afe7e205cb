"""What a case of the zoo is, and what all of them are made of: inputs, weights, small models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

Grid = tuple[int, int, int]
Built = tuple[nn.Module, Callable[[Grid], dict[str, Any]]]

GRID: Grid = (5, 6, 7)  # (frames, rows, cols) in tokens: all different, none a multiple of 4
OTHER_GRIDS: tuple[Grid, ...] = ((5, 7, 6), (3, 6, 10), (6, 5, 9))  # the first has equal N
TEXT = 11  # tokens of a prompt, its padding included


@dataclass(frozen=True, eq=False)
class Case:
    """One model, how to call it, and what a compiler pass has to find in it.

    `build()` gives the model in eval mode and a function from a grid to its keyword arguments; `of` is
    the model's class, "" where that is plain PyTorch of ours. `sites` counts the video self-attention
    calls. `segments` names the sequences of those calls, each different one once, by their runs in order:
    "video" is the grid, "history" and "copy" are other grids, every other word a run without one.
    `refused` counts the other attention calls by kind: "cross" (queries and keys are different
    sequences), "text", "audio", "spatial", "temporal", "image" (rows and cols, no frames), "mask" (video
    self-attention under a mask between tokens) and "padding" (under one that is not provably open for the
    video). `note` says in a word or two which form of the class this is, `graphs` how many graphs the
    grid and the turned grid take once sizes are symbolic: 2 where the model itself needs numbers, for it
    makes Python lists or tables of them. `how` names each means by which the grid is found: "graph"
    (nobody tells it), "prepare", "video_grid". `tolerance` is how many times more than those of an fp32
    model its results may differ by rounding.
    """

    name: str
    of: str
    build: Callable[[], Built]
    sites: int = 0
    segments: tuple[str, ...] = ("video",)
    refused: dict[str, int] = field(default_factory=dict)
    note: str = ""
    graphs: int = 1
    how: tuple[str, ...] = ("graph",)
    tolerance: float = 1
    grid: Grid = GRID
    other_grids: tuple[Grid, ...] = OTHER_GRIDS

    @property
    def calls(self) -> int:
        """All attention calls of one forward pass."""
        return self.sites + sum(self.refused.values())


class Draw:
    """Random inputs that depend on nothing but the grid."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.frames, self.rows, self.cols = grid
        self.generator = torch.Generator().manual_seed(int.from_bytes(bytes(grid)))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal values."""
        return torch.randn(shape, generator=self.generator)

    def video(self, channels: int = 4, frames: int | None = None) -> Tensor:
        """The latent that patches of (1, 2, 2) turn into the grid: [2, channels, T, height, width]."""
        return self.normal(2, channels, frames or self.frames, 2 * self.rows, 2 * self.cols)

    def noise_levels(self) -> Tensor:
        """One for every frame, none for the first, which is given: [2, T]."""
        return torch.tensor([[7.0], [3.0]]) * (torch.arange(self.frames) > 0)

    def denoise(self, latent: Tensor, **more: Any) -> dict[str, Any]:
        """What every denoiser takes: a latent, embedded prompts [2, TEXT, 24], noise levels [2]."""
        return {
            "hidden_states": latent,
            "encoder_hidden_states": self.normal(2, TEXT, 24),
            "timestep": torch.tensor([7.0, 3.0]),  # small: sin(6000 x) would magnify rounding
            "return_dict": False,
            **more,
        }


def text_mask(*lengths: int, width: int = TEXT) -> Tensor:
    """Ones on the real text tokens of every sample and zeros on its padding: [B, width]."""
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def built(model: nn.Module, inputs: Callable[[Draw], dict[str, Any]]) -> Built:
    """Redraw every parameter, so that no zero-initialised gate or output hides the attention."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and name == "weight":
                noise *= parameter[0].numel() ** -0.5
            elif name == "weight" and parameter.ndim == 1:
                noise = 1 + 0.1 * noise
            elif not isinstance(module, nn.Embedding):
                noise *= 0.2
            parameter.data.copy_(noise)
    return model.eval(), lambda grid: inputs(Draw(grid))


def small(name: str, **config: Any) -> nn.Module:
    """A transformer of diffusers with 3 heads of width 16 and one block, but for its `config`."""
    shape = {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 1}
    return getattr(diffusers, name)(**shape | {"in_channels": 4, "out_channels": 4} | config)
