"""The grid of a call, while a backward computes its blocks again.

Checkpointed blocks run a second time within the backward, after the call is over. When gradients reach what
the call returned, its backward begins; nodes of one call are not mixed with those of another, as autograd
takes those first that were made last. What comes after them has smaller numbers than the call's
(`Running.in_force`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime.calls import ModelCall, running
from ..torch_compat import after_backward, backward_running


def resume_in_backward(call: ModelCall, out: Any) -> None:
    """Let `call` be running again when a backward arrives at what it returned, until this backward ends."""
    known = call.grid is not None or call.images is not None
    if known and torch.is_grad_enabled():
        running.remember(call)
        resuming = torch.compiler.disable(_Resuming(call))
        for tensor in _tensors(out):
            if tensor.requires_grad and not tensor.is_leaf:  # the call did not compute a leaf
                tensor.register_hook(resuming)


class _Resuming:
    """A hook of what a call returned."""

    def __init__(self, call: ModelCall) -> None:
        self.call = call
        self.backwards: set[int] = set()  # those that run, and have arrived

    def __call__(self, grad: Tensor) -> None:
        number = backward_running()
        if number in self.backwards:  # at another output of the same call
            return
        self.backwards.add(number)
        leave = running.enter(self.call)

        def ended() -> None:
            self.backwards.remove(number)
            leave()

        after_backward(ended)


def _tensors(out: Any) -> Iterator[Tensor]:
    """The tensors that a model returned: in tuples, dicts and objects with attributes."""
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        yield from (x for value in out.values() for x in _tensors(value))
    elif isinstance(out, (tuple, list)):
        yield from (x for value in out for x in _tensors(value))
    elif hasattr(out, "__dict__"):
        yield from (x for x in vars(out).values() if isinstance(x, Tensor))
