"""A value that changes at run time, and what it was when a forward ran that is computed again.

Activation checkpointing runs a forward a second time, inside the backward, when the value may be another.
A recompute has to see what its forward saw, else gradients are wrong without a word.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass, field
from threading import Lock, get_ident
from typing import Any, Generic, TypeVar

from ..errors import StateError, forward_unknown
from ..torch_compat import compiling, position, position_of_forward

Value = TypeVar("Value", bound=Hashable)

_KEPT = 256  # changes that each thread remembers: more than a forward and its backward lie apart


@dataclass
class _Seen(Generic[Value]):
    """What one thread saw: from node number `positions[i]` on, `values[i]`.

    A change of another thread is noticed at the next look: it came between `unsure[i]` and `positions[i]`.
    """

    positions: list[int] = field(default_factory=list)
    unsure: list[int] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    looked: int = 0  # where it looked last
    version: int = -1  # of the value that it saw last
    forgotten: bool = False  # whether there was more than is kept

    def add(self, at: int, since: int, value: Value) -> None:
        self.positions.append(at)
        self.unsure.append(since)
        self.values.append(value)
        self.forgotten |= len(self.values) > _KEPT
        for column in (self.positions, self.unsure, self.values):
            del column[:-_KEPT]

    def at(self, number: int) -> set[Value]:
        """What held when the thread made the node of that number; several where that cannot be told."""
        index = bisect_right(self.positions, number) - 1
        if index < 0:
            return set(self.values) if self.forgotten else {self.values[0]}
        later = index + 1
        unsure = later < len(self.positions) and self.unsure[later] <= number
        return set(self.values[index : later + 1] if unsure else self.values[index:later])


class _Pins(threading.local):
    """The value that a compilation of this thread saw."""

    compilation: object = None
    value: Any = None


class History(Generic[Value]):
    """`set` it, and ask for the value `in_force`: now, or within a backward when the forward ran.

    what: the name of the value in errors. Values are compared by ==.
    """

    def __init__(self, what: str, value: Value) -> None:
        self.what, self.now = what, value
        self._version = 0
        self._seen: dict[int, _Seen[Value]] = {}
        self._lock = Lock()
        self._pins = _Pins()

    def set(self, value: Value) -> None:
        """From now on, for all threads."""
        with self._lock:
            if value != self.now:
                self._look()  # what this thread would have seen until now
                self.now = value
                self._version += 1
                self._look(certain=True)

    def in_force(self) -> Value:
        """Raises StateError within a backward of which there is no telling what its forward saw.

        While Dynamo compiles, it is what the compilation saw first: its guards are made last, and another
        thread may have changed the value since.
        """
        compilation = compiling()
        if compilation is None:
            return self._in_force()
        if self._pins.compilation != compilation:
            self._pins.compilation, self._pins.value = compilation, self._in_force()
        return self._pins.value

    def _in_force(self) -> Value:
        number = position_of_forward()
        if number is None:
            mine = self._seen.get(get_ident())
            if mine is None or mine.version != self._version or position() < mine.looked:
                with self._lock:
                    self._look()
            else:
                mine.looked = position()
            return self.now
        with self._lock:
            return self._then(number)

    def note(self, value: Value) -> None:
        """This thread alone goes on with the value, within a backward: a context that a recompute enters."""
        with self._lock:
            mine = self._seen.get(get_ident())
            if mine is not None:
                mine.add(position(), position(), value)

    def _look(self, *, certain: bool = False) -> None:
        """This thread sees the value of now."""
        at, mine = position(), self._seen.get(get_ident())
        if mine is None or at < mine.looked:  # none, or that of a thread that is gone
            mine = self._seen[get_ident()] = _Seen()
            certain = True
        if mine.version != self._version:
            mine.add(at, at if certain else mine.looked, self.now)
        mine.version, mine.looked = self._version, at

    def _then(self, number: int) -> Value:
        """On a CPU a backward runs in the thread that asked for it, on other devices in one of its own."""
        mine = self._seen.get(get_ident())
        logs = [mine] if mine is not None else list(self._seen.values())
        values = set[Value]().union(*(log.at(number) for log in logs)) or {self.now}
        if len(values) > 1:
            raise StateError(forward_unknown(self.what))
        return values.pop()
