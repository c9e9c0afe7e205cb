"""What code wants for a while: counted requests, of which none is left behind, in whatever order they go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from threading import RLock, get_ident
from typing import Generic, TypeVar

from ..errors import StateError, state_conflict
from ..plan.history import History
from ..torch_compat import position_of_forward

Value = TypeVar("Value", bound=Hashable)


@dataclass(eq=False)
class Request(Generic[Value]):
    """One wish of one thread."""

    value: Value
    thread: int = field(default_factory=get_ident)


class Requests(Generic[Value]):
    """All wishes for one value of the process, which all threads share.

    `of` makes one of the values of requests, in the order in which they came. Threads may want a value at the
    same time if it is the same. What a recompute enters within a backward concerns its own thread alone.
    """

    def __init__(self, what: str, of: Callable[[Sequence[Value]], Value]) -> None:
        self.what, self._of = what, of
        self._requests: list[Request[Value]] = []
        self._history: History[Value] = History(what, of([]))
        self._lock = RLock()
        self._inside = _Inside()

    def in_force(self) -> Value:
        """The value that holds for what runs now; within a backward, what held in the forward.

        Raises StateError where there is no telling.
        """
        if self._inside.requests:
            return self._of([request.value for request in self._inside.requests])
        return self._history.in_force()

    def enter(self, value: Value) -> Request[Value]:
        """Raises StateError if another thread wants another value."""
        request = Request(value)
        if position_of_forward() is not None:
            self._inside.requests.append(request)
            self._history.note(self.in_force())
            return request
        with self._lock:
            self._check(value)
            self._requests.append(request)
            self._tell()
        return request

    def change(self, request: Request[Value], value: Value) -> None:
        """Raises StateError if another thread wants another value; then the request keeps what it had."""
        with self._lock:
            self._check(value)
            request.value = value
            self._tell()

    def leave(self, request: Request[Value]) -> None:
        if request in self._inside.requests:
            self._inside.requests.remove(request)
            self._history.note(self.in_force())
            return
        with self._lock:
            self._requests.remove(request)
            self._tell()

    def of_this_thread(self) -> Value:
        """What the thread that asks wants itself."""
        with self._lock:
            return self._of([request.value for request in self._requests if request.thread == get_ident()])

    def _check(self, value: Value) -> None:
        for request in self._requests:
            if request.thread != get_ident() and request.value != value:
                raise StateError(state_conflict(self.what, value, request.value))

    def _tell(self) -> None:
        self._history.set(self._of([request.value for request in self._requests]))


class _Inside(threading.local):
    """The requests that a recompute of this thread entered."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
