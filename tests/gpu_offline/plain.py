"""Runs and compiles the plain Triton kernels, those without Inductor, on a machine without a GPU.

    python -m gpu_offline.plain FOLDER render
    TRITON_INTERPRET=1 python -m gpu_offline.plain FOLDER interpret
    python -m gpu_offline.plain FOLDER compile

write FOLDER/traced_<case>.json, what Inductor makes of a triton_op, and FOLDER/fallback_<why>.json, what it
does where there is no template; FOLDER/plain_<case>.pt, FOLDER/plain_<fault>.pt and FOLDER/traced_<case>.pt,
as gpu_offline.interpreter does; and FOLDER/plain_machine_code.json, as gpu_offline.offline does.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import vsa_compile
from gpu_offline.cases import Case
from gpu_offline.fake_cuda import fake_cuda
from gpu_offline.faults import Fault
from gpu_offline.program import Program
from gpu_offline.selections import SELECTIONS, Selection
from gpu_offline.tables import ALL
from vsa_compile import torch_compat
from vsa_compile.ops import gpu
from vsa_compile.ops.gpu import call, configs, eager, graph, launch, render

# What a rendered kernel could get wrong where the template is right.
_TEXT, _GROUPED = "text_on_both_sides_with_padding", "backward_grouped_heads_fp16"
FAULTS = {
    "plain_output_axes_swapped": Fault(
        _TEXT, "attend_fwd",
        "idx_b * OUTPUT_stride_0 + idx_n * OUTPUT_stride_1 + idx_h * OUTPUT_stride_2",
        "idx_b * OUTPUT_stride_0 + idx_n * OUTPUT_stride_2 + idx_h * OUTPUT_stride_1",
    ),
    "plain_store_not_masked": Fault("ragged_grid_and_counts", "attend_fwd", "acc, mask=mask", "acc"),
    "plain_keys_with_strides_of_queries": Fault(
        _TEXT, "attend_fwd",
        "K_stride_0, K_stride_1, K_stride_2, K_stride_3", "Q_stride_0, Q_stride_1, K_stride_2, K_stride_3",
    ),
    "plain_size_of_another_tensor": Fault(
        "text_of_different_lengths_bf16", "attend_fwd", "NKV = K_size_2", "NKV = Q_size_2"
    ),
    "plain_size_of_another_dimension": Fault(
        "ragged_grid_and_counts", "attend_fwd", "SITE_size_2", "SITE_size_1"
    ),
    "plain_padding_of_the_first_batch_alone": Fault(
        _TEXT, "attend_fwd", "PADDING + idx_b * PADDING_stride_0", "PADDING"
    ),
    "plain_gradient_in_the_axes_of_queries": Fault(
        _GROUPED, "attend_dkdv",
        "GRAD_OUT_stride_0, GRAD_OUT_stride_1, GRAD_OUT_stride_2, GRAD_OUT_stride_3",
        "GRAD_OUT_stride_0, GRAD_OUT_stride_2, GRAD_OUT_stride_1, GRAD_OUT_stride_3",
    ),
    "plain_starts_of_the_first_head_alone": Fault(
        _GROUPED, "transpose_lists", "idx_h * OUTPUT_stride_1", "0"
    ),
    "plain_counts_of_the_first_row_alone": Fault(
        "select_by_threshold", "select", "idx_m * OUTPUT_stride_2", "0"
    ),
}  # fmt: skip
LEAVES = ("select", "attend", "attend_backward")
_BY_NAME: dict[str, Any] = {case.name: case for case in (*ALL, *SELECTIONS)}
RUN = tuple(
    _BY_NAME[name]
    for name in (
        "ragged_grid_and_counts",
        "token_major_fp16",
        "full_tiles_width_96_bf16",
        "tile_of_several_blocks",
        "text_on_both_sides_with_padding",
        "text_of_different_lengths_bf16",
        "dyed_text_bf16",
        "wide_offsets",
        "backward_grouped_heads_fp16",
        "backward_text_on_both_sides_with_padding",
        "backward_text_queries_alone",
        "backward_packed_qkv_bf16",
        "packed_text_bf16",
        "backward_packed_text_bf16",
        "select_ties",
        "select_strange_scores",
        "select_by_threshold",
        "select_by_count",
        "select_rows_of_several_blocks",
    )
)
# Through torch.compile, which looks into a triton_op; the first with symbolic sizes.
TRACED = tuple(_BY_NAME[name] for name in ("symbolic_sizes", "text_on_both_sides_with_padding"))
# (call, target) -> templates that are compiled; a call is one of gpu_offline.rendering.launch_of.
LAUNCHED = {
    ("bf16_width_128", "sm_90"): ("attend_fwd",),
    ("bf16_width_128_text", "sm_90"): ("attend_fwd",),
    ("backward_bf16_width_128", "sm_90"): ("attend_dq", "transpose_lists", "rank_columns", "attend_dkdv"),
    ("select_of_624", "sm_90"): ("select",),
    ("bf16_width_128", "sm_80"): ("attend_fwd",),
    ("backward_bf16_width_128", "sm_80"): ("attend_dq", "attend_dkdv"),
}


class _Kernel:
    """Stands for a triton kernel: kernel[grid](**arguments) runs `work(name, kernel, grid, arguments)`."""

    def __init__(self, kernel: Any, work: Callable) -> None:
        self._kernel, self._work = kernel, work

    def __getitem__(self, grid: tuple) -> Callable:
        def launched(**arguments: Any) -> None:
            self._work(self._kernel.__name__.removeprefix("vsa_"), self._kernel, grid, arguments)

        return launched


@contextlib.contextmanager
def plain_leaves(work: Callable | None = None) -> Iterator[None]:
    """Within it the leaf operators are their triton_ops, on any device, as on a GPU of the Ampere family."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(configs, "family", return_value="ampere"))
        for name in LEAVES:
            stack.enter_context(mock.patch.object(torch.ops.vsa_compile, name, eager.operator(name)))
        if work is not None:
            stack.enter_context(mock.patch.object(launch, "wrap_triton", lambda x: _Kernel(x, work)))
        yield


