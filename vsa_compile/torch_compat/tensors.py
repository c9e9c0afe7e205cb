"""Undocumented tensor functions of torch."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_on_device(condition: Tensor, message: str) -> None:
    """Stop the device before its next work if a 0-dim bool is False, without making the host wait.

    On devices for which torch has no such assertion the host waits. Checked on torch 2.13."""
    if condition.device.type == "cuda" and hasattr(torch, "_assert_async"):
        torch._assert_async(condition, message)  # pyright: ignore[reportPrivateImportUsage]
    elif not condition:
        raise AssertionError(message)


def flash_on_cpu(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """torch's fused attention on CPU, with its lse, which the differentiable version does not return.

    q (U, n, D), k and v (U, L, D), seen (U, L) bool or None -> out like q, lse (U, n) in fp32 or wider.
    Checked on torch 2.13."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q[:, None], k[:, None], v[:, None], attn_mask=_added(seen, q), scale=scale
    )
    return out[:, 0], lse[:, 0]


def flash_backward_on_cpu(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, out: Tensor, lse: Tensor, seen: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v of `flash_on_cpu`. Checked on torch 2.13."""
    gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out[:, None], q[:, None], k[:, None], v[:, None], out[:, None], lse[:, None], 0.0, False,
        attn_mask=_added(seen, q), scale=scale,
    )  # fmt: skip
    return tuple(x[:, 0] for x in gradients)  # pyright: ignore[reportReturnType]


def _added(seen: Tensor | None, q: Tensor) -> Tensor | None:
    """The boolean mask as a float mask that is added to the logits."""
    if seen is None:
        return None
    mask = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, -torch.inf)
    return mask[:, None, None].expand(-1, -1, q.shape[1], -1)
