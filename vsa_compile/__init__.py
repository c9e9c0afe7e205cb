"""Sparse 3D video self-attention for unmodified models: `torch.compile(model, backend="vsa")`.

Importing this package registers the operators; it loads neither triton nor Inductor.
"""

from . import aten, cpu, flops, gpu, ops  # noqa: F401  (operators, kernels and formulas register themselves)
from .backend import convert_exported, vsa
from .errors import ArgumentError, DoubleBackwardError, OptionError, RefusedError, VsaError
from .functional import attention
from .gates import add_gates
from .methods import register_method
from .options import Options
from .prepare import prepare
from .report import Report, SiteReport, explain
from .schedule import SparsitySchedule
from .state import denoising, dense, video_grid

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
