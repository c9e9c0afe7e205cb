"""Sparse 3D video self-attention for unmodified models: `torch.compile(model, backend="vsa")`.

Importing this package registers the operators; it loads neither triton nor Inductor.
"""

from . import aten, cpu, ops  # noqa: F401  (operators and their kernels register themselves)

__version__ = "0.1.0"
