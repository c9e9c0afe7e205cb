"""A value that changes at run time, and its value when a given forward ran.

Activation checkpointing runs a forward a second time, inside the backward, when the value may have changed.
The recomputation must see what its forward saw; otherwise gradients are silently wrong.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass, field
from threading import Lock, get_ident
from typing import Any, Generic, TypeVar

from ..errors import StateError, forward_unknown
from ..torch_compat import (
    after_backward,
    backward_running,
    compiling,
    may_be_within_another,
    position,
    position_of_forward,
)

Value = TypeVar("Value", bound=Hashable)

_KEPT = 256  # changes that each thread remembers: far more than between a forward and its backward


@dataclass
class _Seen(Generic[Value]):
    """What one thread saw: `values[i]`, from node number `positions[i]` on.

    A change by another thread is noticed when this thread looks next: it came between `unsure[i]` and
    `positions[i]`.
    """

    positions: list[int] = field(default_factory=list)
    unsure: list[int] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    looked: int = 0  # the position at the last look
    version: int = -1  # of the value at the last look
    forgotten: bool = False  # whether older changes were dropped

    def add(self, at: int, since: int, value: Value) -> None:
        self.positions.append(at)
        self.unsure.append(since)
        self.values.append(value)
        self.forgotten |= len(self.values) > _KEPT
        for column in (self.positions, self.unsure, self.values):
            del column[:-_KEPT]

    def at(self, number: int) -> set[Value]:
        """The value when the thread made the node of that number; several if that cannot be told."""
        index = bisect_right(self.positions, number) - 1
        if index < 0:
            return set(self.values) if self.forgotten else {self.values[0]}
        later = index + 1
        unsure = later < len(self.positions) and self.unsure[later] <= number
        return set(self.values[index : later + 1] if unsure else self.values[index:later])


class _Pins(threading.local):
    """The value that the running compilation of this thread saw first."""

    compilation: object = None
    value: Any = None


@dataclass(eq=False)
class Backward(Generic[Value]):
    """One that runs, and the value of what it computes again now."""

    number: int
    value: Value | None = None


class Backwards(threading.local, Generic[Value]):
    """The backwards that this thread runs, one within the other where checkpoints are in checkpoints."""

    def __init__(self) -> None:
        self.running: list[Backward[Value]] = []
        self.noted: list[tuple[int, Value]] = []

    def innermost(self) -> tuple[Backward[Value], Backward[Value] | None]:
        """The innermost backward, and the one around it: the nodes of a checkpoint within a checkpoint were
        made by a recompute of that one, which always asked for its value before."""
        number, running, noted = backward_running(), self.running, self.noted
        for known in running:
            if known.number == number:
                return known, self._around(known)
        backward = Backward[Value](number)

        def ended() -> None:  # in whatever thread
            if backward in running:
                running.remove(backward)
            if not running:
                noted.clear()

        running.append(backward)
        after_backward(ended)
        return backward, self._around(backward)

    def _around(self, backward: Backward[Value]) -> Backward[Value] | None:
        before = self.running[: self.running.index(backward)]
        return before[-1] if before and may_be_within_another() else None

    def clear(self) -> None:
        """Outside of a backward none runs."""
        self.running.clear()
        self.noted.clear()

    def note(self, value: Value) -> None:
        """A recompute goes on with this value, from the next node on."""
        self.innermost()
        self.noted.append((position(), value))

    def noted_at(self, number: int, value: Value) -> Value:
        """The value that was noted before the node of that number was made; `value` if none was."""
        earlier = [noted for at, noted in self.noted if at <= number]
        return earlier[-1] if earlier else value


class History(Generic[Value]):
    """A value with a history: `set` it, and ask for the value `in_force`.

    That is the present value or, within a backward, the value when its forward ran. Values are compared with
    ==. what: the name of the value in errors.
    """

    def __init__(self, what: str, value: Value) -> None:
        self.what, self.now = what, value
        self._version = 0
        self._seen: dict[int, _Seen[Value]] = {}
        self._lock = Lock()
        self._pins = _Pins()
        self._backwards = Backwards[Value]()

    def set(self, value: Value) -> None:
        """Set the value for all threads, from now on."""
        with self._lock:
            if value != self.now:
                self._look()  # record what this thread saw until now
                self.now = value
                self._version += 1
                self._look(certain=True)

    def in_force(self) -> Value:
        """The value for what runs now. Raises StateError within a backward whose forward's value is unknown.

        While Dynamo compiles, the value that the compilation saw first: its guards are made last, and another
        thread may have changed the value in between.
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
            self._backwards.clear()
            mine = self._seen.get(get_ident())
            if mine is None or mine.version != self._version or position() < mine.looked:
                with self._lock:
                    self._look()
            else:
                mine.looked = position()
            return self.now
        backward, around = self._backwards.innermost()
        if around is not None:
            backward.value = self._backwards.noted_at(number, around.value)  # pyright: ignore[reportArgumentType]
        else:
            with self._lock:
                backward.value = self._then(number)
        return backward.value  # pyright: ignore[reportReturnType]

    def note(self, value: Value) -> None:
        """What a recompute of this thread makes from now on has that value: it entered or left a context."""
        self._backwards.note(value)

    def _look(self, *, certain: bool = False) -> None:
        """Record that this thread sees the present value."""
        at, mine = position(), self._seen.get(get_ident())
        if mine is None or at < mine.looked:  # no record, or that of a dead thread with the same id
            mine = self._seen[get_ident()] = _Seen()
            certain = True
        if mine.version != self._version:
            mine.add(at, at if certain else mine.looked, self.now)
        mine.version, mine.looked = self._version, at

    def _then(self, number: int) -> Value:
        """The value at a node of the forward. On CPU the backward runs mostly in the thread that ran it, on
        other devices in a thread of its own. A node that is beyond all of this thread was made by others."""
        mine = self._seen.get(get_ident())
        logs = [log for log in self._seen.values() if log is not mine]
        if mine is not None and number < position():
            logs = [mine]
        values = set[Value]().union(*(log.at(number) for log in logs)) or {self.now}
        if len(values) > 1:
            raise StateError(forward_unknown(self.what))
        return values.pop()
