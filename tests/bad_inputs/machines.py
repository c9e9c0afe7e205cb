"""X25-X27: devices, and missing or broken tools."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

from vsa_compile import torch_compat
from vsa_compile.ops import gpu
from vsa_compile.ops.cpu import loader
from vsa_compile.ops.gpu import graph, lowering

from .row import COMPUTED, GRID, TOKENS, Row, Video, alike, by_hand, itself, relative, tensor

ROOT = Path(__file__).parents[2]


@contextmanager
def logged(name: str) -> Iterator[list[str]]:
    """The messages of a logger."""
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())
    log = logging.getLogger(name)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield texts
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def on_device(
    kind: str,
    capability: tuple[int, int] = (9, 0),
    hip: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    scale: float = 0.25,
) -> Callable[[], str]:
    """What Inductor is told to run on a device that this machine need not have."""

    def how() -> str:
        q = SimpleNamespace(
            get_device=lambda: torch.device(kind),
            get_dtype=lambda: dtype,
            get_size=lambda: (1, 2, TOKENS, 16),
        )
        with ExitStack() as stack:
            for where, name, value in (
                (graph, "static_size", int),
                (torch.cuda, "get_device_capability", lambda _: capability),
                (torch.version, "hip", hip),
            ):
                stack.enter_context(mock.patch.object(where, name, value))
            texts = stack.enter_context(logged("vsa_compile.gpu"))
            leaf = lowering.LEAVES["attend"]
            module = SimpleNamespace(
                unsupported=leaf.lowering.unsupported, lower=lambda *_: "the Triton kernel"
            )
            stack.enter_context(mock.patch.dict(lowering.LEAVES, attend=leaf._replace(lowering=module)))
            ran = lowering.lower("attend", lambda *_: "ATen", q, q, q, *(None,) * 7, scale)
        reasons = [text for text in texts if "chunked ATen: " in text]
        return f"computed by {ran}" + "".join(f"; the log says: {text}" for text in reasons)

    return how


def processor(capability: str) -> Callable[[], str]:
    """Which of the kernels a processor runs, and what VSA_COMPILE_CPU may pick there."""

    def how() -> str:
        with (
            mock.patch.object(torch.backends.cpu, "get_cpu_capability", return_value=capability),
            mock.patch.object(platform, "machine", return_value="x86_64"),
            mock.patch.dict(os.environ, {loader.VARIABLE: ""}),
        ):
            return f"computed by the C++ kernel for {loader.asked()}, of {', '.join(loader.variants())}"

    return how


def without_compiler() -> str:
    with (
        mock.patch.object(torch_compat, "load_cpp", side_effect=RuntimeError("no C++ compiler found")),
        logged("vsa_compile.cpu") as texts,
    ):
        kernel = loader.kernel.__wrapped__("plain")
    return f"computed by {'ATen' if kernel is None else 'C++'}; the log says: {texts[-1]}"


def unknown_variant() -> str:
    with (
        mock.patch.object(loader, "variants", return_value=("avx2", "plain")),
        mock.patch.dict(os.environ, {loader.VARIABLE: "avx3"}),
    ):
        return by_hand(**alike())()


ATEN = "computed by ATen; the log says: vsa_compile::attend runs through chunked ATen: "
DEVICES = (
    Row(
        "X25",
        "an NVIDIA GPU of compute capability 7.5",
        on_device("cuda", (7, 5)),
        f"{ATEN}the GPU is older than compute capability 8.0",
    ),
    Row(
        "X25",
        "an NVIDIA GPU of compute capability 8.0",
        on_device("cuda", (8, 0)),
        "computed by the Triton kernel",
    ),
    Row("X25", "an AMD GPU (ROCm)", on_device("cuda", (9, 4), hip="6.4"), "computed by the Triton kernel"),
    Row("X25", "an Intel GPU", on_device("xpu"), "computed by the Triton kernel"),
    Row("X25", "Apple's MPS", on_device("mps"), "computed by ATen"),
    Row(
        "X25",
        "float64 on a GPU",
        on_device("cuda", dtype=torch.float64),
        f"{ATEN}torch.float64 has no tensor core path",
    ),
    Row(
        "X25",
        "scale=-0.3 on a GPU",
        on_device("cuda", scale=-0.3),
        f"{ATEN}the softmax scale is -0.3, not a positive constant",
    ),
    Row(
        "X25",
        "a processor with AVX-512",
        processor("AVX512"),
        "computed by the C++ kernel for avx512, of avx512, avx2, plain",
    ),
    Row(
        "X25",
        "a processor with AVX2 and no AVX-512",
        processor("AVX2"),
        "computed by the C++ kernel for avx2, of avx2, plain",
    ),
    Row(
        "X25",
        "a processor without AVX2",
        processor("DEFAULT"),
        "computed by the C++ kernel for plain, of plain",
    ),
    Row(
        "X25",
        "a CPU without a C++ compiler",
        without_compiler,
        "computed by ATen; the log says: the CPU attention kernel is not available, ATen runs instead, "
        "several times slower: no C++ compiler found",
    ),
    Row(
        "X25",
        "VSA_COMPILE_CPU=avx3",
        unknown_variant,
        "OptionError: the environment variable VSA_COMPILE_CPU is 'avx3', but it must be one of avx2, plain "
        "and aten on this processor. Unset it to use the fastest.",
    ),
    Row("X25", "the meta device", by_hand(**alike(device="meta")), "a meta tensor of shape (1, 2, 60, 16)"),
)


def program(body: str, cache: str | None = None) -> str:
    """The last line that a Python process of its own prints."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    if cache is not None:
        environment["TORCHINDUCTOR_CACHE_DIR"] = cache
    command = [sys.executable, "-W", "ignore", "-c", body]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.splitlines()[-1]


