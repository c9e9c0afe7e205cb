"""The backend's options: checked, frozen, and comparable, as Dynamo compares them to decide on recompiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, TypeGuard

import torch

from .errors import OptionError, bad_value, unknown_name
from .grid import Grid, Hint, Tile
from .plan.schedule import SparsitySchedule

FALLBACKS = ("dense", "error")


class OptionsDict(TypedDict, total=False):
    """The options by name, as a user writes them; see `Options` for their meaning."""

    sparsity: float | SparsitySchedule
    method: str
    tile: Sequence[int]
    min_tokens: int | None
    dense_layers: Sequence[int]
    grid: Sequence[int] | None
    fallback: Literal["dense", "error"]
    mode: str | None
    inductor: Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """The options of `torch.compile(model, backend="vsa", options={...})`.

    sparsity: share of query-key work NOT computed, from 0 (dense SDPA) to below 1; or a SparsitySchedule.
    method: "vsa", "bsa", "sta", or a name given to `vsa_compile.register_method`.
    tile: (frames, rows, cols) tokens of a tile.
    min_tokens: calls with fewer video tokens stay dense. None: the size from which the kernel at hand is
        known to beat dense attention, by a measured table that `python -m vsa_compile doctor` shows.
    dense_layers: transformer blocks that stay dense. An index means the block of that index in every list of
        blocks of the model; a module path ("single_transformer_blocks.1") means that module and everything
        in it. Where a path has several numbers ("stages.0.blocks.11"), only paths are unambiguous.
    grid: (frames, rows, cols) in tokens, for graphs that do not show it.
    fallback: "dense", or "error" to raise when a call that looks like video attention is refused.
    mode: as torch.compile's mode ("max-autotune", "reduce-overhead", ...).
    inductor: config patches that are passed to Inductor unchanged, kept as sorted pairs.

        vsa_compile.Options(sparsity=0.9, dense_layers=(0, 1))

    Values are brought into one form, so that equal options compare equal. Raises OptionError, which names
    the value that came and what is allowed.
    """

    sparsity: float | SparsitySchedule = 0.875
    method: str = "vsa"
    tile: Tile = (4, 4, 4)
    min_tokens: int | None = None
    dense_layers: tuple[int | str, ...] = ()
    grid: Grid | None = None
    fallback: str = "dense"
    mode: str | None = None
    inductor: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for name, read in _READERS.items():
            object.__setattr__(self, name, read(getattr(self, name)))

    @classmethod
    def read(
        cls, options: Mapping[str, object] | Options | None = None, *, mode: str | None = None
    ) -> Options:
        """Check user options and freeze them. Raises OptionError, for an unknown key with the nearest one."""
        if isinstance(options, Options):
            options = {field.name: getattr(options, field.name) for field in fields(options)}
            options = {name: value for name, value in options.items() if name != "mode" or value is not None}
        if options is not None and not isinstance(options, Mapping):
            raise OptionError(bad_value("options", options, "a dict", 'For example {"sparsity": 0.875}.'))
        given: dict[str, Any] = dict(options or {})
        known = {field.name for field in fields(cls)}
        for key in given:
            if key not in known:
                way_out = " Inductor's own settings go into options={'inductor': {...}}."
                raise OptionError(unknown_name("option", str(key), known) + way_out)
        if mode is not None and given.setdefault("mode", mode) != mode:
            raise OptionError(bad_value("mode", (mode, given["mode"]), "given once"))
        return cls(**given)


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is an integer (Python's, numpy's, or a symbolic one while torch traces) and no bool."""
    return isinstance(value, (Integral, torch.SymInt)) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """numpy's integers as Python's: a graph can hold only those as literals."""
    return int(value) if isinstance(value, Integral) else value


