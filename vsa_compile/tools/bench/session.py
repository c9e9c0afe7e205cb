"""A run of the benchmark: all parts of all shapes, contenders in turn, results written as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import ArgumentError, not_written
from . import dense, flex, ours, roofline
from .clock import Clock, Task
from .lists import Lists, make_lists
from .log import heard, reason_of
from .plan import Plan
from .results import DENSE, HEADER, Results, Trial, left_out_lines, line
from .setting import setting
from .work import BY_LISTS, OURS_ALONE, Work

Print = Callable[[str], None]


def run(plan: Plan, show: Print) -> str:
    """Measure, print the table with `show`, write JSON and plot; returns a summary as text.

    Raises ArgumentError if the folder cannot be written to, before anything is measured.
    """
    clock = Clock(plan.device)
    results = Results(plan, setting(plan.device), clock.flushed_bytes)
    _write(results)
    session = _Session(plan, clock, results, flex.Flex(clock), show)
    with heard() as texts:
        results.kernel_log = texts
        results.roofs = roofline.measure_roofs(clock, plan)
        show(HEADER)
        session.measure()
    written = [f"wrote {_write(results)}", _plot(results)]
    missing = left_out_lines(results.left_out)
    logged = [f"kernels: {text}" for text in texts]
    return "\n".join([*logged, *([missing] if missing else []), *written])


@dataclass
class _Session:
    plan: Plan
    clock: Clock
    results: Results
    flex: flex.Flex
    show: Print

    def measure(self) -> None:
        for grid in self.plan.shapes:
            for width in self.plan.widths:
                work = Work.make(self.plan, grid, width)
                lists = [
                    make_lists(kind, density, work.boxes, self.plan.heads, self.plan.device)
                    for density in self.plan.densities
                    for kind in self.plan.lists
                ]
                for part in self.plan.parts:
                    self._measure_part(part, work, lists)

    def _measure_part(self, part: str, work: Work, lists: list[Lists]) -> None:
        """All contenders of a part in turn: dense ones once, the others with all lists."""
        tasks: dict[Trial, Task] = {}
        for trial in self._trials(part, lists):
            print(f"... {work.grid} D={work.width} {part}: {trial.contender}", file=sys.stderr, flush=True)
            task = self._task(trial, work)
            if isinstance(task, str):
                self.results.leave_out(trial, work, task)
            else:
                tasks[trial] = task
        if part == "forward":
            self._compare(tasks, work)
        for row in self.results.add(work, self.clock.measure(tasks, self.plan.repeats)):
            self.show(line(row))
        self.results.flex = [
            {"part": key[0], "width": key[1], **chosen} for key, chosen in self.flex.chosen.items()
        ]
        _write(self.results)
        tasks.clear()
        torch.compiler.reset()
        if self.plan.device.type == "cuda":
            torch.cuda.empty_cache()

    def _trials(self, part: str, lists: list[Lists]) -> Iterator[Trial]:
        for name in self.plan.contenders:
            if name in DENSE:
                if part not in OURS_ALONE:
                    yield Trial(name, part)
            elif part in BY_LISTS:
                for given in lists:
                    yield Trial(name, part, given.density, given)
            elif name == "vsa":
                for density in self.plan.densities:
                    yield Trial(name, part, density)

    def _task(self, trial: Trial, work: Work) -> Task | str:
        """The task, compiled and warm; or why the contender cannot take part. Ours must be able to."""
        if trial.contender == "vsa":
            assert trial.density is not None
            task = ours.task(trial.part, work, trial.density, trial.lists)
            self.clock.warm_up(task)
            return task
        if trial.contender == "tiled" and trial.lists is not None:
            tiled = ours.tiled_task(trial.part, work, trial.lists)
            if isinstance(tiled, Task):
                self.clock.warm_up(tiled)
            return tiled
        reason = self._unavailable(trial, work)
        if reason is not None:
            return reason
        try:
            task = self._others_task(trial, work)
            self.clock.warm_up(task)
        except Exception as error:  # in somebody else's kernel: its message is the reason
            return reason_of(error)
        return task

    def _unavailable(self, trial: Trial, work: Work) -> str | None:
        if trial.contender in DENSE:
            return dense.unavailable(trial.contender, work)
        return flex.unavailable(self.plan)

    def _others_task(self, trial: Trial, work: Work) -> Task:
        if trial.lists is None:
            return dense.task(trial.contender, trial.part, work)
        return self.flex.task(trial.part, work, trial.lists)

    def _compare(self, tasks: dict[Trial, Task], work: Work) -> None:
        """The difference between FlexAttention and ours on the same lists, which must be small."""
        for trial, task in tasks.items():
            ours_alike = Trial("vsa", trial.part, trial.density, trial.lists)
            if trial.contender != "flex" or ours_alike not in tasks:
                continue
            theirs: Any = flex.in_raster(task.once(), work).float()  # pyright: ignore[reportArgumentType]
            mine: Any = tasks[ours_alike].once()
            difference = float((mine.float() - theirs).norm() / theirs.norm())
            self.results.agreement.append({**trial.named(work), "relative_difference": difference})


def _write(results: Results) -> Path:
    try:
        return results.write()
    except OSError as error:
        why = error.strerror or str(error)
        raise ArgumentError(not_written("--out", str(results.plan.out), why)) from error


def _plot(results: Results) -> str:
    path = results.path.with_suffix(".png")
    try:
        drawn = roofline.draw(path, str(results.setting["device"]), results.roofs, results.rows)
    except ImportError:
        return 'no plot: it needs matplotlib (pip install "vsa-compile[viz]")'
    return f"wrote {path}" if drawn else "no plot: neither forward nor backward was measured"