WITHOUT_TRITON = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import torch
from bad_inputs.row import Video, arguments, itself, judged, relative, tensor
by_hand = judged(arguments())
model, x = Video(itself), tensor(2, 32, 3, 4, 5)
with torch.no_grad():
    out = torch.compile(model, backend="vsa", options={"sparsity": 1e-6, "min_tokens": 0})(x)
    same = relative(out, model(x)) < 1e-5
count = torch._dynamo.utils.counters["vsa_compile"]["converted"]
assert not any(name.split(".")[0] == "triton" for name in sys.modules)
print(f"by hand {by_hand}; a model: {count} call sparse, {'equals dense attention' if same else 'wrong'}")
"""

BY_HAND_WITHOUT_CACHE = """
import logging
texts = []
handler = logging.Handler()
handler.emit = lambda record: texts.append(record.getMessage())
logging.getLogger("vsa_compile.cpu").addHandler(handler)
from bad_inputs.row import arguments, judged
outcome = judged(arguments())
print(f"{outcome}; the log says: {texts[-1].partition(' slower')[0]} slower")
"""

MODEL_WITHOUT_CACHE = """
import torch
from bad_inputs.row import Video, itself, tensor
def error(backend):
    try:
        torch.compile(Video(itself), backend=backend)(tensor(2, 32, 3, 4, 5))
    except Exception as raised:
        return type(getattr(raised, "inner_exception", raised)).__name__
    return "none"
print(f"{error('vsa')}, which is Inductor's own")
"""


def without_cache(body: str) -> str:
    """A cache folder below a file: not even root can write there."""
    with tempfile.NamedTemporaryFile() as file:
        return program(body, cache=f"{file.name}/cache")


def old_triton() -> str:
    """Inductor's interface to Triton is not as we know it."""
    gpu._register.cache_clear()
    try:
        with (
            mock.patch.object(
                torch_compat, "triton_template", mock.Mock(side_effect=TypeError("another interface"))
            ),
            logged("vsa_compile.gpu") as texts,
        ):
            known = gpu.register()
    finally:
        gpu._register.cache_clear()
    return f"{'the template' if known else 'no template'}; the log says: {texts[-1]}"


def poisoned_cache() -> str:
    """Every entry of Inductor's caches is overwritten with garbage between two compilations."""
    model, x = Video(itself), tensor(2, 32, *GRID)
    options = {"sparsity": 1e-6, "min_tokens": 0}
    with torch._inductor.utils.fresh_cache() as _, torch.no_grad():
        torch.compile(model, backend="vsa", options=options)(x)
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        entries = [
            p for name in ("fxgraph", "aotautograd") for p in (folder / name).rglob("*") if p.is_file()
        ]
        for path in entries:
            path.write_bytes(b"\x80\x05garbage")
        torch._dynamo.reset()
        out = torch.compile(model, backend="vsa", options=options)(x)
        same = len(entries) > 1 and relative(out, model(x)) < 1e-5
    return "compiled again: equals dense attention" if same else "wrong, or nothing was cached"


TOOLS = (
    Row(
        "X26",
        "triton is not installed",
        lambda: program(WITHOUT_TRITON),
        f"by hand {COMPUTED}; a model: 1 call sparse, equals dense attention",
    ),
    Row(
        "X26",
        "a torch or triton whose templates have another interface",
        old_triton,
        "no template; the log says: Inductor's template interface of this torch is unknown to vsa_compile: "
        "the sparse kernels run as plain Triton kernels, as in eager mode, with nothing fused into them. "
        "Please report the torch version and this trace.",
    ),
    Row(
        "X27",
        "a cache folder that cannot be written (by hand)",
        lambda: without_cache(BY_HAND_WITHOUT_CACHE),
        f"{COMPUTED}; the log says: the CPU attention kernel is not available, ATen runs instead, several "
        f"times "
        "slower",
    ),
    Row(
        "X27",
        "a cache folder that cannot be written (a model)",
        lambda: without_cache(MODEL_WITHOUT_CACHE),
        "NotADirectoryError, which is Inductor's own",
    ),
    Row(
        "X27",
        "a cache folder full of garbage (a model)",
        poisoned_cache,
        "compiled again: equals dense attention",
    ),
)

ROWS = (*DEVICES, *TOOLS)
