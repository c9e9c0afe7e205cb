"""Sparse 3D video self-attention for unmodified models: `torch.compile(model, backend="vsa")`.

Importing this package registers the operators; it loads neither triton nor Inductor.
"""

from .backend import convert_exported, vsa
from .errors import ArgumentError, DoubleBackwardError, OptionError, RefusedError, VsaError
from .grids.prepare import prepare
from .methods import register_method
from .ops import aten, cpu, flops, gpu, schema  # noqa: F401  (operators, kernels and formulas register themselves)
from .ops.functional import attention
from .options import Options
from .plan.schedule import SparsitySchedule
from .report.explain import explain
from .report.table import Report, SiteReport
from .runtime.state import denoising, dense, video_grid
from .training.gates import add_gates

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "DoubleBackwardError",
    "OptionError",
    "Options",
    "RefusedError",
    "Report",
    "SiteReport",
    "SparsitySchedule",
    "VsaError",
    "add_gates",
    "attention",
    "convert_exported",
    "denoising",
    "dense",
    "explain",
    "prepare",
    "register_method",
    "video_grid",
    "vsa",
]
