"""Sparsity that changes while a compiled model trains, without a compilation for every step.

One graph serves a bucket of sparsities, between two halvings of the kept share. The widest list of tiles in
the bucket is a constant of the graph; how many tiles a row really lists is read from a tensor at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from threading import Lock

import torch
from torch import Tensor

from ..errors import OptionError, bad_value
from .history import History

DENSE = -1  # the bucket of sparsity 0


class SparsitySchedule:
    """The sparsity of every training step, for `options={"sparsity": schedule}`.

        schedule = SparsitySchedule(lambda step: min(0.9, 0.001 * step))
        trained = torch.compile(model, backend="vsa", options={"sparsity": schedule})
        ...
        schedule.step()  # after every optimizer.step()

    sparsity: a number in [0, 1), or a function of the step (0, 1, ...) that returns one; 0 is dense SDPA.
    Several models may share a schedule. Each halving of the kept share, and dense, is compiled once: four
    graphs from dense to 0.875. A backward that recomputes activations (checkpointing) uses the sparsity of
    its forward.
    Raises OptionError for a sparsity that is no number from 0 to below 1.
    """

    def __init__(self, sparsity: float | Callable[[int], float]) -> None:
        function = sparsity if callable(sparsity) else lambda _: sparsity
        self._function: Callable[[int], float] = function
        self._kept: dict[torch.device, Tensor] = {}
        self._step = 0
        self._sparsity = History("the sparsity of a schedule", self._of_step())
        self.number = schedules.add(self)

    @classmethod
    def stairs(
        cls, to: float, *, by: float, every: int, start: float = 0.0, hold: int = 0
    ) -> SparsitySchedule:
        """A staircase from `start` up to `to`: `by` more every `every` steps, after `hold` steps at `start`.

        The schedule of BSA (arXiv 2509.01085) is stairs(0.9, by=0.03, every=30).
        Raises OptionError unless 0 <= start <= to < 1, by > 0, every >= 1 and hold >= 0.
        """
        allowed = "0 <= start <= to < 1, by > 0, every >= 1, hold >= 0"
        numbers = all(isinstance(number, Real) for number in (to, by, every, start, hold))
        if not (numbers and 0 <= start <= to < 1 and by > 0 and every >= 1 and hold >= 0):
            raise OptionError(bad_value("stairs", (to, by, every, start, hold), allowed))
        return cls(_Stairs(start, to, by, every, hold))

    @property
    def sparsity(self) -> float:
        """The sparsity of the current step."""
        return self._sparsity.now

    @property
    def bucket(self) -> int:
        """How many halvings of the kept share are complete (in a backward: in its forward); DENSE at 0."""
        sparsity = self._sparsity.in_force()
        if sparsity == 0:
            return DENSE
        kept, bucket = 1 - Fraction(str(sparsity)), 0
        while kept < Fraction(1, 2 ** (bucket + 1)):
            bucket += 1
        return bucket

    @property
    def literal(self) -> float:
        """The lowest sparsity of the bucket, for which the graph is compiled. Positive unless dense."""
        return 0.0 if self.bucket == DENSE else max(1 - 0.5**self.bucket, 1e-6)

    def step(self) -> None:
        """Go to the next step."""
        self._step += 1
        self._apply()

    def state_dict(self) -> dict[str, int]:
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._step = int(state["step"])
        self._apply()

    def kept_share(self, device: torch.device) -> Tensor:
        """(2,) int64 on `device`: numerator and denominator of 1 - sparsity. Always the same memory, so that
        a CUDA graph reads the current value."""
        if device not in self._kept:
            self._kept[device] = _share(self._sparsity.now, device)
        return self._kept[device]

    def share_in_force(self, device: torch.device) -> Tensor:
        """`kept_share`; within a backward that recomputes (checkpointing), that of its forward."""
        kept, sparsity = self.kept_share(device), self._sparsity.in_force()
        return kept if sparsity == self._sparsity.now else _share(sparsity, device)

    def _of_step(self) -> float:
        value = self._function(self._step)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            allowed = "a number from 0 (dense) to below 1"
            raise OptionError(bad_value(f"the sparsity of step {self._step}", value, allowed))
        return round(float(value), 9)  # keeps numerators far below 2^63

    def _apply(self) -> None:
        self._sparsity.set(self._of_step())
        for kept in self._kept.values():
            kept[0], kept[1] = _fraction(self.sparsity)

    def __reduce__(self) -> tuple:
        return _at_step, (self._function, self._step)

    def __deepcopy__(self, _: object) -> SparsitySchedule:
        return self  # copied options still refer to this schedule

    def __repr__(self) -> str:
        return f"SparsitySchedule(step {self._step}: {self.sparsity})"


def _at_step(function: Callable[[int], float], step: int) -> SparsitySchedule:
    """Unpickle a schedule: a new one, which continues from the same step."""
    schedule = SparsitySchedule(function)
    schedule.load_state_dict({"step": step})
    return schedule


@dataclass(frozen=True)
class _Stairs:
    """The function of `SparsitySchedule.stairs`, as a class so that it can be pickled."""

    first: float
    last: float
    by: float
    every: int
    hold: int

    def __call__(self, step: int) -> float:
        first, last, rise = (Fraction(str(x)) for x in (self.first, self.last, self.by))
        return float(min(last, first + rise * (max(0, step - self.hold) // self.every)))


def _fraction(sparsity: float) -> tuple[int, int]:
    return (1 - Fraction(str(sparsity))).as_integer_ratio()


def _share(sparsity: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # training could not write to an inference tensor
        return torch.tensor(_fraction(sparsity), dtype=torch.int64, device=device)


class Schedules:
    """All schedules of the process, by number; a graph refers to a schedule by its number.

    Dynamo guards their buckets, as attributes of this plain object: bucket0, bucket1, ..."""

    def __init__(self) -> None:
        self._all: list[SparsitySchedule] = []
        self._adding = Lock()

    def add(self, schedule: SparsitySchedule) -> int:
        with self._adding:
            self._all.append(schedule)
            return len(self._all) - 1

    def __getattr__(self, name: str) -> int:
        number = name.removeprefix("bucket")
        if number.isdigit():
            return self._all[int(number)].bucket
        raise AttributeError(name)

    def __getitem__(self, number: int) -> SparsitySchedule:
        return self._all[number]


def bucket_name(schedule: SparsitySchedule) -> str:
    """The attribute of `schedules` that holds the bucket of a schedule."""
    return f"bucket{schedule.number}"


schedules = Schedules()
