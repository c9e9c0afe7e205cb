"""FLOP formulas: exactly dense when all tiles are kept, whichever import comes first."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vsa_compile

pytestmark = pytest.mark.quick


def counted(sparsity, grid=(5, 6, 7), backward=False):
    tokens = grid[0] * grid[1] * grid[2]
    q, k, v = (torch.randn(1, 2, tokens, 16, requires_grad=backward) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        out = vsa_compile.attention(q, k, v, grid=grid, sparsity=sparsity)
        if backward:
            out.sum().backward()
    by_op = counter.get_flop_counts()["Global"]
    return {str(op).removeprefix("vsa_compile."): count for op, count in by_op.items() if "vsa" in str(op)}


def test_all_tiles_kept_counts_as_dense_forward_and_backward():
    dense = 4 * 2 * 16 * 210 * 210
    assert counted(1e-6, backward=True) == {"attend": dense, "attend_backward": dense * 5 // 2}


def test_sparse_counts_the_kept_share():
    assert counted(0.5)["attend"] == 4 * 2 * 16 * 210 * 210 // 2


@pytest.mark.seconds
@pytest.mark.parametrize(
    "order", [("vsa_compile", "torch.utils.flop_counter"), ("torch.utils.flop_counter", "vsa_compile")]
)
def test_formulas_are_registered_in_either_import_order(order):
    code = (
        f"import {order[0]}, {order[1]}, torch; from torch.utils.flop_counter import flop_registry; "
        "assert torch.ops.vsa_compile.attend in flop_registry and "
        "torch.ops.vsa_compile.attend_backward in flop_registry"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
