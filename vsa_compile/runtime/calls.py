"""The calls of prepared models that run now, in each thread its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from ..grid import GridSizes


@dataclass(eq=False)
class ModelCall:
    """One call of a prepared model, and where the video lies in the sequence of its blocks.

    A plain object, whose ints Dynamo makes symbolic; those of an nn.Module it takes for constants.
    model: the number of the prepared model. images: batch * frames, rows, cols.
    """

    model: int
    grid: GridSizes | None = None
    start: int = 0
    length: int | None = None  # of the sequence; None if that is the video alone
    images: GridSizes | None = None
    why: str = ""  # why there is no grid
    met: bool = True


class Running(threading.local):
    """`now` is the innermost call of a prepared model that this thread runs, or computes again."""

    def __init__(self) -> None:
        self.now: ModelCall | None = None
        self.entered: list[ModelCall] = []

    def enter(self, call: ModelCall) -> Callable[[], None]:
        """It runs in this thread from now on. What is returned, called from any thread, ends that, in any
        order with others."""
        here = self.__dict__  # of this thread
        here["entered"].append(call)
        here["now"] = call

        def leave() -> None:
            entered: list[ModelCall] = here["entered"]
            entered.remove(call)
            here["now"] = entered[-1] if entered else None

        return leave


running = Running()
