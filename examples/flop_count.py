"""FLOPs of a training step through backend="vsa", as torch's FLOP counter sees them.

The counter does not see into torch.compile, so the graph that the backend has rewritten is run as it is. On
CPU torch has no formula for its own SDPA; it is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vsa_compile.backend import convert, read_options

aten = torch.ops.aten


def _sdpa(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Two products of 2 D FLOPs per query-key pair."""
    return 4 * q[0] * q[1] * q[2] * q[3] * k[2]


def _sdpa_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Five products: the scores again, dP, dV, dQ and dK."""
    return _sdpa(q, k, v) * 5 // 2


FORMULAS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _sdpa,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward,
}
# What belongs to attention: SDPA, our operators, and bmm, by which tiles are scored and coarse outputs made.
ATTENTION = ("scaled_dot_product", "vsa_compile.", "bmm")


class FlopCount:
    """`FlopCount(model, options)(*inputs)` is [of attention, of all]: one forward and backward, counted now.

    A sparsity that a schedule has changed, and lists that other weights have made longer, count as they are.
    Adds to the gradients of the model.
    """

    def __init__(self, model: nn.Module, options: Mapping[str, Any]) -> None:
        self.settings = read_options(options)
        self.run = torch.compile(model, backend=self._note, dynamic=False)

    def _note(self, module: torch.fx.GraphModule, _: list) -> Any:
        convert(module, self.settings)

        def run(*inputs: Any) -> Any:
            self.graph = module, inputs
            return module(*inputs)

        return run

    def __call__(self, noisy: Tensor, times: Tensor, *_: Tensor) -> list[int]:
        self.run(noisy, times)  # Dynamo finds, or makes, the graph for now
        module, inputs = self.graph
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            module(*inputs)[0].square().mean().backward()
        by_op = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
        attention = sum(flops for op, flops in by_op.items() if any(part in op for part in ATTENTION))
        return [attention, sum(by_op.values())]
