"""Sparsity that changes while compiled code runs: schedules, dense(), and loops of denoising steps."""

import pickle
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from compare import assert_same_output
from converting import attend, converting, heads, latents
from hypothesis import given
from hypothesis import strategies as st
from profiles import examples
from torch import Tensor

import vsa_compile
from vsa_compile import OptionError, SparsitySchedule
from vsa_compile.grid import Grid, TileGrid, kept_tiles
from vsa_compile.methods import Site
from vsa_compile.plan.schedule import DENSE
from vsa_compile.runtime.state import now

GRID = Grid(4, 6, 8)
Compiled = tuple[Callable, list]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def compiled(backend: str = "aot_eager", **options) -> Compiled:
    """(compiled `attend`, one entry for every graph)."""
    graphs: list = []
    return torch.compile(attend, backend=converting(graphs, backend, **options)), graphs


def by_hand(x: Tensor, sparsity: float, grid: Grid = GRID, method: str = "vsa") -> Tensor:
    tokens = heads(x)
    return vsa_compile.attention(
        tokens, tokens * 0.5, tokens, grid=grid, tile=(2, 2, 2), sparsity=sparsity, method=method
    )


# --- The numbers ------------------------------------------------------------------------------------


def test_stairs_as_the_paper_climbs_them():
    schedule = SparsitySchedule.stairs(0.9, by=0.03, every=30)
    seen = []
    for _ in range(30 * 31):
        seen.append(schedule.sparsity)
        schedule.step()
    assert seen[::30] == [round(0.03 * i, 2) for i in range(31)]
    assert [len(set(seen[i : i + 30])) for i in range(0, 900, 30)] == [1] * 30


def test_stairs_that_start_late_and_end_between_steps():
    schedule = SparsitySchedule.stairs(0.5, by=0.2, every=2, start=0.1, hold=3)
    seen = []
    for _ in range(10):
        seen.append(schedule.sparsity)
        schedule.step()
    assert seen == [0.1] * 5 + [0.3] * 2 + [0.5] * 3


@examples(200)
@given(thousandths=st.integers(1, 999), tiles=st.integers(1, 5000))
def test_a_bucket_has_room_for_what_is_kept_and_at_most_twice_that(thousandths: int, tiles: int):
    sparsity = thousandths / 1000
    schedule = SparsitySchedule(sparsity)
    room, kept = kept_tiles(tiles, schedule.literal), kept_tiles(tiles, sparsity)
    assert kept <= room <= 2 * kept
    share = torch.ops.vsa_compile.share(torch.empty(0), schedule.number)
    boxes = TileGrid(Grid(1, 1, tiles), (1, 1, 1))
    assert Site(boxes, 0, 0, None, 1.0, schedule.literal, share).count == kept


def test_the_share_is_an_operator_like_others():
    torch.library.opcheck(torch.ops.vsa_compile.share.default, (torch.empty(0), SparsitySchedule(0.3).number))


def test_dense_and_three_buckets_reach_one_eighth():
    buckets = [SparsitySchedule(i / 1000).bucket for i in range(876)]
    assert sorted(set(buckets)) == [DENSE, 0, 1, 2]
    assert buckets == sorted(buckets)


@pytest.mark.parametrize("value", [1, 1.5, -0.1, True, "0.5", None, float("nan")])
def test_a_sparsity_that_is_none_is_an_error(value):
    with pytest.raises(OptionError, match=r"the sparsity of step 0 is .*, but it must be a number from 0"):
        SparsitySchedule(lambda step: value)


@pytest.mark.parametrize(
    "wrong", [{"by": 0}, {"every": 0}, {"start": 0.95}, {"hold": -1}, {"to": 1}, {"by": "a"}]
)
def test_stairs_that_lead_nowhere_are_an_error(wrong):
    with pytest.raises(OptionError, match="0 <= start <= to < 1"):
        SparsitySchedule.stairs(**{"to": 0.9, "by": 0.03, "every": 30} | wrong)


