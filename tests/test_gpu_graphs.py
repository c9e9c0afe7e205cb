"""Whole training graphs on a GPU, without a GPU: what is fused, what CUDA graphs and C++ can do with them.

The layer is gpu_offline/layer.py, gated and trained where nothing else is said.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from converting import OPTIONS, attend, latents
from once import shared_folder

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
    found = shared_folder(tmp_path_factory.getbasetemp(), "gpu_graphs")
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


# --- fusion: the forward --------------------------------------------------------------------------


@trained
def test_nothing_stands_between_the_projections_and_the_attention(name: str, launches: Callable):
    """v is read as its projection wrote it, q and k as the one kernel that norms and turns both."""
    forward, _ = launches(name)
    q, k, v = (forward.argument("attend_fwd", x) for x in ("arg_Q", "arg_K", "arg_V"))
    assert forward.writer(q) == forward.writer(k)
    assert forward.writer(q).kind == "reduction"
    projected = {x for x in forward.of("attend_fwd").reads if forward.writers(x) == ["addmm"]}
    assert v in projected
    assert len(projected) == 2  # v and the gate


@trained
def test_gate_and_coarse_fuse_into_the_attention(name: str, launches: Callable):
    """It writes what is saved for the backward (output and LSE), which nobody reads here, and the gated sum,
    which the output projection reads: no pass between them, no copy."""
    forward, _ = launches(name)
    readers = sorted(forward.readers(written) for written in forward.of("attend_fwd").writes)
    assert readers == [[], [], ["addmm"]]


@trained
def test_queries_keys_and_values_are_read_once_for_their_means(name: str, launches: Callable):
    """Cast, padding, sum and division are one kernel. It is not the one that norms and turns: Inductor joins
    no sum over a tile's tokens with a kernel whose rows are tokens ("no shared data", its scheduler says)."""
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


# --- fusion: the backward -------------------------------------------------------------------------


@trained
def test_the_gradients_of_means_are_no_passes_of_their_own(name: str, launches: Callable):
    """That of q and k joins the backward of RoPE, that of v the kernel that makes the gradient of v."""
    _, backward = launches(name)
    tables = set(re.findall(rf"(\w+) = rand_strided\(\({TOKENS}, {WIDTH}\)", backward.program.source))
    (grad_q,) = backward.of("attend_dq").writes - {backward.argument("attend_dq", "arg_DELTA")}
    grad_k = backward.argument("attend_dkdv", "arg_GRAD_K")
    assert backward.readers(grad_q) == backward.readers(grad_k) == ["pointwise"]
    turned_back = backward.reader(grad_q)
    assert backward.reader(grad_k) == turned_back
    assert len(tables) == 2
    assert tables <= turned_back.reads
    # The gradient of v, and that of the gate, which Inductor lets this kernel write too.
    for written in backward.of("attend_dkdv").writes - {grad_k}:
        assert sorted(backward.readers(written)) == ["mm", "mm", "reduction"]  # for weight, input and bias
    pooled = {written for launch in backward.all if launch.kind == "bmm" for written in launch.writes}
    assert len(pooled & turned_back.reads) == 2
    assert len(pooled & backward.of("attend_dkdv").reads) == 1


def test_the_backward_is_so_many_kernels(launches: Callable):
    _, backward = launches("vsa")
    assert Counter(backward.kinds) == {
        "mm": 10,  # of five projections the inputs and the weights
        "bmm": 4,  # of the scores of the tiles and of their coarse output, both factors
        **dict.fromkeys(("attend_dq", "transpose_lists", "rank_columns", "attend_dkdv"), 1),
        # Biases (10, in two steps each), modulation (2), norms (3); gradient * gate over each tile; softmax.
        "reduction": 17,
        # Over all tokens: gradient * gate of the block; RoPE; layer norm twice. The others are small.
        "pointwise": 10,
    }


# --- CUDA graphs ----------------------------------------------------------------------------------

