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
from ..options import is_int
from .state import now


@contextmanager
def denoising(
    steps: int, *, dense_steps: int = 0, start: float = 0.0, end: float = 1.0
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Some of the `steps` of a denoising loop dense; gives a callback for the end of every step.

    dense_steps: so many first steps are dense; start, end: fractions of the steps between which it is sparse.
    A step is sparse if all of these say so. With diffusers:

        with vsa_compile.denoising(50, dense_steps=10) as on_step_end:
            pipe(..., num_inference_steps=50, callback_on_step_end=on_step_end)

    Around several loops, one after the other, every loop begins at its first step. Warns at the end if the
    callback never came, if no step was sparse, if the loops had another number of steps, or if a loop that
    was cut short made the first step of the next one dense or sparse against what was asked.
    Raises OptionError unless steps >= 1, dense_steps >= 0 and 0 <= start <= end <= 1, StateError (at the
    step) if another thread wants the opposite at that time.
    """
    allowed = "steps >= 1, dense_steps >= 0, 0 <= start <= end <= 1"
    counts = is_int(steps) and is_int(dense_steps) and steps >= 1 and dense_steps >= 0
    if not (counts and 0 <= start <= end <= 1):
        raise OptionError(bad_value("denoising", (steps, dense_steps, start, end), allowed))
    loop = _Loop(
        steps, (start, end), lambda step: step >= dense_steps and start * steps <= step < end * steps
    )
    try:
        yield loop.on_step_end
    finally:
        now.dense_tokens.leave(loop.token)
    loop.warn()


class _Loop:
    """The steps that came, and the token that says whether the one that runs is dense."""

    def __init__(self, steps: int, window: tuple[float, float], is_sparse: Callable[[int], bool]) -> None:
        self.steps, self.window, self.is_sparse = steps, window, is_sparse
        self.around = now.dense_tokens.of_this_thread()  # dense() around it makes every step dense
        self.longest = 0  # steps of a loop
        self.were_sparse = False
        self.ran_otherwise = False  # a step, as a loop had ended early and nobody said so
        self.token = now.dense_tokens.enter(self._dense(0))

    def _dense(self, step: int) -> bool:
        return self.around or not self.is_sparse(step)

    def on_step_end(self, pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        self.longest = max(self.longest, step + 1)
        self.ran_otherwise |= self.token.value != self._dense(step)
        self.were_sparse |= self.is_sparse(step)
        # A pipeline of diffusers knows its length; the next step may be the first one of another loop.
        known: Any = getattr(pipe, "num_timesteps", None)
        last = (known if is_int(known) else self.steps) - 1
        now.dense_tokens.change(self.token, self._dense(0 if step == last else step + 1))
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
