"""Models that diffusers does not have: what converts is right, and what a break hides has a way out."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import beyond
from compare import assert_same_gradients, assert_same_output, output_and_gradients
from converting import converting

import vsa_compile
from vsa_compile.convert.judge import Conversion
from vsa_compile.grid import Grid
from vsa_compile.ops import reference

pytestmark = pytest.mark.no_cover

EXACT = {"sparsity": 1e-6}  # every tile is kept, so the sparse operator gives what dense attention does
SLUGS = {"cross": "cross", "spatial": "two-axes", "temporal": "one-axis"}

VIDEO = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow if case.name in ("rearranged", "packed") else ())
        for case in beyond.VIDEO
    ],
    ids=lambda case: case.name,
)
ENCODERS = pytest.mark.parametrize("case", beyond.ENCODERS, ids=lambda case: case.name)
NEGATIVE = pytest.mark.parametrize("case", beyond.NEGATIVE, ids=lambda case: case.name)


def assert_found(case, graphs):
    """The case's calls, all in one graph, and the runs of their sequence."""
    ((*decisions,),) = graphs
    assert sum(isinstance(one, Conversion) for one in decisions) == case.sites
    assert len(decisions) == case.calls
    for one in decisions:
        if isinstance(one, Conversion):
            assert " | ".join(run.kind.replace("other", "text") for run in one.segments) in case.segments


def assert_equal_to_eager(model, compiled, kwargs):
    wanted, wanted_grads = output_and_gradients(model, **kwargs)
    got, got_grads = output_and_gradients(compiled, **kwargs)
    assert_same_output(got, wanted)
    assert_same_gradients(got_grads, wanted_grads)


@VIDEO
def test_video_models_convert_at_every_grid_in_one_graph(case):
    model, inputs = case.build()
    graphs = []
    compiled = torch.compile(model, backend=converting(graphs, **EXACT), dynamic=True)
    for grid in (case.grid, *case.other_grids[:2]):
        assert_equal_to_eager(model, compiled, inputs(grid))
    assert_found(case, graphs)


@ENCODERS
def test_encoders_of_transformers_convert(case):
    model, inputs = case.build()
    graphs = []
    compiled = torch.compile(model, backend=converting(graphs, **EXACT), dynamic=False)
    assert_equal_to_eager(model, compiled, inputs(case.grid))
    assert_found(case, graphs)
    ((*sites,),) = graphs
    assert all(site.grid == case.grid for site in sites)


@NEGATIVE
def test_attention_over_space_or_time_alone_is_left_alone(case):
    model, inputs = case.build()
    graphs = []
    compiled = torch.compile(model, backend=converting(graphs, **EXACT))
    with torch.no_grad():
        for grid in (case.grid, case.other_grids[0]):
            assert torch.equal(compiled(**inputs(grid)), model(**inputs(grid)))
    for decisions in graphs:
        wanted = sorted(SLUGS[kind] for kind, times in case.refused.items() for _ in range(times))
        assert sorted(one.reason.slug for one in decisions) == wanted


def sparse_eager(monkeypatch, model, grid, kwargs, **options):
    """The eager model with the reference in the place of its attention over the whole video."""
    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda q, k, v: reference.attention(q, k, v, grid=Grid(*grid), tile=(2, 2, 2), **options),
        )
        return model(**kwargs)


@pytest.mark.parametrize("case", beyond.VIDEO[:1], ids=lambda case: case.name)
def test_landscape_and_portrait_of_equal_length_each_get_their_own_tiles(case, monkeypatch):
    model, inputs = case.build()
    compiled = torch.compile(model, backend=converting([], sparsity=0.75))
    with torch.no_grad():
        for grid in (case.grid, case.other_grids[0], case.grid):
            wanted = sparse_eager(monkeypatch, model, grid, inputs(grid), sparsity=0.75)
            assert_same_output(compiled(**inputs(grid)), wanted)


# --- Wan's original code: the grid is read from a tensor, and that breaks the graph -------------------


def run_broken(graphs, grids, **options):
    """(got, model's arguments) at every grid; the model is made whole by nobody."""
    model, inputs = beyond.BROKEN.build()
    compiled = torch.compile(model, backend=converting(graphs, **options))
    with torch.no_grad():
        return model, inputs, [compiled(**inputs(grid)) for grid in grids]


@pytest.mark.parametrize("capture", [False, True], ids=["default", "scalars captured"])
def test_a_call_behind_a_break_stays_dense_and_says_how_to_convert_it(capture):
    graphs, grids = [], (beyond.BROKEN.grid, beyond.BROKEN.other_grids[0])
    with torch._dynamo.config.patch(capture_scalar_outputs=capture):
        model, inputs, outputs = run_broken(graphs, grids, sparsity=0.75)
    with torch.no_grad():
        for got, grid in zip(outputs, grids, strict=True):
            assert_same_output(got, model(**inputs(grid)))  # dense, though many tiles would go
    refused = [one for decisions in graphs for one in decisions]
    assert {one.reason.slug for one in refused} == {"unknown-grid"}
    assert all("vsa_compile.prepare" in one.reason.text for one in refused)


def test_a_hinted_call_behind_a_break_is_sparse_in_landscape_and_portrait(monkeypatch):
    grids = beyond.BROKEN.grid, beyond.BROKEN.other_grids[0]
    model, inputs = beyond.BROKEN.build()
    graphs = []
    compiled = torch.compile(model, backend=converting(graphs, sparsity=0.75))
    for grid in (*grids, grids[0]):
        with vsa_compile.video_grid(*grid), torch.no_grad():
            got = compiled(**inputs(grid))
        assert_same_output(got, sparse_eager(monkeypatch, model, grid, inputs(grid), sparsity=0.75))
    assert {tuple(one.grid) for decisions in graphs for one in decisions} == set(grids)


def test_a_prepared_model_needs_no_hint(monkeypatch):
    grids = beyond.BROKEN.grid, beyond.BROKEN.other_grids[0]
    model, inputs = beyond.BROKEN.build()
    twin, _ = beyond.BROKEN.build()
    graphs = []
    compiled = torch.compile(vsa_compile.prepare(twin), backend=converting(graphs, sparsity=0.75))
    for grid in (*grids, grids[0]):
        with torch.no_grad():
            got = compiled(**inputs(grid))
        assert_same_output(got, sparse_eager(monkeypatch, model, grid, inputs(grid), sparsity=0.75))