def read_sparsity(value: object) -> float:
    """A number in [0, 1). Raises OptionError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        allowed = "a number from 0 (dense) to below 1: the share of query-key work that is NOT computed"
        raise OptionError(bad_value("sparsity", value, allowed, "0.875 keeps one tile in eight."))
    return float(value)


def _three_positive_ints(name: str, value: Any, example: str) -> tuple[int, int, int]:
    try:
        items = tuple(value)
    except TypeError:
        items = ()
    if len(items) != 3 or not all(is_int(item) and item > 0 for item in items):
        raise OptionError(bad_value(name, value, "three positive integers (frames, rows, cols)", example))
    return tuple(map(_plain, items))  # pyright: ignore[reportReturnType]


def read_method(value: object) -> str:
    """A string. Raises OptionError. Whether a method of that name exists, `methods.get` checks."""
    if not isinstance(value, str):
        raise OptionError(bad_value("method", value, "the name of a sparse attention method", "Try 'vsa'."))
    return value


def read_tile(value: object) -> Tile:
    """Three positive integers. Raises OptionError."""
    return _three_positive_ints("tile", value, "The papers use (4, 4, 4).")


def read_grid(value: object) -> Grid:
    """Three positive integers. Raises OptionError."""
    example = "It counts tokens, e.g. (21, 30, 52) for 81 frames of 480x832 in Wan."
    return Grid(*_three_positive_ints("grid", value, example))


def read_hint(sizes: object, start: object, length: object, caller: str, word: str = "length") -> Hint:
    """A grid, and where it lies in a sequence of `length` tokens, which `caller` calls by that `word`.

    Raises OptionError.
    """
    grid = read_grid(sizes)
    if not is_int(start) or start < 0:
        allowed = "an integer >= 0: the number of tokens in front of the video"
        raise OptionError(bad_value(f"start of {caller}", start, allowed))
    if length is None and start != 0:
        way_out = f"Say how long the whole sequence is: {caller}(..., start={start}, {word}=...)."
        raise OptionError(bad_value(f"start of {caller}", start, f"0 if {word} is None", way_out))
    if length is not None and not is_int(length):
        allowed = "an integer, or None if the video is the whole sequence"
        raise OptionError(bad_value(f"{word} of {caller}", length, allowed))
    if length is not None and start + grid.tokens > length:
        allowed = f"such that start + frames * rows * cols <= {word}"
        way_out = "Count tokens of the sequence that blocks get: latent frames, rows and cols after patchify."
        raise OptionError(bad_value(caller, (tuple(grid), start, length), allowed, way_out))
    return Hint(tuple(grid), _plain(start), _plain(length))


def _read_min_tokens(value: Any) -> int | None:
    if value is not None and (not is_int(value) or value < 0):
        allowed = "an integer >= 0, or None for where the kernel at hand beats dense attention"
        raise OptionError(bad_value("min_tokens", value, allowed))
    return _plain(value)


def _read_dense_layers(value: Any) -> tuple[int | str, ...]:
    try:
        items = (-1,) if isinstance(value, str) else tuple(value)
    except TypeError:
        items = (-1,)
    if not all((is_int(item) and item >= 0) or (isinstance(item, str) and item) for item in items):
        allowed = "a sequence of block indices >= 0 and module paths, such as (0, 1, 'single_blocks.7')"
        raise OptionError(bad_value("dense_layers", value, allowed))
    return tuple(sorted({_plain(item) for item in items}, key=lambda item: (isinstance(item, str), item)))


def _read_fallback(value: object) -> str:
    if value not in FALLBACKS:
        raise OptionError(bad_value("fallback", value, " or ".join(map(repr, FALLBACKS))))
    return value


def _read_mode(value: object) -> str | None:
    """A string or None. Raises OptionError. Whether torch has such a mode, the backend checks."""
    if value is not None and not isinstance(value, str):
        raise OptionError(
            bad_value("mode", value, "a mode of torch.compile, such as 'max-autotune', or None")
        )
    return value


def _read_inductor(value: object) -> tuple[tuple[str, Any], ...]:
    if isinstance(value, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        value = dict(value)  # the form in which Options keeps them
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return tuple(sorted(value.items()))
    raise OptionError(bad_value("inductor", value, "a dict of Inductor config patches by name"))


_READERS: dict[str, Callable[[Any], Any]] = {
    "sparsity": lambda value: value if isinstance(value, SparsitySchedule) else read_sparsity(value),
    "method": read_method,
    "tile": read_tile,
    "min_tokens": _read_min_tokens,
    "dense_layers": _read_dense_layers,
    "grid": lambda value: None if value is None else read_grid(value),
    "fallback": _read_fallback,
    "mode": _read_mode,
    "inductor": _read_inductor,
}
