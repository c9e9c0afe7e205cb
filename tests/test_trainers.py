"""With what trainers use: checkpointing, accumulation, autocast, adapters, data parallelism and sharding.

The reference is the uncompiled model whose attention is called by hand.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from compare import assert_same_gradients, assert_same_output, relative_error
from converting import converting
from functorch.compile import make_boxed_func
from once import once, shared_folder, uncovered
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import checkpoint
from toy import Habits
from trainers import OPTIONS, TWO_BLOCKS, by_hand, clips, gated, gradients, loss_of, trained_on
from trainers_worker import CASES, WORLD

import vsa_compile
from vsa_compile import SparsitySchedule
from vsa_compile.convert.judge import Conversion

WORKER = Path(__file__).with_name("trainers_worker.py")

INSIDE = Habits(blocks=2, checkpointed=True)


def compiled(model: nn.Module, then: str = "aot_eager", **options) -> tuple[nn.Module, list]:
    graphs: list = []
    return torch.compile(model, backend=converting(graphs, then, **OPTIONS | options)), graphs


def assert_converted(graphs: list, sites: int) -> None:
    decisions = [decision for graph in graphs for decision in graph]
    assert [isinstance(decision, Conversion) for decision in decisions] == [True] * sites


def same_bits(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)


# --- Activation checkpointing ------------------------------------------------------------------------


def blocks_compiled(model: nn.Module, around: bool, **options) -> list:
    """Every block compiled alone; `around`: each of these calls is checkpointed."""
    vsa_compile.prepare(model)
    graphs: list = []
    for block in model.blocks:
        block.compile(backend=converting(graphs, "aot_eager", **OPTIONS | options))
        if around:
            call = block._compiled_call_impl
            block._compiled_call_impl = lambda *args, call=call: checkpoint(call, *args, use_reentrant=False)
    return graphs


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vsa", "bsa"])
@pytest.mark.parametrize("where", ["inside the model", "around compiled blocks"])
def test_checkpointing_changes_no_bit_of_a_gradient(method: str, where: str):
    """BSA has no coarse output, and so no gate."""
    gates, (x,) = method == "vsa", clips(2)
    plain, again = (
        gated(gates=gates),
        gated(INSIDE if where == "inside the model" else TWO_BLOCKS, gates=gates),
    )
    if where == "inside the model":
        plain, first = compiled(plain, method=method)
        again, second = compiled(again, method=method)
    else:
        first, second = (
            blocks_compiled(model, around, method=method) for model, around in ((plain, False), (again, True))
        )
    (loss, wanted), (same_loss, got) = trained_on(plain, x), trained_on(again, x)
    assert torch.equal(same_loss, loss)
    assert same_bits(got, wanted)
    for graphs in (first, second):
        assert_converted(graphs, 2)
    with by_hand(gated(gates=gates), method=method) as model:
        assert_same_gradients(got, trained_on(model, x)[1])


@pytest.mark.slow
def test_inductor_computes_a_checkpointed_selection_again():
    (x,) = clips(2)
    plain, graphs = compiled(gated(), "inductor")
    again, more = compiled(gated(INSIDE), "inductor")
    (loss, wanted), (same_loss, got) = trained_on(plain, x), trained_on(again, x)
    assert_same_output(same_loss, loss)
    assert_same_gradients(got, wanted)
    assert_converted(graphs + more, 4)


# --- Gradient accumulation ---------------------------------------------------------------------------


SPARSITIES = (0, 0.6, 0.7)  # dense, and two of one bucket


def course(batches: Sequence[Tensor], compile_model: bool) -> list[dict[str, Tensor]]:
    """Gradients at three steps of a schedule, each added up over the batches."""
    torch._dynamo.reset()
    model = gated()
    schedule = SparsitySchedule(lambda step: SPARSITIES[min(step, 2)])
    run, graphs = compiled(model, sparsity=schedule) if compile_model else (model, [])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    found = []
    for _ in SPARSITIES:
        optimizer.zero_grad()
        with nullcontext() if compile_model else by_hand(model, sparsity=schedule.sparsity):
            for batch in batches:
                (loss_of(run, batch) / len(batches)).backward()
        found.append(gradients(model))
        optimizer.step()
        schedule.step()
    if compile_model:
        assert_converted(graphs, 4)  # of two blocks: dense, and one bucket
    return found


@pytest.mark.slow
def test_accumulated_batches_are_one_batch_at_every_step_of_a_schedule():
    (x,) = clips(4)
    accumulated, at_once = course(x.split(2), True), course([x], True)
    for got, one, wanted in zip(accumulated, at_once, course([x], False), strict=True):
        assert_same_gradients(got, one)
        assert_same_gradients(got, wanted)


# --- Autocast ----------------------------------------------------------------------------------------


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.slow
def test_autocast_misses_at_most_twice_what_eager_autocast_misses():
    """Rule A by parameter. Every tile is kept: eager is dense attention and the gated coarse output."""
    (x,) = clips(2)
    with by_hand(gated(), sparsity=0) as model:
        wanted = trained_on(model, x)[1]
        with autocast():
            eager = trained_on(model, x)[1]
    run, graphs = compiled(gated(), sparsity=1e-6)
    with autocast():
        got = trained_on(run, x)[1]
    assert_converted(graphs, 2)
    largest = max(float(grad.norm()) for grad in wanted.values())
    for name, grad in wanted.items():
        missed, allowed = (float((one[name] - grad).norm()) for one in (got, eager))
        rounding = torch.finfo(torch.bfloat16).eps * max(float(grad.norm()), 0.01 * largest)
        assert got[name].dtype == torch.float32
        assert missed <= 2 * allowed + 2 * rounding, f"{name}: {missed:.2e} > 2 * {allowed:.2e}"
    assert not same_bits(got, wanted)


@pytest.mark.no_cover
def test_autocast_selects_by_scores_of_fp32_and_learns():
    dtypes = []

    def noting(module: torch.fx.GraphModule, example_inputs: list) -> Callable:
        for node in module.graph.nodes:
            if node.target is torch.ops.vsa_compile.select.default:
                dtypes.append(node.args[0].meta["val"].dtype)
            if node.target is torch.ops.vsa_compile.attend.default:
                dtypes.append(node.args[0].meta["val"].dtype)
        return make_boxed_func(module.forward)

    model, (x,) = gated(), clips(2)
    graphs: list = []
    run = torch.compile(model, backend=converting(graphs, aot_autograd(fw_compiler=noting), **OPTIONS))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        with autocast():
            loss = (run(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(grad.isfinite().all() for grad in gradients(model).values())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert_converted(graphs, 2)
    assert dtypes == [torch.float32, torch.bfloat16] * 2
    assert losses[-1] < 0.9 * losses[0]


# --- Adapters ----------------------------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "learns",
    [
        pytest.param([], id="gates frozen", marks=pytest.mark.slow),
        pytest.param(["to_gate_compress"], id="gates learn"),
    ],
)
def test_adapters_learn_and_merge_beside_gates(learns: list[str]):
    peft = pytest.importorskip("peft")
    model, (x,) = gated(), clips(2)
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], modules_to_save=learns)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert any("to_gate_compress" in name for name in trained) == bool(learns)
    run, graphs = compiled(adapted)
    before = run(x).detach()
    optimizer = torch.optim.Adam(trained.values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (run(x) - x).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
        optimizer.step()
    out = run(x).detach()
    assert relative_error(out, before) > 1e-2
    with by_hand(model) as reference:
        assert_same_output(out, reference(x).detach())
    merged, again = compiled(adapted.merge_and_unload())
    assert_same_output(
        merged(x).detach(), out, bound=1e-4
    )  # the sum of two products, or the product of a sum
    assert_converted(graphs + again, 4)
    assert all(site.gate is not None for graph in graphs + again for site in graph)


@pytest.mark.no_cover
def test_gates_that_are_added_under_adapters():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"])
    (x,) = clips(2)
    adapted = peft.get_peft_model(gated(gates=False), config)
    assert len(vsa_compile.add_gates(adapted, x, options=OPTIONS)) == 4
    run, graphs = compiled(adapted)
    run(x)
    assert_converted(graphs, 2)
    assert all(site.gate is not None for graph in graphs for site in graph)


# --- Two processes -----------------------------------------------------------------------------------


def train_together(folder: Path) -> str:
    """Leaves FOLDER/results<rank> of two processes; what they said if one of them failed."""
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(folder / "store"), str(folder / f"results{rank}")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=uncovered(),
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return "\n".join(said) if any(process.returncode for process in started) else ""


@pytest.fixture(scope="session")
def together(tmp_path_factory) -> list[dict[str, str]]:
    """What went wrong in each case, as each of two processes saw it."""
    folder = shared_folder(tmp_path_factory.getbasetemp(), "two_processes")
    once(folder, "training", lambda: train_together(folder))
    return [json.loads((folder / f"results{rank}").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_would(case: str, together: list[dict[str, str]]):
    for rank, failures in enumerate(together):
        assert not failures[case], f"process {rank}: {failures[case]}"