def test_a_schedule_goes_on_from_a_checkpoint():
    first = SparsitySchedule.stairs(0.9, by=0.1, every=1)
    for _ in range(4):
        first.step()
    second = SparsitySchedule.stairs(0.9, by=0.1, every=1)
    second.load_state_dict(first.state_dict())
    assert second.sparsity == first.sparsity == 0.4
    third = pickle.loads(pickle.dumps(first))
    first.step()
    assert (first.sparsity, third.sparsity, third.number != first.number) == (0.5, 0.4, True)
    third.step()
    assert third.sparsity == 0.5


# --- Compiled code that is driven --------------------------------------------------------------------


def test_every_step_has_its_sparsity_and_four_graphs_serve_all():
    schedule = SparsitySchedule(lambda step: float(min(Fraction(7, 8), Fraction(step, 32))))
    run, graphs = compiled(sparsity=schedule)
    for _ in range(30):
        x = latents(GRID).requires_grad_()
        y = latents(GRID).requires_grad_()
        out, wanted = run(x), by_hand(y, schedule.sparsity) if schedule.sparsity else attend(y)
        assert_same_output(out.detach(), wanted.detach())
        weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
        schedule.step()  # a backward that read the state again would be of another sparsity
        assert_same_output(*(torch.autograd.grad(o, i, weight)[0] for o, i in ((out, x), (wanted, y))))
    assert schedule.sparsity == 0.875
    assert len(graphs) == 4


@pytest.mark.slow
def test_symbolic_sizes_are_driven_too():
    schedule = SparsitySchedule(lambda step: (0.6, 0.65, 0.7)[step % 3])
    graphs: list = []
    run = torch.compile(attend, backend=converting(graphs, "inductor", sparsity=schedule), dynamic=True)
    for grid in (GRID, Grid(3, 5, 7), Grid(5, 4, 6)):
        x = latents(grid)
        assert_same_output(run(x), by_hand(x, schedule.sparsity, grid))
        schedule.step()
    assert len(graphs) == 1


def test_two_models_with_a_schedule_each_and_one_without():
    fast, slow = SparsitySchedule.stairs(0.7, by=0.35, every=1), SparsitySchedule(0.25)
    runs = [compiled(sparsity=sparsity) for sparsity in (fast, slow, 0.5)]
    x = latents(GRID)
    for step in range(3):
        for (run, _), sparsity in zip(runs, (fast.sparsity, 0.25, 0.5), strict=True):
            assert_same_output(run(x), by_hand(x, sparsity) if sparsity else attend(x))
        assert [len(graphs) for _, graphs in runs] == [min(step, 2) + 1, 1, 1]
        fast.step()


def test_inference_before_training():
    schedule = SparsitySchedule(0.5)
    run, _ = compiled(sparsity=schedule)
    with torch.inference_mode():
        run(latents(GRID))
    schedule.load_state_dict({"step": 1})
    x = latents(GRID).requires_grad_()
    run(x).sum().backward()
    assert_same_output(run(x).detach(), by_hand(x, 0.5).detach())


def test_bsa_is_driven_too():
    schedule = SparsitySchedule(lambda step: (0.6, 0.7)[step])
    run, graphs = compiled(sparsity=schedule, method="bsa", tile=(2, 2, 2))
    x = latents(GRID)
    assert_same_output(run(x), by_hand(x, 0.6, method="bsa"))
    schedule.step()
    assert_same_output(run(x), by_hand(x, 0.7, method="bsa"))
    assert len(graphs) == 1


def test_explain_shows_the_sparsity_of_the_step():
    schedule = SparsitySchedule.stairs(0.5, by=0.5, every=1)
    options = {"sparsity": schedule, "min_tokens": 0, "tile": (2, 2, 2)}
    x = latents(GRID)
    assert vsa_compile.explain(attend, x, options=options).sites[0].kept_tiles == 24
    schedule.step()
    report = vsa_compile.explain(attend, x, options=options)
    assert report.sites[0].kept_tiles == 12
    assert "SparsitySchedule(step 1: 0.5)" in report.to_json()


# --- dense() -----------------------------------------------------------------------------------------


