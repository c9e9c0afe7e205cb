"""Samples of several tasks, taken in turn, so that other load and the clock rate affect all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)

_COLDEST = 512 << 20  # bytes; writing them takes longer than the host needs to launch what follows
WARM_UP = 2


@dataclass(frozen=True)
class Task:
    """`run` is timed; what `prepare` returns is its argument, made anew for every sample."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None

    def once(self) -> object:
        return self.run(self.prepare())


@dataclass(frozen=True)
class Spread:
    """Times of one task in milliseconds."""

    median_ms: float
    quartiles_ms: tuple[float, float]
    min_ms: float
    max_ms: float
    samples: int

    @classmethod
    def of(cls, times: list[float]) -> Spread:
        low, high = times[0], times[0]
        if len(times) > 1:
            low, _, high = statistics.quantiles(times, n=4, method="inclusive")
        return cls(statistics.median(times), (low, high), min(times), max(times), len(times))


class Clock:
    """Times tasks on one device. On a GPU the L2 cache is flushed before every sample."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flushed_bytes = 0
        if device.type == "cuda":
            cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
            self.flushed_bytes = max(_COLDEST, 2 * cache)
        self._cold = torch.empty(self.flushed_bytes, dtype=torch.uint8, device=device)

    def measure(self, tasks: Mapping[Name, Task], repeats: int) -> dict[Name, Spread]:
        """The times of every task over `repeats` rounds. A round runs all tasks; each begins with another."""
        names, times = list(tasks), {name: [] for name in tasks}
        for number in range(repeats):
            first = number % max(1, len(names))
            taken = {name: self._sample(tasks[name]) for name in names[first:] + names[:first]}
            self._wait()
            for name, read in taken.items():
                times[name].append(read())
        return {name: Spread.of(samples) for name, samples in times.items()}

    def warm_up(self, task: Task) -> None:
        """Compile and load a task. Raises what the task raises."""
        for _ in range(WARM_UP):
            task.once()
        self._wait()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _sample(self, task: Task) -> Callable[[], float]:
        """Run the task; returns a function that gives its milliseconds after `_wait`."""
        given = task.prepare()
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._cold.zero_()
            start.record()
            task.run(given)
            end.record()
            return lambda: start.elapsed_time(end)
        began = time.perf_counter()
        task.run(given)
        elapsed = 1e3 * (time.perf_counter() - began)
        return lambda: elapsed
