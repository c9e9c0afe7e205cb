"""What is known of a process at run time and of no graph: a hinted grid, dense or sparse, how sparse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..grid import Grid
from ..options import Options, read_grid
from ..plan.schedule import SparsitySchedule, bucket_name
from ..torch_compat import guard_on_attribute
from .calls import running
from .tokens import Tokens

_Three = tuple[int, int, int]


class State:
    """One plain object per process. Dynamo guards what a graph's conversion read of it, so that another
    value compiles again, or finds what was compiled for it before.

    Guards ask in the thread that calls compiled code, each time: so a backward that computes a forward again
    is given what held in that forward, and a thread the grid of its own prepared model.
    No ContextVar: Dynamo cannot trace one, and the threads of a backward do not inherit it.
    """

    def __init__(self) -> None:
        self.dense_tokens: Tokens[bool] = Tokens("dense", any)
        self.grid_tokens: Tokens[_Three | None] = Tokens("video_grid", lambda grids: [None, *grids][-1])
        self.gates = 0  # how often gates were added: Dynamo guards no hooks

    @property
    def dense(self) -> bool:
        """Whether sparse calls run dense for now."""
        return self.dense_tokens.in_force()

    @property
    def grid(self) -> _Three | None:
        """What a prepared model learned of its call, or what video_grid says. A tuple: Dynamo compares it."""
        call = running.in_force()
        learned = None if call is None else call.grid
        return learned or self.grid_tokens.in_force()

    @property
    def why(self) -> str:
        """Why a prepared model that runs could not learn its grid; words alone, no guard."""
        return running.now.why if running.now is not None else ""


now = State()


@dataclass(frozen=True)
class Wanted:
    """What a graph is compiled for: the options and the state of the process, read once.

    options: with the grid that holds now; hinted: whether that is no option. sparsity: the literal of the
    graph; schedule: the number of the SparsitySchedule that lowers it, or -1. why: why there is no grid.
    """

    options: Options
    hinted: bool
    sparsity: float
    schedule: int
    why: str


def wanted(options: Options) -> Wanted:
    """Raises StateError where there is no telling what holds."""
    grid, asked = now.grid, options.sparsity
    literal = asked.literal if isinstance(asked, SparsitySchedule) else asked
    literal = 0.0 if now.dense else literal
    schedule = asked.number if literal and isinstance(asked, SparsitySchedule) else -1
    return Wanted(with_grid(options, grid), grid is not None, literal, schedule, now.why)


def with_grid(options: Options, grid: _Three | None) -> Options:
    """The options with a grid in the place of their own, if there is one."""
    return options if grid is None else replace(options, grid=Grid(*grid))


def place_share(options: Options, device: Any) -> None:
    """Give what a schedule keeps its memory on `device` before anything runs: a CUDA graph is an error if its
    warm-up allocates memory that stays."""
    if isinstance(options.sparsity, SparsitySchedule):
        options.sparsity.kept_share(device)


def sparsity_now(options: Options) -> float:
    """The sparsity of a call that runs now."""
    asked = options.sparsity
    if now.dense:
        return 0.0
    return asked.sparsity if isinstance(asked, SparsitySchedule) else asked


def guard_grid() -> None:
    """Dynamo shall compile again what it is compiling when the hinted grid changes."""
    guard_on_attribute("vsa_compile", "runtime", "state", "now", "grid")


def guard_sparsity(options: Options) -> None:
    """Dynamo shall compile what it is compiling again when its sparsity is another, or gates come."""
    guard_on_attribute("vsa_compile", "runtime", "state", "now", "dense")
    guard_on_attribute("vsa_compile", "runtime", "state", "now", "gates")
    if isinstance(options.sparsity, SparsitySchedule):
        guard_on_attribute("vsa_compile", "plan", "schedule", "schedules", bucket_name(options.sparsity))


@contextmanager
def dense() -> Iterator[None]:
    """Within this, what `backend="vsa"` made sparse runs dense SDPA (and adds gate * coarse where there are
    gates). For all threads of the process. Compiles once; going in and out costs nothing afterwards.

    A backward that computes activations again (checkpointing) sees what its forward saw.
    Raises StateError if another thread is within `denoising` at a step that is sparse.
    """
    with _within(now.dense_tokens, True):
        yield


@contextmanager
def video_grid(frames: int, rows: int, cols: int) -> Iterator[None]:
    """Within this, attention calls whose graph does not show the grid of their tokens have this one.

    frames, rows, cols: in tokens (after patchify), raster order. For all threads of the process. A call
    converts if one run of its sequence is frames * rows * cols tokens long, among queries and keys alike.
    Each grid gets its own compiled code, also where the number of tokens is equal (landscape, portrait).
    A backward that computes activations again (checkpointing) sees the grid of its forward.
    Raises OptionError unless all three are positive integers, StateError if another thread has another grid.
    """
    with _within(now.grid_tokens, tuple(read_grid((frames, rows, cols)))):  # pyright: ignore[reportArgumentType]
        yield


@contextmanager
def _within(tokens: Tokens, value: Any) -> Iterator[None]:
    token = tokens.enter(value)
    try:
        yield
    finally:
        tokens.leave(token)
