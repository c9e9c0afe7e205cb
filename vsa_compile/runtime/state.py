"""What is known of a process at run time and of no graph: a hinted grid, dense or sparse, how sparse.

May be imported by everything above options; imports errors, grid, options, schedule and torch_compat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..errors import OptionError, bad_value
from ..grid import Grid
from ..options import Options, is_int, read_grid
from ..plan.schedule import SparsitySchedule, bucket_name
from ..torch_compat import guard_on_attribute


class State:
    """One plain object per process. Dynamo guards what a graph's conversion read of it, so that another
    value compiles again, or finds what was compiled for it before.

    No ContextVar: Dynamo cannot trace one, and the threads of a backward do not inherit it.
    """

    def __init__(self) -> None:
        self.grid: tuple[int, int, int] | None = None  # a plain tuple: Dynamo compares it
        self.dense = False  # whether sparse calls run dense for now
        self.gates = 0  # how often gates were added: Dynamo guards no hooks
        self.why = ""  # why a prepared model that runs could not learn its grid; words alone, no guard


state = State()


def hinted(options: Options) -> Options:
    """The options, with the grid that holds now."""
    return options if state.grid is None else replace(options, grid=Grid(*state.grid))


def sparsity(options: Options) -> tuple[float, int]:
    """The sparsity that a graph is compiled for now, and the number of the schedule that lowers it, or -1."""
    asked = options.sparsity
    if state.dense:
        return 0.0, -1
    if isinstance(asked, SparsitySchedule):
        return asked.literal, asked.number if asked.literal else -1
    return asked, -1


def place_share(options: Options, device: Any) -> None:
    """Give what a schedule keeps its memory on `device` before anything runs: a CUDA graph is an error if its
    warm-up allocates memory that stays."""
    if isinstance(options.sparsity, SparsitySchedule):
        options.sparsity.kept_share(device)


def sparsity_now(options: Options) -> float:
    """The sparsity of a call that runs now."""
    asked = options.sparsity
    if state.dense:
        return 0.0
    return asked.sparsity if isinstance(asked, SparsitySchedule) else asked


def guard_grid() -> None:
    """Dynamo shall compile again what it is compiling when the hinted grid changes."""
    guard_on_attribute("vsa_compile", "runtime", "state", "state", "grid")


def guard_sparsity(options: Options) -> None:
    """Dynamo shall compile what it is compiling again when `sparsity(options)` changes, or gates come."""
    guard_on_attribute("vsa_compile", "runtime", "state", "state", "dense")
    guard_on_attribute("vsa_compile", "runtime", "state", "state", "gates")
    if isinstance(options.sparsity, SparsitySchedule):
        guard_on_attribute("vsa_compile", "plan", "schedule", "schedules", bucket_name(options.sparsity))


@contextmanager
def dense() -> Iterator[None]:
    """Within this, what `backend="vsa"` made sparse runs dense SDPA (and adds gate * coarse where there are
    gates). Process-wide, for all threads. Compiles once; going in and out costs nothing afterwards.

    A backward that computes activations again (checkpointing) must run in the state of its forward.
    """
    before = state.dense
    state.dense = True
    try:
        yield
    finally:
        state.dense = before


@contextmanager
def denoising(
    steps: int, *, dense_steps: int = 0, start: float = 0.0, end: float = 1.0
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Some of the `steps` of a denoising loop dense; gives a callback for the end of every step.

    dense_steps: so many first steps are dense; start, end: fractions of the steps between which it is sparse.
    A step is sparse if all of these say so. With diffusers:

        with vsa_compile.denoising(50, dense_steps=10) as on_step_end:
            pipe(..., num_inference_steps=50, callback_on_step_end=on_step_end)

    Raises OptionError unless steps >= 1, dense_steps >= 0 and 0 <= start <= end <= 1.
    """
    allowed = "steps >= 1, dense_steps >= 0, 0 <= start <= end <= 1"
    counts = is_int(steps) and is_int(dense_steps) and steps >= 1 and dense_steps >= 0
    if not (counts and 0 <= start <= end <= 1):
        raise OptionError(bad_value("denoising", (steps, dense_steps, start, end), allowed))

    def begin(step: int) -> None:
        state.dense = before or not (step >= dense_steps and start * steps <= step < end * steps)

    def on_step_end(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        begin(step + 1)
        return kwargs

    before = state.dense
    begin(0)
    try:
        yield on_step_end
    finally:
        state.dense = before


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
