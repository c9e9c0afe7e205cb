"""Training: the example that trains every setup, its page, and 500 steps in bf16 on large numbers."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attend_cases import Case
from attend_judge import assert_right
from torch.utils._python_dispatch import TorchDispatchMode
from toy import Habits, ToyDiT, inputs

import vsa_compile
from vsa_compile.backend import convert, read_options
from vsa_compile.grid import Grid

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))

import train_tiny_dit as example  # noqa: E402
import training_page  # noqa: E402

pytestmark = pytest.mark.no_cover

STEPS = 24
SIZE = replace(example.QUICK, steps=STEPS, evaluations=4)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Such small tensors are slower with two, by far where other programs want the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- The example -------------------------------------------------------------------------------------


def converted_only(module, example_inputs, options=None):
    """The backend without Inductor, whose compilation would take most of the time."""
    convert(module, read_options(options))
    return module.forward


@pytest.fixture(scope="module")
def trained(_one_thread):
    """(facts, clips) of a run of every setup."""
    compile = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch,
            "compile",
            lambda model, *, backend, **kwargs: compile(
                model, backend=converted_only if backend == "vsa" else backend, **kwargs
            ),
        )
        facts, clips = example.train_all(list(example.SETUPS), SIZE, seeds=1, jobs=1)
    return json.loads(json.dumps(facts)), clips


def run_of(trained, setup: str) -> dict:
    (run,) = (run for run in trained[0]["runs"] if run["setup"] == setup)
    return run


@pytest.mark.parametrize("setup", example.SETUPS)
def test_every_setup_trains(trained, setup: str):
    run = run_of(trained, setup)
    curve = run["curve"]
    assert [entry["step"] for entry in curve] == [0, 6, 12, 18, 24]
    losses = [entry["validation_loss"] for entry in curve]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.95 * losses[0]
    assert all(0 < entry["training_loss"] < 4 for entry in curve[1:])
    assert (run["gate_norm"] > 0) == example.SETUPS[setup].gates  # they begin at zero
    assert run["seconds"] > 0
    assert run["cpu_seconds"] > 0


def test_setups_start_alike(trained):
    """The same weights and clips: what is dense at first begins with the same loss, gate or none."""
    assert run_of(trained, "dense")["curve"][0] == run_of(trained, "annealed")["curve"][0]
    sparse = [run_of(trained, setup)["curve"][0] for setup in ("vsa", "vsa_no_coarse")]
    assert sparse[0]["validation_loss"] == pytest.approx(sparse[1]["validation_loss"], rel=1e-6)


def test_flops_are_those_of_the_sparsity(trained):
    attention, total = (
        {setup: run_of(trained, setup)["curve"][-1][key] for setup in example.SETUPS}
        for key in ("attention_flops", "flops")
    )
    tokens = math.prod(SIZE.grid)
    dense = 14 * SIZE.batch * SIZE.layers * SIZE.width * tokens**2  # 2 products forward, 5 backward
    assert attention["dense"] == STEPS * dense
    assert attention["vsa_no_coarse"] / attention["dense"] == pytest.approx(3 / 18, rel=0.1)  # and scores
    assert attention["vsa_no_coarse"] < attention["vsa"] < attention["annealed"] < attention["dense"]
    assert attention["bsa"] < attention["dense"] / 2
    rest = {setup: total[setup] - attention[setup] for setup in total}
    assert rest["dense"] == rest["vsa_no_coarse"] == rest["bsa"] < rest["vsa"] == rest["annealed"]


def test_annealing_ends_where_it_should(trained):
    sparsities = [entry["sparsity"] for entry in run_of(trained, "annealed")["curve"]]
    assert sparsities[:2] == [0, 0]
    assert sparsities[-1] == example.SPARSITY
    assert sparsities == sorted(sparsities)


def test_facts_clips_and_page(trained, tmp_path):
    facts, clips = trained
    assert {"device", "torch", "commit", "command", "load_before", "seconds", "size"} <= facts.keys()
    assert len(clips) == 1 + len(example.SETUPS)
    assert all(clip.isfinite().all() for clip in clips.values())
    pytest.importorskip("matplotlib")
    shown = training_page.write_page(facts, tmp_path)
    training_page.write_gif(clips, tmp_path / "train_tiny_dit.gif")
    page = (tmp_path / "training.md").read_text()
    assert shown in page
    assert "{" not in page
    for suffix in ("png", "gif"):
        assert 1000 < (tmp_path / f"train_tiny_dit.{suffix}").stat().st_size < 300_000


def test_the_documentation_shows_the_committed_run():
    results = json.loads((ROOT / "benchmarks" / "results" / "train_tiny_dit.json").read_text())
    assert (ROOT / "docs" / "training.md").read_text() == training_page.page(results)
    assert results["seeds"] >= 3
    assert {run["setup"] for run in results["runs"]} == set(example.SETUPS)


# --- 500 steps in bf16 -------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Notes the arguments and results of every vsa_compile::attend and of its backward."""

    def __init__(self) -> None:
        super().__init__()
        self.forward, self.backward = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = (("vsa_compile.attend.", self.forward), ("vsa_compile.attend_backward.", self.backward))
        for op, notes in leaves:
            if str(func).startswith(op):
                notes.append((args, result))
        return result


