"""The calls of prepared models that are running, per thread, and which one a backward recomputes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import StateError, forward_unknown
from ..grid import GridSizes
from ..plan.history import Backward, Backwards
from ..torch_compat import backward_running, position, position_of_forward, thread_of_autograd
from .requests import thread_number

_KEPT = 1024  # calls that are remembered: more than a forward and its backward lie apart


@dataclass(eq=False)
class ModelCall:
    """One call of a prepared model, and where the video lies in the sequence of its blocks.

    A plain object: Dynamo makes its ints symbolic, while it takes those of an nn.Module for constants.
    model: the number of the prepared model. images: (batch * frames, rows, cols).
    attention: what `patch_attention` has its eager attention calls run through.
    first, last: the numbers of its autograd nodes, from `first` to below `last`, which is None until it ends;
    every thread counts its own. backward: the one within which it runs, or -1.
    """

    model: int
    grid: GridSizes | None = None
    start: int = 0
    length: int | None = None  # of the sequence; None if it is the video alone
    images: GridSizes | None = None
    why: str = ""  # why there is no grid
    attention: Callable[..., Tensor] | None = None
    met: bool = True
    first: int = 0
    last: int | None = None
    thread: int = 0
    backward: int = -1

    def made(self, number: int) -> bool:
        """Whether the node of that number is the call's, if it is a node of the call's thread."""
        return self.first <= number and (self.last is None or number < self.last)


class Running(threading.local):
    """`now` is the innermost call of a prepared model that this thread runs or recomputes; None also where
    forwards of several threads are recomputed at once. `past`: calls of all threads that are over; those on
    a GPU are recomputed by a thread of their own."""

    past: ClassVar[deque[ModelCall]] = deque(maxlen=_KEPT)

    def __init__(self) -> None:
        self.now: ModelCall | None = None
        self.entered: list[ModelCall] = []
        self.backwards: Backwards[ModelCall | None] = Backwards()

    def begin(self, call: ModelCall) -> Callable[[], None]:
        """`enter` for a call that is made now."""
        call.thread, call.backward, call.first = thread_number(), backward_running(), position()
        return self.enter(call)

    def remember(self, call: ModelCall) -> None:
        """It is over, and a backward may compute parts of it again."""
        call.last = position()
        self.past.append(call)

    def enter(self, call: ModelCall) -> Callable[[], None]:
        """Make `call` run in this thread. Call the returned function, from any thread and in any order, to
        end that."""
        here = self.__dict__  # of this thread
        here["entered"].append(call)
        here["now"] = _innermost(here["entered"])

        def leave() -> None:
            entered: list[ModelCall] = here["entered"]
            entered.remove(call)
            here["now"] = _innermost(entered)

        return leave

    def in_force(self) -> ModelCall | None:
        """The call that what runs now belongs to: within a backward, the one that made the node whose
        gradient is computed. Raises StateError where forwards of several threads may have made it."""
        number = position_of_forward()
        if number is None:
            self.backwards.clear()
            return self.now
        backward, around = self.backwards.innermost()
        backward.value = self.of_node(number, around)
        return backward.value

    def of_node(self, number: int, around: Backward[ModelCall | None] | None = None) -> ModelCall | None:
        """The call that made a node whose gradient is computed; `around`: the backward around this one."""
        for call in reversed(self.entered):
            if call.last is None and (call.backward == backward_running() or call.made(number)):
                return call  # it runs
        resumed = [call for call in self.entered if call.made(number)]
        # What a call returned may have had no gradient, but something inside it.
        calls = resumed or [call for call in [*self.past] if call.made(number)]
        own = [call for call in calls if call.thread == thread_number()]
        if own and not _apart(resumed):
            return _latest(own)
        if around is not None:  # a recompute made it, or a thread whose backward has its turn here
            if self._has_turns() and any(call.grid != (around.value and around.value.grid) for call in calls):
                raise StateError(forward_unknown("the grid of a prepared model"))
            return around.value
        # Of others' calls, or of none: this thread may have made it itself.
        foreign = bool(calls) and not resumed and not thread_of_autograd()
        if foreign or len({call.grid for call in calls}) > 1:
            raise StateError(forward_unknown("the grid of a prepared model"))
        return _latest(calls)

    def _has_turns(self) -> bool:
        """Whether backwards of several threads may take turns in this one."""
        return thread_of_autograd() and len({call.thread for call in self.past} - {thread_number()}) > 1


def _latest(calls: list[ModelCall]) -> ModelCall | None:
    return max(calls, key=lambda call: call.first, default=None)


def _innermost(entered: list[ModelCall]) -> ModelCall | None:
    last = entered[-1] if entered else None
    if last is None or last.last is None:
        return last
    return (
        None if _apart([call for call in entered if call.made(last.first) or last.made(call.first)]) else last
    )


def _apart(calls: list[ModelCall]) -> bool:
    """Whether they are of several threads and grids, so that the number of a node does not tell which."""
    return len({call.thread for call in calls}) > 1 and len({call.grid for call in calls}) > 1


running = Running()