# --- rendered by Inductor ---------------------------------------------------------------------------


def render_all(folder: Path) -> None:
    from gpu_offline.rendering import TARGETS, render_case

    fails = mock.Mock(side_effect=NotImplementedError("another interface"))
    with fake_cuda(TARGETS["sm_90"]):
        # First: what is registered once stays so.
        with mock.patch.object(torch_compat, "triton_template", fails):
            render_fallback(folder, "missing")
        gpu._register.cache_clear()
        with mock.patch.object(graph, "template_buffer", fails):
            render_fallback(folder, "failing")
        for case in TRACED:
            with plain_leaves():
                render_case(case).save(folder / f"traced_{case.name}.json")


def render_fallback(folder: Path, why: str) -> None:
    """What a graph calls, and all that is said, if it is compiled twice."""
    from gpu_offline.rendering import render_case

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(f"{record.levelname}: {record.getMessage()}")
    log = logging.getLogger("vsa_compile.gpu")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    for _ in range(2):
        known = gpu.register()
        program = render_case(_BY_NAME["ragged_grid_and_counts"])
    log.removeHandler(handler)
    told = {"registered": known, "calls": program.calls, "kernels": list(program.kernels), "said": said}
    (folder / f"fallback_{why}.json").write_text(json.dumps(told))


# --- interpreted ------------------------------------------------------------------------------------


def run_plain(case: Case | Selection, fault: Fault | None) -> list[Tensor]:
    """The outputs of the plain kernels of a case; of a backward also starts, columns and order."""
    from gpu_offline.interpreter import Memory

    memory, launched = Memory(), {}

    def interpret(name: str, kernel: Any, grid: tuple, arguments: dict[str, Any]) -> None:
        kernel[grid](**arguments)
        launched[name] = arguments

    def fresh(size: tuple, dtype: torch.dtype, _: torch.device) -> launch.TensorIR:
        stride = torch.empty(size, device="meta").stride()
        return launch.TensorIR(memory.fresh(tuple(size), stride, dtype))

    def faulty(*arguments: Any) -> render.Source:
        source = plainly(*arguments)
        if source.name != f"vsa_{fault.template}":
            return source
        return source._replace(text=fault.put_into(source.name, source.text))

    plainly = render.render
    function, integers, tensors = case.call()
    with contextlib.ExitStack() as stack:
        stack.enter_context(plain_leaves(interpret))
        stack.enter_context(mock.patch.object(launch, "new_buffer", fresh))
        stack.enter_context(mock.patch.object(launch, "_FARTHEST", -1 if case.wide else launch._FARTHEST))
        if fault is not None:
            launch._rendered.cache_clear()
            stack.callback(launch._rendered.cache_clear)
            stack.enter_context(mock.patch.object(render, "render", faulty))
        outputs = function(*integers, *(memory.copy_of(x) for x in tensors))
    memory.check_margins()
    lists = []
    if "rank_columns" in launched:
        starts, columns = (launched["transpose_lists"][name] for name in (render.OUTPUT, "COLUMNS"))
        lists = [starts, columns, launched["rank_columns"][render.OUTPUT]]
    return [x.clone() for x in (*outputs, *lists)]