@pytest.mark.no_cover
def test_in_and_out_of_dense_over_two_sizes_is_two_graphs_of_a_size():
    graphs: list = []
    run = torch.compile(attend, backend=converting(graphs, "inductor"), dynamic=True)
    for grid in (GRID, Grid(3, 5, 7)):
        x = latents(grid)
        for _ in range(2):
            assert_same_output(run(x), by_hand(x, 0.5, grid))
            with vsa_compile.dense():
                assert_same_output(run(x), attend(x))
    assert len(graphs) == 2


def test_dense_ends_with_an_error_too():
    with pytest.raises(ZeroDivisionError), vsa_compile.dense():
        1 / 0
    assert not now.dense


# --- Denoising ---------------------------------------------------------------------------------------


def which_are_dense(steps: int, **window) -> str:
    seen = ""
    with vsa_compile.denoising(steps, **window) as on_step_end:
        for step in range(steps):
            seen += "d" if now.dense else "s"
            assert on_step_end(None, step, None, {"latents": 1}) == {"latents": 1}
    assert not now.dense
    return seen


def test_steps_of_a_denoising_loop():
    assert which_are_dense(5) == "sssss"
    assert which_are_dense(5, dense_steps=2) == "ddsss"
    assert which_are_dense(10, start=0.2, end=0.9) == "ddsssssssd"
    assert which_are_dense(10, start=0.25, dense_steps=1) == "dddsssssss"
    with pytest.warns(UserWarning, match="ran dense from first to last: its loop had 3 steps"):
        assert which_are_dense(3, dense_steps=7) == "ddd"


def test_a_loop_begins_anew_with_every_call_of_a_pipeline():
    seen = ""
    with vsa_compile.denoising(4, dense_steps=1) as on_step_end:
        for length in (4, 4, 3, 4):  # diffusers knows when a call is shorter
            for step in range(length):
                seen += "d" if now.dense else "s"
                on_step_end(SimpleNamespace(num_timesteps=length), step, None, {})
    assert seen == "dsssdsssdssdsss"


@pytest.mark.parametrize(
    ("window", "steps", "said"),
    [
        ({"dense_steps": 10}, 0, "never told of the end of a step"),
        ({"dense_steps": 10}, 8, "ran dense from first to last: its loop had 8 steps"),
        ({"end": 0.5}, 8, r"denoising\(50\) ran around a loop of 8 steps"),
        ({}, 51, r"denoising\(50\) ran around a loop of 51 steps"),
    ],
)
def test_a_loop_that_is_not_as_announced_is_told(window, steps, said):
    def run():
        with vsa_compile.denoising(50, **window) as on_step_end:
            for step in range(steps):
                on_step_end(None, step, None, {})

    with pytest.warns(UserWarning, match=said):
        run()


def test_a_loop_that_failed_says_nothing_else(recwarn):
    with pytest.raises(ZeroDivisionError), vsa_compile.denoising(50):
        1 / 0
    assert not recwarn.list
    assert not now.dense


def test_dense_around_a_loop_makes_every_step_dense():
    with vsa_compile.dense():
        seen = ""
        with vsa_compile.denoising(3) as on_step_end:
            for step in range(3):
                seen += "d" if now.dense else "s"
                on_step_end(None, step, None, {})
    assert seen == "ddd"


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": 1.5},
        {"dense_steps": -1},
        {"start": 0.6, "end": 0.5},
        {"end": 1.1},
        {"end": "b"},
    ],
)
def test_a_window_that_is_none_is_an_error(wrong):
    with (
        pytest.raises(OptionError, match="steps >= 1, dense_steps >= 0"),
        vsa_compile.denoising(**{"steps": 5} | wrong),
    ):
        pass


def test_a_denoising_loop_compiles_twice():
    run, graphs = compiled()
    x = latents(GRID)
    with vsa_compile.denoising(6, dense_steps=2) as on_step_end:
        for step in range(6):
            assert_same_output(run(x), attend(x) if step < 2 else by_hand(x, 0.5))
            on_step_end(None, step, None, {})
    assert len(graphs) == 2
