"""Autograd: where in the order of nodes a thread is, and which forward a running backward belongs to.

Every node gets the next number of its thread when the forward makes it. A number that was read earlier is
therefore at most that of every node made since, which dates whatever happened in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def position() -> int:
    """The number of the autograd node that this thread makes next. Checked on torch 2.13."""
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]


def position_of_forward() -> int | None:
    """Of the node whose backward this thread runs, the number that its forward gave it; else None.

    Activation checkpointing computes a forward again within the backward of one of its nodes (of the
    checkpoint itself, where it is reentrant). Checked on torch 2.13.
    """
    node = torch._C._current_autograd_node()
    return None if node is None else node._sequence_nr()


def backward_running() -> int:
    """A number for the backward that this thread runs; -1 for none. Checked on torch 2.13."""
    return torch._C._current_graph_task_id()


def after_backward(callback: Callable[[], Any]) -> None:
    """Call it when the backward that runs now is over, or is gone because it failed. Checked on torch 2.13."""
    torch.autograd.Variable._execution_engine.queue_callback(_Once(callback))  # pyright: ignore[reportAttributeAccessIssue]


class _Once:
    """Owned by a backward, which calls it at its end, or drops it."""

    def __init__(self, callback: Callable[[], Any]) -> None:
        self.callback: Callable[[], Any] | None = callback

    def __call__(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()

    __del__ = __call__