_LIBRARY = {
    "vsa": set(),
    "dynamic_batch": set(),
    "bsa": {"aten.special_ndtri"},
    "schedule": {"vsa_compile.share"},
}


@pytest.mark.parametrize("name", _LIBRARY)
def test_every_graph_is_one_cuda_graph(name: str, graphs: dict):
    """ "vsa" under mode="reduce-overhead", the others in the mode that cannot cut a graph into several."""
    assert [graph.skipped for graph in graphs[name]] == [[] for _ in graphs[name]]
    assert [graph.cuda_graphs for graph in graphs[name]] == [1 for _ in graphs[name]]


def test_a_number_on_the_cpu_is_no_cuda_graph(graphs: dict):
    """The same decision notices what is seeded."""
    (graph,) = graphs["scalar_on_cpu"]
    assert graph.cuda_graphs == 0
    assert any("cpu device" in reason for reason in graph.skipped)


@pytest.mark.parametrize("name", _LIBRARY)
def test_nothing_is_read_on_the_host(name: str, launches: Callable):
    """The special function is of 0 dimensions; the share of a schedule is read from where it always is."""
    for graph in launches(name):
        assert (
            set(graph.kinds) - _TEMPLATES - {"pointwise", "reduction", "addmm", "mm", "bmm"} <= _LIBRARY[name]
        )
        assert not re.search(r"\.item\(|\.cpu\(|\.tolist\(|synchronize|_cpu\(|'cpu'", graph.program.calls)


@pytest.mark.quick
def test_the_share_of_a_schedule_has_its_memory_before_the_first_run():
    """CUDA graph trees raise an error if the first run, their warm-up, allocates memory that stays."""
    schedule, placed = SparsitySchedule(0.5), []
    settings = backend.read_options(OPTIONS | {"sparsity": schedule})

    def convert(module: torch.fx.GraphModule, _: list) -> Callable:
        backend.convert(module, settings)
        placed.extend(schedule._kept.items())
        return module.forward

    x = latents((2, 4, 4))
    torch.compile(attend, backend=convert)(x)
    ((device, share),) = placed
    assert device == x.device
    assert schedule.kept_share(device) is share


# --- C++ ------------------------------------------------------------------------------------------


def _cpp_of(graph: Graph) -> str:
    """The C++ in the Python module that cpp_wrapper writes."""
    assigned = (node for node in ast.parse(graph.source).body if isinstance(node, ast.Assign))
    (text,) = (node.value for node in assigned if ast.unparse(node.targets[0]) == "cpp_wrapper_src")
    return ast.literal_eval(text)


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_cpp_wrapper_launches_our_kernels_from_cpp(part: str, graphs: dict):
    source = _cpp_of(graphs["cpp_wrapper"][part == "backward"])
    assert complaints(source) == ""
    wanted = {"forward": 2, "backward": 4}[part]
    assert len(set(re.findall(r"^static CUfunction (triton_tem\w+)", source, re.M))) == wanted
    assert not re.search(r"custom_op_wrapper|torch\.ops|callBoxed", source)


def test_aotinductor_compiles_our_kernels_and_launches_them_from_cpp(folder: Path):
    """With a dynamic batch: how many programs a kernel has is an expression of it, in C++."""
    source, kernels = (folder / "aot.cpp").read_text(), json.loads((folder / "kernels.json").read_text())
    assert complaints(source) == ""
    assert "aoti_torch_proxy_executor_call_function" not in source
    launched = set(re.findall(r"launchKernel\(kernels_\.(\w+),", source))
    assert launched == kernels.keys()
    assert all(machine_code > 0 for machine_code, _ in kernels.values())
    programs = re.findall(r"^ *call_triton_tem\w+\(.* (\S+), 1, 1, this->device_idx_", source, re.M)
    assert len(programs) == 2
    assert all(re.fullmatch(r"\d+L\*s\d+", expression) for expression in programs)
