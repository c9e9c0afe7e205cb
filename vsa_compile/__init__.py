"""Sparse 3D video self-attention for unmodified models: `torch.compile(model, backend="vsa")`.

Importing this package registers the operators; it loads neither triton nor Inductor.
"""

from .backend import convert_exported, vsa
from .errors import ArgumentError, DoubleBackwardError, OptionError, RefusedError, StateError, VsaError
from .grids.grid_rules import register_grid_rule
from .grids.positions import VideoTokens
from .grids.prepare import prepare, unprepare
from .methods import register_method
from .ops import aten, cpu, flops, gpu, schema  # noqa: F401  (operators, kernels and formulas register themselves)
from .ops.functional import attention
from .options import Options
from .patch import patch_attention, unpatch_attention
from .plan.schedule import SparsitySchedule
from .report.explain import explain
from .report.site_report import Report, SiteReport
from .runtime.denoising import denoising
from .runtime.state import dense, video_grid
from .training.gates import add_gates, remove_gates

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
    "StateError",
    "VideoTokens",
    "VsaError",
    "add_gates",
    "attention",
    "convert_exported",
    "denoising",
    "dense",
    "explain",
    "patch_attention",
    "prepare",
    "register_grid_rule",
    "register_method",
    "remove_gates",
    "unpatch_attention",
    "unprepare",
    "video_grid",
    "vsa",
]