def judge(watch: Watch) -> None:
    """Every call's output and gradients, by the rules of compare.py."""
    assert len(watch.forward) == len(watch.backward) > 0
    for (args, (out, lse, _)), (back, grads) in zip(watch.forward, reversed(watch.backward), strict=True):
        q, k, v, tiles, counts, grid, *rest = (x.detach() if torch.is_tensor(x) else x for x in args)
        grad_out, _, _, _, q_again, *_ = back  # out, lse and the witness come before the inputs
        assert torch.equal(q_again, q)  # the same call's
        case = Case("trained", q, k, v, grad_out, tiles, counts, Grid(*grid), *rest)
        names = ("grad_q", "grad_k", "grad_v")
        got = dict(zip(names, (grad.transpose(1, 2) for grad in grads), strict=True))
        assert_right(case, {"out": out.detach(), "lse": lse.detach()} | got)


@pytest.mark.slow
def test_bf16_training_on_large_numbers_stays_finite_and_right():
    """500 steps through the whole backend, ragged tiles, text and a gate; inputs of deviation 30, logits of
    up to 200. Then the attention of one step more is judged, forward and backward, in fp64.

    Takes 6 s of a core, and 30 more where Inductor has to compile it first."""
    habits = Habits(text="after")
    latents, text = (30 * x.bfloat16() for x in inputs(habits, grid=(3, 5, 7), batch=2, width=32))
    model = ToyDiT(habits, width=32, heads=2).bfloat16()
    options = {"min_tokens": 0, "tile": (2, 2, 4), "sparsity": 0.75}
    with torch.no_grad():
        for block in model.blocks:
            block.attn.to_q.weight *= 100
            block.attn.to_k.weight *= 10
    gates = vsa_compile.add_gates(model, latents, text, options=options)
    run = torch.compile(model, backend="vsa", options=options)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(500):
        optimizer.zero_grad()
        torch.manual_seed(step)
        loss = (run(latents + 15 * torch.randn_like(latents), text) - latents).float().square().mean() / 900
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        # After the step, which clears nothing: a gradient that is not finite has spoilt its weights.
        assert all(parameter.isfinite().all() for parameter in model.parameters())
    course = torch.stack(losses)
    assert course.isfinite().all()
    assert course[-20:].mean() < 0.5 * course[:20].mean()
    assert all(gate.isfinite().all() and gate.abs().max() > 0 for gate in gates)

    watched = []

    def keep(module, example_inputs):
        convert(module, read_options(options))
        return lambda *args: watched.append((module, args)) or module.forward(*args)

    torch.compile(model, backend=keep)(latents, text)
    ((module, args),) = watched
    with Watch() as watch:
        (module.forward(*args)[0] - latents).float().square().mean().backward()
    judge(watch)
