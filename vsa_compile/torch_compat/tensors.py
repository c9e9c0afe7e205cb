"""What torch does with tensors and does not document."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_on_device(condition: Tensor, message: str) -> None:
    """Stops the device where a 0-dim bool is False, before it runs what is enqueued next; the host does not
    wait. Where torch has no such assertion for the device, the host waits. Checked on torch 2.13."""
    if condition.device.type == "cuda" and hasattr(torch, "_assert_async"):
        torch._assert_async(condition, message)  # pyright: ignore[reportPrivateImportUsage]
    elif not condition:
        raise AssertionError(message)
