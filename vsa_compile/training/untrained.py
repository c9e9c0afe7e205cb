"""Warns of gates that get gradients but are in no optimizer, because it was made before the gates."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from .texts import gates_untrained


@dataclass(eq=False)
class _Gate:
    parameters: list[weakref.ref]
    beside: list[weakref.ref]  # the parameters of the query projection


_waiting: list[_Gate] = []
_steps: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()


def expect_training(parameters: Sequence[Tensor], beside: Sequence[Tensor]) -> None:
    """Watch for an optimizer that trains any of `beside` while no optimizer trains `parameters`."""
    _listen()
    _waiting.append(_Gate([*map(weakref.ref, parameters)], [*map(weakref.ref, beside)]))


@functools.cache
def _listen() -> None:
    register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    """After an optimizer's first step its own gates are known to be trained; by its second step, all other
    optimizers have had their first."""
    if not _waiting or _steps.get(optimizer, 0) == 2:
        return
    _steps[optimizer] = _steps.get(optimizer, 0) + 1
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for gate in [*_waiting]:
        parameters = _ids(gate.parameters)
        if not parameters or parameters & trained:
            _waiting.remove(gate)
    if _steps[optimizer] == 2:
        late = [gate for gate in _waiting if trained & _ids(gate.beside) and _has_gradients(gate)]
        if late:
            warnings.warn(gates_untrained(len(late)), stacklevel=3)
            for gate in late:
                _waiting.remove(gate)


def _ids(alive: Sequence[weakref.ref]) -> set[int]:
    return {id(parameter) for one in alive if (parameter := one()) is not None}


def _has_gradients(gate: _Gate) -> bool:
    return any((parameter := one()) is not None and parameter.grad is not None for one in gate.parameters)
