"""Written by benchmarks/break_even.py, which says how it was measured.

Video tokens from which on a kernel of the CPU beats dense attention; None: at no size that was tried.
"""

import torch

CPU: dict[str, dict[torch.dtype, int | None]] = {
    "avx512": {torch.float32: 1024, torch.bfloat16: 1024, torch.float16: 512},
    "avx2": {torch.float32: 1024, torch.bfloat16: 1024, torch.float16: 512},
    "aten": {torch.float32: 2048, torch.bfloat16: 2048, torch.float64: 1024},
    "plain": {torch.float32: None},
}
