"""One compiled model over many calls: changing shapes, resets, threads.

Where Inductor adds nothing to the question, the converted graph runs as it is, operator by operator.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from compare import assert_same_output
from converting import OPTIONS, RESOLUTIONS, Grid, attend, by_hand, converting, latents
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from toy import Habits, ToyDiT, inputs

from vsa_compile.convert.judge import Conversion, Decision, Refusal

pytestmark = pytest.mark.no_cover

# --- shapes ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_twelve_resolutions_need_two_graphs_and_equal_eager() -> None:
    model, graphs = ToyDiT(), []
    compiled = torch.compile(model, backend=converting(graphs, sparsity=1e-6), fullgraph=True)
    for grid in RESOLUTIONS:
        args = inputs(Habits(), grid)
        assert_same_output(compiled(*args), model(*args))
    assert len(graphs) <= 2
    assert all(isinstance(decision, Conversion) for graph in graphs for decision in graph)


@torch.no_grad()
def test_static_shapes_make_exactly_one_graph_for_each_resolution() -> None:
    graphs: list[list[Decision]] = []
    compiled = torch.compile(attend, backend=converting(graphs), dynamic=False, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=12, fail_on_recompile_limit_hit=True):
        for grid in RESOLUTIONS + RESOLUTIONS:
            x = latents(grid)
            assert_same_output(compiled(x), by_hand(x, grid))
    assert [tuple(decision.grid) for (decision,) in graphs] == RESOLUTIONS


@torch.no_grad()
@pytest.mark.slow
def test_the_real_backend_needs_two_more_graphs_for_many_resolutions() -> None:
    """Equal N turned and turned back among them: the first graph is static, in the second the sizes that
    changed are symbolic, in the third all. At a fourth compilation Dynamo raises."""
    compiled = torch.compile(attend, backend="vsa", options=OPTIONS, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=3, fail_on_recompile_limit_hit=True):
        for grid in [(5, 6, 7), (5, 7, 6), (7, 5, 6), *RESOLUTIONS, (5, 6, 7)]:
            x = latents(grid)
            assert_same_output(compiled(x), by_hand(x, grid))
    assert counters["vsa_compile"] == {"converted": 3}


@pytest.mark.seconds
@pytest.mark.quick
@pytest.mark.parametrize("dynamic", [None, True, False])
@torch.no_grad()
def test_a_turned_grid_of_equal_size_is_never_stale(dynamic: bool | None) -> None:
    graphs: list[list[Decision]] = []
    compiled = torch.compile(attend, backend=converting(graphs), dynamic=dynamic, fullgraph=True)
    turned = list(itertools.permutations((5, 6, 7)))
    wanted = {grid: by_hand(latents(grid), grid) for grid in turned}
    assert len({float(out.norm()) for out in wanted.values()}) == len(turned)
    for grid in turned + turned[::-1]:
        assert_same_output(compiled(latents(grid)), wanted[grid])
    assert len(graphs) == {None: 3, True: 1, False: 6}[dynamic]


@pytest.mark.parametrize("dynamic", [None, True])
def test_any_sequence_of_turned_grids(dynamic: bool | None) -> None:
    """One compiled function lives through all that hypothesis draws; turned tokens are the same numbers,
    so that a stale grid is the only thing that can go wrong. The graph that three different sizes made
    serves every other grid."""
    graphs: list[list[Decision]] = []
    compiled = torch.compile(attend, backend=converting(graphs), dynamic=dynamic, fullgraph=True)
    size = st.integers(2, 7)
    with torch.no_grad():
        for grid in [(5, 6, 7), (5, 7, 6), (7, 5, 6)]:
            compiled(latents(grid))
    known = len(graphs)

    @given(st.tuples(size, size, size), st.permutations(range(3)), st.integers(0, 99))
    @torch.no_grad()
    def check(grid: Grid, order: list[int], seed: int) -> None:
        for turned in (grid, tuple(grid[i] for i in order), grid):
            x = latents(turned, seed)
            assert_same_output(compiled(x), by_hand(x, turned))

    check()
    assert len(graphs) == known


@pytest.mark.seconds
@pytest.mark.quick
@torch.no_grad()
def test_few_tokens_become_a_guard_on_symbolic_shapes() -> None:
    graphs: list[list[Decision]] = []
    compiled = torch.compile(attend, backend=converting(graphs, min_tokens=100), dynamic=True)
    for grid in [(5, 6, 7), (4, 6, 7), (2, 3, 4), (3, 3, 4), (6, 6, 6)]:
        x = latents(grid)
        assert_same_output(compiled(x), by_hand(x, grid) if x[0, 0].numel() >= 100 else attend(x))
    assert [type(decision) for (decision,) in graphs] == [Conversion, Refusal]


def test_reset_leaves_nothing_behind() -> None:
    x = latents((2, 4, 4))

    def run(**options: Any) -> Tensor:
        with torch.no_grad():
            return torch.compile(attend, backend="vsa", options=OPTIONS | options)(x)

    first = run()
    torch._dynamo.reset()
    counters.clear()
    assert_same_output(run(sparsity=1e-6), attend(x))
    torch._dynamo.reset()
    assert torch.equal(run(), first)
    assert counters["vsa_compile"] == {"converted": 2}


# --- threads ----------------------------------------------------------------------------------------


def at_once(work: Callable[[int], None], count: int = 8) -> None:
    """Run work(0), work(1), ... in threads that start together; raises what any of them raised."""
    barrier = Barrier(count)

    def run(index: int) -> None:
        barrier.wait()
        with torch.no_grad():  # of this thread
            work(index)

    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(run, index) for index in range(count)]:
            future.result()


@pytest.mark.parametrize("shared", [True, False], ids=["one-function", "own-functions"])
def test_eight_threads_compile_eight_shapes_at_once(shared: bool) -> None:
    graphs: list[list[Decision]] = []
    backend = converting(graphs)
    function = torch.compile(attend, backend=backend, dynamic=False)

    def work(index: int) -> None:
        grid = RESOLUTIONS[index]
        own = lambda x: attend(x)  # noqa: E731
        compiled = function if shared else torch.compile(own, backend=backend, dynamic=False)
        for _ in range(3):
            assert_same_output(compiled(latents(grid)), by_hand(latents(grid), grid))

    at_once(work)
    assert sorted(tuple(decision.grid) for (decision,) in graphs) == sorted(RESOLUTIONS[:8])


def test_eight_threads_compile_with_inductor_at_once() -> None:
    """Sparse and dense by turns; the options are each thread's own."""
    x = latents((2, 4, 4))
    wanted = {0: attend(x), 0.5: by_hand(x, (2, 4, 4))}

    def work(index: int) -> None:
        sparsity = (0, 0.5)[index % 2]
        compiled = torch.compile(attend, backend="vsa", options=OPTIONS | {"sparsity": sparsity})
        assert_same_output(compiled(x), wanted[sparsity])

    at_once(work)
    assert counters["vsa_compile"]["converted"] >= 2
