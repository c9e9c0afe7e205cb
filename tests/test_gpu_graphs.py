"""Whole training graphs on a GPU, without a GPU: what is fused, what CUDA graphs and C++ can do with them.

The layer is gpu_offline/layer.py, gated and trained where nothing else is said.
"""

import ast
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from converting import OPTIONS, attend, latents

pytest.importorskip("triton")

from gpu_offline.launches import Launches
from gpu_offline.layer import TOKENS, WIDTH
from gpu_offline.native import complaints
from gpu_offline.program import Program
from gpu_offline.steps import run_once
from gpu_offline.training import Graph, load_graphs

from vsa_compile import SparsitySchedule, backend

_TEMPLATES = {"select", "attend_fwd", "attend_dq", "attend_dkdv", "transpose_lists", "rank_columns"}
_TRAINED = ("vsa", "dynamic_batch")
trained = pytest.mark.parametrize("name", _TRAINED)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all results; the same one for all xdist workers."""
    base = tmp_path_factory.getbasetemp()
    found = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "gpu_graphs"
    found.mkdir(exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        for step in [pool.submit(run_once, found, name) for name in ("training", "native")]:
            step.result()
    return found


@pytest.fixture(scope="session")
def graphs(folder: Path) -> dict[str, list[Graph]]:
    return load_graphs(folder)


@pytest.fixture(scope="session")
def launches(graphs: dict) -> Callable[[str], list[Launches]]:
    """Name of an entry -> the launches of its forward, of its backward."""
    return lambda name: [Launches(Program(graph.source, {}, [])) for graph in graphs[name]]


# --- fusion: the forward --------------------------------------------------------------------------------------


@trained
def test_nothing_stands_between_the_projections_and_the_attention(name: str, launches: Callable):
    """v is read as its projection wrote it, q and k as the one kernel that norms and turns both."""
    forward, _ = launches(name)
    q, k, v, gate = (forward.argument("attend_fwd", x) for x in ("arg_Q", "arg_K", "arg_V", "in_ptr6"))
    assert forward.writers(q) == forward.writers(k) == ["reduction"]
    assert forward.writer(q) == forward.writer(k)
    assert forward.writers(v) == ["addmm"]
    assert gate != v
    assert forward.writers(gate) == ["addmm"]


@trained
def test_gate_and_coarse_fuse_into_the_attention(name: str, launches: Callable):
    """It writes what is saved for the backward, which nobody reads here, and the gated sum, which the output
    projection reads: no pass between them, no copy."""
    forward, _ = launches(name)
    attend = forward.of("attend_fwd")
    readers = sorted(forward.readers(written) for written in attend.writes)
    assert readers == [[], ["addmm"]]


@trained
def test_queries_keys_and_values_are_read_once_for_their_means(name: str, launches: Callable):
    """Cast, padding, sum, count and division are one kernel. That it is not the one that norms and turns is
    Inductor's: a sum over the tokens of a tile does not join a kernel whose rows are tokens ("no shared data")."""
    forward, _ = launches(name)
    for argument in ("arg_Q", "arg_K", "arg_V"):
        tensor = forward.argument("attend_fwd", argument)
        assert forward.readers(tensor) == ["reduction", "attend_fwd"]


def test_the_forward_is_so_many_kernels(launches: Callable):
    forward, _ = launches("vsa")
    assert Counter(forward.kinds) == {
        "addmm": 5,  # q, k, v, gate, out
        "bmm": 2,  # the scores of the tiles, their coarse output
        "select": 1,
        "attend_fwd": 1,
        "reduction": 6,  # layer norm; RMS norms and RoPE; means of q, of k, of v; softmax
        "pointwise": 4,  # modulation of 1536 channels; counts and coarse output of 624 tiles; the residual
    }


# --- fusion: the backward -------------------------------------------------------------------------------------


@trained
def test_the_gradients_of_means_are_no_passes_of_their_own(name: str, launches: Callable):
    """That of q and k joins the backward of RoPE, that of v the kernel that makes the gradient of v."""
    _, backward = launches(name)
    tables = set(re.findall(rf"assert_size_stride\((\w+), \({TOKENS}, {WIDTH}\)", backward.program.source))
    grad_q, grad_k, grad_v = _gradients(backward)
    assert backward.readers(grad_q) == backward.readers(grad_k) == ["pointwise"]
    turned_back = backward.reader(grad_q)
    assert backward.reader(grad_k) == turned_back
    assert len(tables) == 2
    assert tables <= turned_back.reads
    assert sorted(backward.readers(grad_v)) == ["mm", "mm", "reduction"]  # weight, input, bias
    pooled = {written for launch in backward.all if launch.kind == "bmm" for written in launch.writes}
    assert len(pooled & turned_back.reads) == 2
    assert len(pooled & backward.of("attend_dkdv").reads) == 1


def _gradients(backward: Launches) -> tuple[str, str, str]:
    """The tensors that the attention's backward writes: of q, k and v. It may write the gate's as well, of
    which the reader before the projection's is the kernel itself."""
    (grad_q,) = backward.of("attend_dq").writes - {backward.argument("attend_dq", "arg_DELTA")}
    grad_k = backward.argument("attend_dkdv", "arg_GRAD_K")
    last = max(backward.outputs("attend_dkdv"), key=lambda parameter: int(parameter.removeprefix("out_ptr")))
    return grad_q, grad_k, backward.argument("attend_dkdv", last)


@trained
def test_the_backward_has_no_other_pass_over_all_tokens(name: str, launches: Callable):
    _, backward = launches(name)
    assert Counter(backward.kinds) == {"?": 0}
