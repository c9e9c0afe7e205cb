"""What code wants for a while: counted tokens, of which none is left behind, in whatever order they go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from threading import RLock, get_ident
from typing import Generic, NamedTuple, TypeVar

from ..errors import StateError, state_conflict
from ..plan.history import History
from ..torch_compat import position_of_forward

Value = TypeVar("Value", bound=Hashable)


class Owner(NamedTuple):
    """A thread, and the task of asyncio that it runs: tasks take turns in the middle of contexts."""

    thread: int
    task: asyncio.Task | None

    @classmethod
    def here(cls) -> Owner:
        try:
            return cls(get_ident(), asyncio.current_task())
        except RuntimeError:  # no event loop runs
            return cls(get_ident(), None)

    def apart(self, other: Owner) -> bool:
        """Whether neither is within the other: what the thread did before its event loop is around tasks."""
        tasks = {self.task, other.task} - {None}
        return self.thread != other.thread or len(tasks) > 1


@dataclass(eq=False)
class Token(Generic[Value]):
    """One wish of one thread, or task."""

    value: Value
    owner: Owner = field(default_factory=Owner.here)


class Tokens(Generic[Value]):
    """All wishes for one value of the process, which all threads share.

    `of` makes one of the values of tokens, in the order in which they came. Threads, and tasks of asyncio,
    may want a value at the same time if it is the same. What a recompute enters within a backward concerns its own thread alone.
    """

    def __init__(self, what: str, of: Callable[[Sequence[Value]], Value]) -> None:
        self.what, self._of = what, of
        self._tokens: list[Token[Value]] = []
        self._history: History[Value] = History(what, of([]))
        self._lock = RLock()
        self._inside = _Inside()

    def in_force(self) -> Value:
        """The value that holds for what runs now; within a backward, what held in the forward.

        Raises StateError where there is no telling.
        """
        if self._inside.tokens:
            return self._of([token.value for token in self._inside.tokens])
        return self._history.in_force()

    def enter(self, value: Value) -> Token[Value]:
        """Raises StateError if another thread wants another value."""
        token = Token(value)
        if position_of_forward() is not None:
            self._inside.tokens.append(token)
            self._history.note(self.in_force())
            return token
        with self._lock:
            self._check(token, value)
            self._tokens.append(token)
            self._tell()
        return token

    def change(self, token: Token[Value], value: Value) -> None:
        """Raises StateError if another thread wants another value; then the token keeps what it had."""
        with self._lock:
            self._check(token, value)
            token.value = value
            self._tell()

    def leave(self, token: Token[Value]) -> None:
        if token in self._inside.tokens:
            self._inside.tokens.remove(token)
            self._history.note(self.in_force())
            return
        with self._lock:
            self._tokens.remove(token)
            self._tell()

    def of_this_thread(self) -> Value:
        """What the thread that asks wants itself."""
        with self._lock:
            here = Owner.here()
            return self._of([token.value for token in self._tokens if not token.owner.apart(here)])

    def _check(self, token: Token[Value], value: Value) -> None:
        here = Owner.here()  # not who entered the token: another thread may change it
        for other in self._tokens:
            if other is not token and other.owner.apart(here) and other.value != value:
                raise StateError(state_conflict(self.what, value, other.value))

    def _tell(self) -> None:
        self._history.set(self._of([token.value for token in self._tokens]))


class _Inside(threading.local):
    """The tokens that a recompute of this thread entered."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
