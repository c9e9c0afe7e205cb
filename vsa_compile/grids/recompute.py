"""The grid of a call while a backward recomputes its blocks.

Checkpointed blocks run a second time within the backward, after the call is over. A call's backward begins
when gradients reach its outputs. Backward nodes of different calls do not interleave, as autograd runs the
nodes that were made last first. Nodes from before the call have smaller numbers (`Running.in_force`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..runtime.calls import ModelCall, running
from ..torch_compat import after_backward, backward_running


def resume_in_backward(call: ModelCall, out: object) -> None:
    """Let `call` run again from when a backward reaches its outputs until this backward ends."""
    known = call.grid is not None or call.images is not None
    if known and torch.is_grad_enabled():
        running.remember(call)
        resuming = torch.compiler.disable(_Resuming(call))
        for tensor in _tensors(out):
            if tensor.requires_grad and not tensor.is_leaf:  # the call did not compute a leaf
                tensor.register_hook(resuming)


class _Resuming:
    """A gradient hook on the outputs of a call."""

    def __init__(self, call: ModelCall) -> None:
        self.call = call
        self.backwards: set[int] = set()  # ids of running backwards that have reached the call

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


def _tensors(out: object) -> Iterator[Tensor]:
    """The tensors that a model returned, also in tuples, dicts and objects with attributes."""
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        yield from (x for value in out.values() for x in _tensors(value))
    elif isinstance(out, (tuple, list)):
        yield from (x for value in out for x in _tensors(value))
    elif hasattr(out, "__dict__"):
        yield from (x for x in vars(out).values() if isinstance(x, Tensor))
