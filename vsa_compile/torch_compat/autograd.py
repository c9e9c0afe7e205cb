"""Autograd: the position of a thread in the order of nodes, and the forward that a backward belongs to.

In the forward every node gets the next sequence number of its thread. A number that was read before a node
was made is at most that node's, so the numbers date whatever happened in between.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import torch


def position() -> int:
    """The sequence number of the autograd node that this thread makes next. Checked on torch 2.13."""
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]


def position_of_forward() -> int | None:
    """The sequence number of the node whose backward this thread runs; None outside of a backward.

    Activation checkpointing computes a forward again within the backward of one of its nodes (for a reentrant
    checkpoint, of the checkpoint itself). Checked on torch 2.13.
    """
    node = torch._C._current_autograd_node()
    return None if node is None else node._sequence_nr()


def backward_running() -> int:
    """An id of the backward that this thread runs; -1 outside of one. Checked on torch 2.13."""
    return torch._C._current_graph_task_id()


def thread_of_autograd() -> bool:
    """Whether autograd made this thread, for a GPU, so that others made what it goes back through.

    Python knows such threads as dummies. Checked on torch 2.13.
    """
    return type(threading.current_thread()).__name__ == "_DummyThread"


def may_be_within_another() -> bool:
    """Whether the backward that this thread runs may be one that a node of another started.

    A thread of autograd serves the backwards of several threads in turn; others run theirs to the end.
    Checked on torch 2.13; where torch starts them in another way, any may be.
    """
    started = getattr(torch.autograd.graph, "_engine_run_backward", None)
    if started is None or not thread_of_autograd():
        return True
    frame = sys._getframe()
    while frame is not None and frame.f_code is not started.__code__:
        frame = frame.f_back
    return frame is not None


def after_backward(callback: Callable[[], None]) -> None:
    """Call `callback` when the running backward has ended, also by an error. Checked on torch 2.13."""
    torch.autograd.Variable._execution_engine.queue_callback(_Once(callback))  # pyright: ignore[reportAttributeAccessIssue]


class _Once:
    """Owned by a backward, which calls it at its end, or drops it."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def __call__(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()

    __del__ = __call__
