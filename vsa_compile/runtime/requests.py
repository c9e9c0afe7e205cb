"""Requests of threads for values of the process: counted, so that none stays behind, whatever the order."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from ..errors import StateError, state_conflict
from ..plan.history import History
from ..torch_compat import position_of_forward

Value = TypeVar("Value", bound=Hashable)


class _Here(threading.local):
    """What `thread_number` says of this thread."""

    numbers = itertools.count()

    def __init__(self) -> None:
        self.number = next(self.numbers)


_here = _Here()


def thread_number() -> int:
    """A number of the calling thread alone. `get_ident()` may be that of a thread which is over by now."""
    return _here.number


class Owner(NamedTuple):
    """A thread, and the task of asyncio that it runs: tasks take turns in the middle of contexts."""

    thread: int
    task: asyncio.Task | None

    @classmethod
    def here(cls) -> Owner:
        try:
            return cls(thread_number(), asyncio.current_task())
        except RuntimeError:  # no event loop runs
            return cls(thread_number(), None)

    def apart(self, other: Owner) -> bool:
        """Whether neither is inside the other: what a thread requested before its loop is around tasks."""
        tasks = {self.task, other.task} - {None}
        return self.thread != other.thread or len(tasks) > 1


@dataclass(eq=False)
class Request(Generic[Value]):
    """A value that one thread, or task, wants for a while."""

    value: Value
    owner: Owner = field(default_factory=Owner.here)


class Requests(Generic[Value]):
    """All requests for one value of the process, which its threads share.

    `of` combines the requested values, in the order of the requests. Threads, and tasks, may request a
    value at the same time if it is the same one. What a recompute requests within a backward
    holds for its own thread alone.
    """

    def __init__(self, what: str, of: Callable[[Sequence[Value]], Value]) -> None:
        self.what, self._of = what, of
        self._requests: list[Request[Value]] = []
        self._history: History[Value] = History(what, of([]))
        self._lock = threading.RLock()
        self._inside = _Inside()

    def in_force(self) -> Value:
        """The value for what runs now; within a backward, the value of its forward.

        Raises StateError if that is unknown.
        """
        if self._inside.requests:
            return self._of([request.value for request in self._inside.requests])
        return self._history.in_force()

    def enter(self, value: Value) -> Request[Value]:
        """Request a value. Raises StateError if another thread requests another one."""
        request = Request(value)
        if position_of_forward() is not None:
            self._inside.requests.append(request)
            self._history.note(self.in_force())
            return request
        with self._lock:
            self._check(request, value)
            self._requests.append(request)
            self._tell()
        return request

    def change(self, request: Request[Value], value: Value) -> None:
        """Change a request. Raises StateError, changing nothing, if another thread requests another value."""
        with self._lock:
            self._check(request, value)
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
        """The value by the requests of the calling thread alone."""
        with self._lock:
            here = Owner.here()
            return self._of([one.value for one in self._requests if not one.owner.apart(here)])

    def _check(self, request: Request[Value], value: Value) -> None:
        here = Owner.here()  # not of whom the request is: another thread may change it
        for other in self._requests:
            if other is not request and other.owner.apart(here) and other.value != value:
                raise StateError(state_conflict(self.what, value, other.value))

    def _tell(self) -> None:
        self._history.set(self._of([request.value for request in self._requests]))


class _Inside(threading.local):
    """The requests that a recompute of this thread made."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
