"""The calls of prepared models that are running, per thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from ..grid import GridSizes


@dataclass(eq=False)
class ModelCall:
    """One call of a prepared model, and where the video lies in the sequence of its blocks.

    A plain object: Dynamo makes its ints symbolic, while it takes those of an nn.Module for constants.
    model: the number of the prepared model. images: (batch * frames, rows, cols).
    """

    model: int
    grid: GridSizes | None = None
    start: int = 0
    length: int | None = None  # of the sequence; None if it is the video alone
    images: GridSizes | None = None
    why: str = ""  # why there is no grid
    met: bool = True


class Running(threading.local):
    """`now` is the innermost call of a prepared model that this thread runs or recomputes."""

    def __init__(self) -> None:
        self.now: ModelCall | None = None
        self.entered: list[ModelCall] = []

    def enter(self, call: ModelCall) -> Callable[[], None]:
        """Make `call` run in this thread. Call the returned function, from any thread and in any order, to
        end that."""
        here = self.__dict__  # of this thread
        here["entered"].append(call)
        here["now"] = call

        def leave() -> None:
            entered: list[ModelCall] = here["entered"]
            entered.remove(call)
            here["now"] = entered[-1] if entered else None

        return leave


running = Running()
