"""The state of the process at run time that is in no graph: a hinted grid, dense or sparse, how sparse."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..grid import Hint
from ..options import Options, read_hint
from ..plan.schedule import SparsitySchedule, bucket_name
from ..torch_compat import guard_on_attribute
from .calls import running
from .requests import Requests


class State:
    """One plain object per process. Dynamo guards what the conversion of a graph read of it, so that another
    value means a recompilation, or finds what was compiled for it before.

    Guards are evaluated in the thread that calls compiled code, at each call. So a backward that recomputes a
    forward gets the values of that forward, and a thread the grid of its own prepared model.
    No ContextVar: Dynamo cannot trace one, and the threads of a backward do not inherit it.
    """

    def __init__(self) -> None:
        self.dense_requests: Requests[bool] = Requests("dense", any)
        self.hints: Requests[Hint | None] = Requests("video_grid", lambda hints: [None, *hints][-1])
        self.gates = 0  # how often gates were added or removed: Dynamo guards no hooks

    @property
    def dense(self) -> bool:
        """Whether sparse calls run dense at present."""
        return self.dense_requests.in_force()

    @property
    def hint(self) -> Hint | None:
        """Where the video is: what a prepared model learned for its call, or what video_grid says."""
        call = running.in_force()
        if call is None or call.grid is None:
            return self.hints.in_force()
        return Hint(call.grid, call.start, call.length)

    @property
    def hinted(self) -> bool:
        return self.hint is not None

    @property
    def why(self) -> str:
        """Why the running prepared model could not learn its grid; for texts alone, not guarded."""
        return running.now.why if running.now is not None else ""


now = State()


@dataclass(frozen=True)
class Wanted:
    """What a graph is compiled for: the options and the state of the process, read once.

    hint: the process's, None if there is none.
    sparsity: the literal of the graph. schedule: the number of the SparsitySchedule that lowers it, or -1.
    why: why there is no grid.
    """

    options: Options
    hint: Hint | None
    sparsity: float
    schedule: int
    why: str


def wanted(options: Options) -> Wanted:
    """Read the state. Raises StateError if a forward that is recomputed saw unknown state."""
    asked = options.sparsity
    literal = asked.literal if isinstance(asked, SparsitySchedule) else asked
    literal = 0.0 if now.dense else literal
    schedule = asked.number if literal and isinstance(asked, SparsitySchedule) else -1
    return Wanted(options, now.hint, literal, schedule, now.why)


def place_share(options: Options, device: torch.device) -> None:
    """Let a schedule allocate its memory on `device` before anything runs: a CUDA graph must not be warmed up
    by a run that allocates memory which stays."""
    if isinstance(options.sparsity, SparsitySchedule):
        options.sparsity.kept_share(device)


def sparsity_now(options: Options) -> float:
    """The sparsity of a call that runs at present."""
    asked = options.sparsity
    if now.dense:
        return 0.0
    return asked.sparsity if isinstance(asked, SparsitySchedule) else asked


def guard_hint(*, which: bool) -> None:
    """Guard the running compilation on the hint, or only on whether there is one."""
    guard_on_attribute("vsa_compile", "runtime", "state", "now", "hint" if which else "hinted")


def guard_sparsity(options: Options) -> None:
    """Guard the running compilation on its sparsity, and on the addition of gates."""
    guard_on_attribute("vsa_compile", "runtime", "state", "now", "dense")
    guard_on_attribute("vsa_compile", "runtime", "state", "now", "gates")
    if isinstance(options.sparsity, SparsitySchedule):
        guard_on_attribute("vsa_compile", "plan", "schedule", "schedules", bucket_name(options.sparsity))


@contextmanager
def dense() -> Iterator[None]:
    """Run attention that `backend="vsa"` made sparse as dense SDPA (plus gate * coarse if there are gates).

        with vsa_compile.dense():
            out = compiled(x)

    For all threads of the process. Compiles once; after that entering and leaving cost nothing. A backward
    that recomputes activations (checkpointing) sees what its forward saw.
    Raises StateError if another thread is inside `denoising` at a sparse step.
    """
    with _within(now.dense_requests, True):
        yield


@contextmanager
def video_grid(
    frames: int, rows: int, cols: int, *, start: int = 0, tokens: int | None = None
) -> Iterator[None]:
    """Give a grid to attention calls whose graph does not show the grid of their tokens.

        with vsa_compile.video_grid(21, 30, 52):  # 81 frames of 480x832 in Wan
            out = compiled(x)
        with vsa_compile.video_grid(21, 30, 52, start=512, tokens=33272):  # 512 text tokens come first
            out = compiled(x)

    frames, rows, cols: in tokens (after patchify), raster order. For all threads of the process. A call is
    converted if exactly one run of its sequence, in queries and keys alike, has frames * rows * cols tokens.
    With `tokens` it is converted instead if its queries are a sequence of that many, of which tokens start..
    are the video, or if they were cut out of such a sequence there; its other tokens stay dense.
    Each grid is compiled for itself, also grids of equal numbers of tokens (landscape, portrait). A backward
    that recomputes activations (checkpointing) sees the grid of its forward.
    Raises OptionError unless frames, rows and cols are positive integers, start is 0 or more, and start +
    frames * rows * cols <= tokens; StateError if another thread has another grid.
    """
    with _within(now.hints, read_hint((frames, rows, cols), start, tokens, "video_grid", "tokens")):
        yield


@contextmanager
def _within(requests: Requests, value: Hashable) -> Iterator[None]:
    request = requests.enter(value)
    try:
        yield
    finally:
        requests.leave(request)
