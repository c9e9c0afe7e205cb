"""What to measure: the command line's arguments, checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ... import errors
from ...errors import OptionError
from ...grid import Grid, Tile

Item = TypeVar("Item")
Number = TypeVar("Number", int, float)

TILE: Tile = (4, 4, 4)

# What is timed; the texts are for --help and the JSON.
PARTS = {
    "forward": "the fine attention over given lists of tiles (dense: SDPA)",
    "backward": "the gradients of q, k and v of the same",
    "coarse": "pooling, scores, selection and the coarse output (ours alone)",
    "whole": "the whole operator with a gate: coarse, selection, fine, combined (dense: SDPA)",
    "whole-training": "the same, forward and backward",
    "block": "a transformer block of 12 C^2 weights, C = heads * width, compiled",
    "block-training": "the same, forward and backward",
}
CONTENDERS = ("cudnn", "flash", "flex", "vsa", "tiled")
LISTS = ("random", "local", "ragged")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# Wan and HunyuanVideo at 720p, with and without partial tiles; on a CPU, what takes a minute.
_SHAPES = {"cuda": "32x32x32,20x48x80,21x45x80,33x45x80", "cpu": "8x16x16,9x15x17"}
_WIDTHS = {"cuda": "64,128", "cpu": "64"}
_HEADS = {"cuda": 16, "cpu": 4}
_REPEATS = {"cuda": 30, "cpu": 5}
_QUICK = {"widths": "64", "densities": "0.125", "lists": "random", "repeats": 3}


@dataclass(frozen=True)
class Plan:
    """Everything that a run of the benchmark was asked for. density: the share of tiles that a row lists."""

    device: torch.device
    dtype: torch.dtype
    shapes: tuple[Grid, ...]
    widths: tuple[int, ...]
    densities: tuple[float, ...]
    lists: tuple[str, ...]
    parts: tuple[str, ...]
    contenders: tuple[str, ...]
    heads: int
    repeats: int
    quick: bool
    autotune: bool
    out: Path
    tile: Tile = TILE

    @classmethod
    def read(cls, given: Any) -> Plan:
        """Read argparse's namespace, in which None stands for the device's default.

        Raises OptionError, which names what came and what is allowed.
        """
        device = read_device(given.device)
        quick: dict[str, Any] = _QUICK if given.quick else {}

        def text(name: str, default: str) -> str:
            came = getattr(given, name)
            return quick.get(name, default) if came is None else came

        shapes = _SHAPES[device.type]
        return cls(
            device=device,
            dtype=DTYPES[given.dtype or ("bf16" if device.type == "cuda" else "fp32")],
            shapes=_several(
                "--shapes", text("shapes", shapes.split(",")[0] if quick else shapes), _grid, errors.GRIDS
            ),
            widths=_several("--widths", text("widths", _WIDTHS[device.type]), _width, errors.WIDTHS),
            densities=_several("--densities", text("densities", "0.0625,0.125,0.25"), _share,
                               errors.DENSITIES),
            lists=_names("kind of lists", text("lists", "random,local"), LISTS),
            parts=_names("part", text("parts", ",".join(PARTS)), PARTS),
            contenders=_names("contender", text("contenders", ",".join(CONTENDERS)), CONTENDERS),
            heads=_count("--heads", _HEADS[device.type] if given.heads is None else given.heads),
            repeats=_count("--repeats", quick.get("repeats", _REPEATS[device.type]) if given.repeats is None
                           else given.repeats),
            quick=given.quick,
            autotune=given.autotune,
            out=Path(given.out),
        )  # fmt: skip

    def described(self) -> dict[str, object]:
        """The plan as JSON values."""
        return {
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shapes": [str(shape) for shape in self.shapes],
            "widths": list(self.widths),
            "heads": self.heads,
            "batch": 1,
            "tile": list(self.tile),
            "densities": list(self.densities),
            "lists": list(self.lists),
            "parts": {part: PARTS[part] for part in self.parts},
            "contenders": list(self.contenders),
            "repeats": self.repeats,
            "quick": self.quick,
            "autotune": self.autotune,
        }


def read_device(name: str | None) -> torch.device:
    """The requested device; by default the GPU if there is one."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cuda", "cpu"):
        raise OptionError(errors.bad_value("--device", name, "cuda or cpu"))
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError(errors.no_cuda(torch.__version__))
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def _several(name: str, text: str, read: Callable[[str], Item], allowed: str) -> tuple[Item, ...]:
    """The values between the commas, in order, without repetition."""
    try:
        return tuple(dict.fromkeys(read(item) for item in text.split(",")))
    except ValueError as error:
        raise OptionError(errors.bad_value(name, text, allowed)) from error


def _names(kind: str, text: str, known: Sequence[str] | dict[str, str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in known:
            raise OptionError(errors.unknown_name(kind, name, known))
    return names


def _within(value: Number, least: float, most: float) -> Number:
    if not least <= value <= most:
        raise ValueError(value)
    return value


def _grid(text: str) -> Grid:
    frames, rows, cols = (_within(int(size), 1, 1 << 16) for size in text.split("x"))
    return Grid(frames, rows, cols)


def _width(text: str) -> int:
    return _within(int(text), 1, 256)


def _share(text: str) -> float:
    """0 would be no attention, and 1 dense attention."""
    return _within(float(text), 1e-4, 0.9999)


def _count(name: str, value: int) -> int:
    if value < 1:
        raise OptionError(errors.bad_value(name, value, "an integer >= 1"))
    return value