def interpret_all(folder: Path) -> None:
    from gpu_offline.interpreter import WroteBesideError, compute_bf16_as_bf16, run_program

    compute_bf16_as_bf16()
    torch.set_num_threads(1)
    np.seterr(all="ignore")  # log2(0) and the like, where the kernel means it
    for case in TRACED:
        program = Program.load(folder / f"traced_{case.name}.json")
        torch.save(run_program(program, case.call()[2]), folder / f"traced_{case.name}.pt")
    check_schemas(folder)
    faulty = [(name, _BY_NAME[fault.noticed_by], fault) for name, fault in FAULTS.items()]
    for name, case, fault in [*((f"plain_{case.name}", case, None) for case in RUN), *faulty]:
        try:
            outcome: Any = run_plain(case, fault)
        except WroteBesideError as error:
            outcome = str(error)
        torch.save(outcome, folder / f"{name}.pt")
    train_eagerly(folder)  # last, for it changes the operators


def train_eagerly(folder: Path) -> None:
    """A whole method by hand, forward and backward, where the leaves of the CPU are those of a GPU."""
    library = torch.library.Library("vsa_compile", "IMPL")
    source = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, 4 * 5 * 6, 16, generator=source, requires_grad=True) for _ in range(4)]

    def step() -> list[Tensor]:
        q, k, v, gate = inputs
        out = vsa_compile.attention(q, k, v, grid=(4, 5, 6), gate=gate, sparsity=0.5, tile=(2, 4, 4))
        return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]

    launched: list[str] = []

    def interpret(name: str, kernel: Any, grid: tuple, arguments: dict[str, Any]) -> None:
        kernel[grid](**arguments)
        launched.append(name)

    with contextlib.ExitStack() as stack:
        for where, name, value in (
            (configs, "family", lambda _: "hopper"),
            (call, "family", lambda _: "hopper"),
            (torch.accelerator, "device_index", lambda _: contextlib.nullcontext()),
            (launch, "wrap_triton", lambda x: _Kernel(x, interpret)),
        ):
            stack.enter_context(mock.patch.object(where, name, value))
        wanted = step()
        for leaf in LEAVES:
            library.impl(leaf, functools.partial(eager.run, leaf), "CPU", allow_override=True)
        got = step()
    torch.save([got, wanted, launched], folder / "eager_training.pt")


def check_schemas(folder: Path) -> None:
    """torch's own check: no operator writes an input or returns one. Saves the names of those that passed."""
    passed = []
    for name in ("ragged_grid_and_counts", "backward_text_keys_alone_fp16", "select_by_count"):
        with contextlib.ExitStack() as stack:
            stack.enter_context(plain_leaves())
            for leaf in LEAVES:
                check = functools.partial(_checked, leaf, passed)
                stack.enter_context(mock.patch.object(torch.ops.vsa_compile, leaf, check))
            function, integers, tensors = _BY_NAME[name].call()
            function(*integers, *tensors)
    (folder / "schemas.json").write_text(json.dumps(passed))


def _checked(leaf: str, passed: list[str], *arguments: Any) -> Any:
    torch.library.opcheck(eager.operator(leaf), arguments, test_utils="test_schema")
    passed.append(leaf)
    return eager.operator(leaf)(*arguments)


# --- compiled ---------------------------------------------------------------------------------------


def compile_all(folder: Path) -> None:
    from gpu_offline.offline import measured
    from gpu_offline.rendering import TARGETS, launch_of

    builds = []
    for (name, target), kinds in LAUNCHED.items():

        def build(kind: str, kernel: Any, grid: tuple, arguments: dict[str, Any]) -> None:
            if kind not in kinds:  # noqa: B023 - called before the next turn
                return
            start = time.perf_counter()
            compiled = machine_code(kernel, grid, arguments)
            builds.append(measured(name, target, kind, compiled, time.perf_counter() - start))  # noqa: B023
            print(builds[-1], flush=True)

        with contextlib.ExitStack() as stack:
            stack.enter_context(fake_cuda(TARGETS[target]))
            stack.enter_context(FakeTensorMode())
            function, arguments = launch_of(name)
            stack.enter_context(plain_leaves(build))
            function(*arguments)
    (folder / "plain_machine_code.json").write_text(json.dumps([asdict(item) for item in builds]))


def machine_code(kernel: Any, grid: tuple, arguments: dict[str, Any]) -> Any:
    """What triton would launch for these arguments: specialised as it does it, to real sizes and strides."""
    from triton.runtime.jit import MockTensor

    given = {name: MockTensor(x.dtype) if isinstance(x, Tensor) else x for name, x in arguments.items()}
    kernel.device_caches.clear()
    return kernel.warmup(grid=grid, **given)


if __name__ == "__main__":
    steps = {"render": render_all, "interpret": interpret_all, "compile": compile_all}
    steps[sys.argv[2]](Path(sys.argv[1]))
