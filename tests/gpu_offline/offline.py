"""Compiles rendered kernels to machine code, with no GPU, and measures the result.

    python -m gpu_offline.offline FOLDER GROUP

compiles the kernels of a group of GOLDEN, out of FOLDER/NAME-TARGET.json, and writes
FOLDER/machine_code_GROUP.json, a list of Build fields.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gpu_offline.golden import kernels_of
from gpu_offline.kernels import Kernel, load_kernel
from gpu_offline.program import Program

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Matrix instructions of Ampere, Hopper and Blackwell; asynchronous copies, by thread and by box; spills to
# local memory; double precision.
_INSTRUCTIONS = ("HMMA", "HGMMA", "UTCHMMA", "LDGSTS", "UTMALDG", "STL", "LDL", "DADD", "DMUL", "DFMA")
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Build:
    """Machine code of one kernel: registers per thread, bytes of spills and of shared memory."""

    name: str
    target: str
    kind: str
    registers: int
    spills: int
    shared_bytes: int
    instructions: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        code = " ".join(f"{name} {count}" for name, count in self.instructions.items())
        return (
            f"{self.name:32s} {self.kind:15s} {self.target:7s} {self.registers:3d} registers, "
            f"{self.spills} spilled, {self.shared_bytes / 1024:5.1f} KiB shared, "
            f"{self.seconds:4.1f} s; {code}"
        )


def build(name: str, target_name: str, kind: str, kernel: Kernel) -> Build:
    """Compile with the options that Inductor's decorator was given."""
    target = TARGETS[target_name]
    meta = kernel.options["triton_meta"]
    (attributes,) = meta["configs"]
    arguments = {"signature": meta["signature"], "constexprs": meta["constants"], "attrs": attributes}
    source = ASTSource(kernel.function, **{key: dict(value) for key, value in arguments.items()})
    options = {key: kernel.options[key] for key in ("num_warps", "num_stages")}
    start = time.perf_counter()
    compiled = triton.compile(source, target=target, options=options)
    return measured(name, target_name, kind, compiled, time.perf_counter() - start)


def measured(name: str, target: str, kind: str, compiled: Any, seconds: float) -> Build:
    """What a compiled kernel needs."""
    measure = _nvidia if TARGETS[target].backend == "cuda" else _amd
    registers, spills, instructions = measure(compiled)
    shared = compiled.metadata.shared
    return Build(name, target, kind, registers, spills, shared, instructions, round(seconds, 1))


def _nvidia(compiled: Any) -> tuple[int, int, dict[str, int]]:
    usage, code = _tool(compiled, "cuobjdump", "--dump-resource-usage"), disassembled(compiled)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, local = map(int, found.groups())
    counts = {name: len(re.findall(rf"\b{name}\b", code)) for name in _INSTRUCTIONS}
    return registers, stack + local, {name: count for name, count in counts.items() if count}


def disassembled(compiled: Any) -> str:
    """The machine code of a kernel for NVIDIA, as text."""
    return _tool(compiled, "nvdisasm", "-c")


def _tool(compiled: Any, tool: str, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return _run(tool, option, file.name)


def _amd(compiled: Any) -> tuple[int, int, dict[str, int]]:
    code = compiled.asm["amdgcn"]

    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", code)
        assert found is not None, f"no {name} in the assembly"
        return int(found[1])

    spills = field("vgpr_spill_count") + field("sgpr_spill_count")
    return field("vgpr_count"), spills, {"v_mfma": len(re.findall("v_mfma", code))}


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def main(folder: Path, group: str) -> None:
    builds = []
    for name, target, kind in kernels_of(group):
        program = Program.load(folder / f"{name}-{target}.json")
        builds.append(build(name, target, kind, load_kernel(*program.template_kernel(kind))))
        print(builds[-1], flush=True)
    (folder / f"machine_code_{group}.json").write_text(json.dumps([asdict(item) for item in builds]))


def load_builds(folder: Path, file: str) -> dict[tuple[str, str, str], Build]:
    """(program, target, template) -> what was measured."""
    builds = [Build(**fields) for fields in json.loads((folder / file).read_text())]
    return {(item.name, item.target, item.kind): item for item in builds}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
