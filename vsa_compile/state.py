"""What is known of a process at run time and of no graph: the grid that somebody hinted.

May be imported by everything above options; imports grid, options and torch_compat.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from .grid import Grid
from .options import Options, read_grid
from .torch_compat import guard_on_attribute


class State:
    """One plain object per process. Dynamo guards what a graph's conversion read of it, so that another
    value compiles again, or finds what was compiled for it before.

    No ContextVar: Dynamo cannot trace one, and the threads of a backward do not inherit it.
    """

    def __init__(self) -> None:
        self.grid: tuple[int, int, int] | None = None  # a plain tuple: Dynamo compares it


state = State()


def hinted(options: Options) -> Options:
    """The options, with the grid that holds now."""
    return options if state.grid is None else replace(options, grid=Grid(*state.grid))


def guard() -> None:
    """Dynamo shall compile again what it is compiling when the state changes."""
    guard_on_attribute("vsa_compile", "state", "state", "grid")


@contextmanager
def video_grid(frames: int, rows: int, cols: int) -> Iterator[None]:
    """Within this, attention calls whose graph does not show the grid of their tokens have this one.

    frames, rows, cols: in tokens (after patchify), raster order. Process-wide, for all threads. A call
    converts if one run of its sequence is frames * rows * cols tokens long, among queries and keys alike.
    Each grid gets its own compiled code, also where the number of tokens is equal (landscape, portrait).
    Raises OptionError unless all three are positive integers.
    """
    grid = tuple(read_grid((frames, rows, cols)))
    before = state.grid
    state.grid = grid
    try:
        yield
    finally:
        state.grid = before
