"""`python -m vsa_compile doctor`: what this installation will run where, and what is wrong with it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata

import torch
import torch.nn.functional as F

from .. import errors
from ..backend import vsa
from ..ops import gpu
from ..ops.break_even import kernel_at_hand
from ..ops.cpu import loader
from ..ops.functional import DTYPES, attention
from ..ops.gpu.call import too_old
from ..ops.gpu.templates import template_files
from . import problems
from .bench.log import heard, reason_of
from .bench.setting import cpu_name, driver, version

_GRID = (4, 4, 4)
_NOTHING = "nothing"


@dataclass
class _Findings:
    """Lines (what, found), and problems with their ways out."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, what: str, found: str) -> None:
        self.lines.append((what, found))

    def __str__(self) -> str:
        width = max(len(what) for what, _ in self.lines)
        shown = [f"{what:{width}}  {found}" for what, found in self.lines]
        return "\n".join([*shown, *(f"problem: {text}" for text in self.problems or ["none"])])


def examine() -> tuple[str, int]:
    """The findings as text, and the exit status: 1 if there is a problem."""
    findings = _Findings()
    for look in (_versions, _entry_point, _cpu, _gpus):
        look(findings)
    return str(findings), 1 if findings.problems else 0


def _versions(findings: _Findings) -> None:
    findings.add("python", platform.python_version())
    for package in ("torch", "vsa-compile"):
        findings.add(package, version(package) or "not installed")
    has_gpu = torch.cuda.is_available()
    absent = "not installed" + ("" if has_gpu else "; GPUs alone need it")
    triton = _triton()
    findings.add("triton", triton or absent)
    findings.add("processor", f"{cpu_name()} ({torch.backends.cpu.get_cpu_capability()})")
    if triton is None and has_gpu:
        findings.problems.append(errors.no_triton())


def _triton() -> str | None:
    """The version of triton, from whichever package: torch for AMD and Intel GPUs brings its own builds."""
    packages = metadata.packages_distributions().get("triton", [])
    shown = (f"{version(name)}" + f" ({name})" * (name != "triton") for name in packages)
    return ", ".join(shown) or None


def _entry_point(findings: _Findings) -> None:
    """Without it, torch.compile(model, backend="vsa") needs an import of ours or the backend object."""
    entries = [e for e in metadata.entry_points(group="torch_dynamo_backends") if e.name == "vsa"]
    findings.add('backend="vsa"', entries[0].value if entries else "not installed")
    if not entries:
        findings.problems.append(problems.no_entry_point())
    elif entries[0].load() is not vsa:
        findings.problems.append(problems.another_installation(entries[0].value))


# --- CPU ----------------------------------------------------------------------------------------------


def _cpu(findings: _Findings) -> None:
    """Builds the C++ kernel, as the first call on CPU would."""
    kernel = _cpu_kernel(findings)
    findings.add("CPU, 16 and 32 bit", kernel)
    findings.add("CPU, float64", "ATen")
    findings.add("CPU, sparse from", kernel if kernel == _NOTHING else _sparse_from(torch.device("cpu")))
    _compare("CPU", torch.device("cpu"), attention, findings)


def _cpu_kernel(findings: _Findings) -> str:
    """Which C++ kernel, or ATen and why; a problem if this processor could do better."""
    try:
        variant = loader.asked()
    except errors.OptionError as error:
        findings.problems.append(str(error))
        return _NOTHING
    if variant is None:
        return f"ATen: {loader.VARIABLE}=aten turns the C++ kernel off"
    with heard() as texts:
        if loader.kernel(variant) is not None:
            faster = loader.variants()[0]
            picked = f"; {loader.VARIABLE} picks it, {faster} is faster" if variant != faster else ""
            return f"C++ kernel for {variant}{picked}"
    why = texts[0] if texts else "the C++ kernel was not built, and the log said why when it was tried"
    findings.problems.append(problems.no_cpp_kernel(why))
    return f"ATen: {why}"


# --- GPU ----------------------------------------------------------------------------------------------


def _gpus(findings: _Findings) -> None:
    try:
        findings.add("templates", f"{len(template_files())} files")
    except FileNotFoundError as error:
        findings.add("templates", "none")
        findings.problems.append(str(error))
    if not torch.cuda.is_available():
        findings.add("GPU", f"none that torch {torch.__version__} finds")
        return
    with heard() as texts:
        known = gpu.register()
    if not known:
        findings.problems.append(texts[0] if texts else problems.unknown_templates(torch.__version__))
    for index in range(torch.cuda.device_count()):
        _gpu(torch.device("cuda", index), known, findings)


def _gpu(device: torch.device, known: bool, findings: _Findings) -> None:
    facts, what = torch.cuda.get_device_properties(device), f"GPU {device.index}"
    findings.add(
        what,
        f"{facts.name}, compute capability {facts.major}.{facts.minor}, "
        f"{facts.total_memory / 2**30:.0f} GiB, driver {driver() or 'unknown'}",
    )
    reason = too_old(device)
    kernels = "templates" if known else "plain Triton kernels: torch's template interface is unknown"
    findings.add(f"{what}, 16 and 32 bit", f"ATen: {reason}" if reason else kernels)
    findings.add(f"{what}, float64", "ATen")
    findings.add(f"{what}, sparse from", _sparse_from(device))
    with heard() as texts:
        _compare(what, device, _compiled(), findings)
    if texts and reason is None:
        findings.problems.append(problems.templates_unused(texts[0]))


def _compiled() -> Callable:
    return torch.compile(
        lambda q, k, v, **options: attention(q, k, v, **options), backend=vsa, fullgraph=True, dynamic=False
    )


def _sparse_from(device: torch.device) -> str:
    """The sizes from which the kernels at hand beat dense attention: the default of min_tokens."""
    found: dict[str, list[str]] = {}
    for dtype in DTYPES:
        kernel = kernel_at_hand(device, dtype, (4, 4, 4), 64)
        least = "no known number of" if kernel.least is None else str(kernel.least)
        guessed = "" if kernel.measured else ", which was not measured,"
        found.setdefault(f"{least} video tokens{guessed}", []).append(str(dtype).removeprefix("torch."))
    return "; ".join(f"{least} in {', '.join(dtypes)}" for least, dtypes in found.items())


# --- Both ---------------------------------------------------------------------------------------------


def _compare(what: str, device: torch.device, run: Callable, findings: _Findings) -> None:
    """Check the kernel against SDPA: a sparsity that keeps every tile is dense attention."""
    source = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 64, 32, generator=source).to(device) for _ in range(3))
    try:
        with torch.no_grad():
            got = run(q, k, v, grid=_GRID, tile=(2, 2, 2), sparsity=1e-6)
        missed = float((got - F.scaled_dot_product_attention(q, k, v)).abs().max())
    except Exception as error:  # whatever it is, print the whole report
        findings.add(f"{what}, test", "failed")
        findings.problems.append(problems.test_failed(what, reason_of(error)))
        return
    findings.add(f"{what}, test", f"all tiles kept is dense attention within {missed:.0e}")
    if not missed <= 1e-4:
        findings.problems.append(
            problems.test_failed(what, f"it differs from dense attention by {missed:.1e}")
        )
