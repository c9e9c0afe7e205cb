"""`denoising(...)`: which steps of a loop are dense."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import (
    OptionError,
    another_number_of_steps,
    bad_value,
    callback_never_came,
    loop_ended_early,
    never_sparse,
)
from ..options import is_int, is_number
from .state import now


@contextmanager
def denoising(
    steps: int, *, dense_steps: int = 0, start: float = 0.0, end: float = 1.0
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Run some of the `steps` of a denoising loop dense; yields a callback for the end of every step.

        with vsa_compile.denoising(50, dense_steps=10) as on_step_end:
            pipe(..., num_inference_steps=50, callback_on_step_end=on_step_end)  # diffusers

    dense_steps: the first steps, which are dense. start, end: fractions of the steps between which steps are
    sparse. A step is sparse if both allow it.

    Several loops may follow each other inside; each begins at its first step. Warns at the end if the
    callback was never called, if no step was sparse, if a loop had another number of steps, or if a loop that
    was cut short made the first step of the next one dense or sparse against what was asked.
    Raises OptionError unless steps >= 1, dense_steps >= 0 and 0 <= start <= end <= 1; StateError, at the
    step, if another thread requests the opposite at that time.
    """
    allowed = "steps >= 1, dense_steps >= 0, 0 <= start <= end <= 1"
    counts = is_int(steps) and is_int(dense_steps) and steps >= 1 and dense_steps >= 0
    numbers = is_number(start) and is_number(end)
    if not (counts and numbers and 0 <= start <= end <= 1):
        raise OptionError(bad_value("denoising", (steps, dense_steps, start, end), allowed))
    loop = _Loop(
        steps, (start, end), lambda step: step >= dense_steps and start * steps <= step < end * steps
    )
    try:
        yield loop.on_step_end
    finally:
        now.dense_requests.leave(loop.request)
    loop.warn()


class _Loop:
    """The steps of the running loop, and the request that makes the present one dense or not."""

    def __init__(self, steps: int, window: tuple[float, float], is_sparse: Callable[[int], bool]) -> None:
        self.steps, self.window, self.is_sparse = steps, window, is_sparse
        self.around = now.dense_requests.of_this_thread()  # inside dense() every step is dense
        self.longest = 0  # steps of the longest loop
        self.were_sparse = False
        self.ran_otherwise = False  # a step ran dense or sparse against what was asked
        self.request = now.dense_requests.enter(self._dense(0))

    def _dense(self, step: int) -> bool:
        return self.around or not self.is_sparse(step)

    def on_step_end(
        self, pipe: object, step: int, timestep: object, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        self.longest = max(self.longest, step + 1)
        self.ran_otherwise |= self.request.value != self._dense(step)
        self.were_sparse |= self.is_sparse(step)
        # A diffusers pipeline knows its number of steps; after the last one another loop may begin.
        known = getattr(pipe, "num_timesteps", None)
        last = (known if is_int(known) else self.steps) - 1
        now.dense_requests.change(self.request, self._dense(0 if step == last else step + 1))
        return kwargs

    def warn(self) -> None:
        text = None
        if self.longest == 0:
            text = callback_never_came(self.steps)
        elif not self.were_sparse:
            text = never_sparse(self.steps, self.longest)
        elif self.longest > self.steps or (self.longest < self.steps and self.window != (0, 1)):
            text = another_number_of_steps(self.steps, self.longest)
        elif self.ran_otherwise:
            text = loop_ended_early(self.steps)
        if text is not None:
            warnings.warn(text, stacklevel=4)
