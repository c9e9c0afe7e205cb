"""Where and how a result was measured: the head of every result file."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch


def setting(device: torch.device | None = None) -> dict[str, object]:
    """Machine, versions, commit and command of this process; None for what does not exist."""
    return {
        **(_cpu() if device is None or device.type == "cpu" else _gpu(device)),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "triton": version("triton"),
        "vsa_compile": version("vsa-compile"),
        "commit": _output("git", "describe", "--always", "--dirty"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": _command(),
    }


def version(package: str) -> str | None:
    """The version of an installed package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name, on Linux from the kernel."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line for line in lines if line.startswith("model name")]
    return models[0].split(":")[1].strip() if models else platform.processor()


def driver() -> str | None:
    """The version of NVIDIA's driver."""
    shown = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return shown.splitlines()[0] if shown else None


def _cpu() -> dict[str, object]:
    capability = torch.backends.cpu.get_cpu_capability()
    return {"device": cpu_name(), "capability": capability, "driver": None}


def _gpu(device: torch.device) -> dict[str, object]:
    facts = torch.cuda.get_device_properties(device)
    return {
        "device": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "memory_bytes": facts.total_memory,
        "processors": facts.multi_processor_count,
        "l2_bytes": getattr(facts, "L2_cache_size", None),
    }


def _command() -> str:
    """The command line, without the path of the package."""
    program, *arguments = sys.argv
    typed = ["-m", "vsa_compile"] if Path(program).name == "__main__.py" else [program]
    return " ".join(["python", *typed, *arguments])


def _output(*command: str) -> str | None:
    """What a program prints; None if it does not exist or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parent, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
