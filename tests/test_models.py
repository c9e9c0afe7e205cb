"""Real models through the pass: the right calls, and the right numbers, forward and backward.

Most run the converted graph as it is, operator by operator: what the pass makes of a model is the same
whoever compiles it, and takes a tenth of the time. THROUGH_INDUCTOR run through the whole backend as well.
"""

import pytest
import torch
import zoo
from compare import assert_same_gradients, assert_same_output, output_and_gradients
from torch._dynamo.utils import counters

import vsa_compile
from vsa_compile import reference
from vsa_compile.grid import Grid

VIDEO = pytest.mark.parametrize("case", zoo.VIDEO, ids=lambda case: case.name)
NEGATIVE = pytest.mark.parametrize("case", zoo.NEGATIVE, ids=lambda case: case.name)

THROUGH_INDUCTOR = pytest.mark.parametrize(
    "case", [case for case in zoo.VIDEO if case.name in ("wan", "hunyuan_video")], ids=lambda case: case.name
)

SLUGS = {
    "cross": {"cross"},
    "text": {"one-axis"},
    "spatial": {"two-axes"},
    "temporal": {"one-axis"},
    "image": {"two-axes", "unknown-grid"},
    "mask": {"mask"},
}


def converted(model, sparsity, *, dynamic=False, **options):
    """The model with its graph converted and run as it is."""
    settings = vsa_compile.Options.read({"min_tokens": 0, "sparsity": sparsity} | options)

    def convert(module, example_inputs):
        vsa_compile.backend.convert(module, settings)
        return module.forward

    return torch.compile(model, backend=convert, dynamic=dynamic)


def assert_judged(case, times=1):
    counted = dict(counters["vsa_compile"])
    assert counted.pop("converted", 0) == case.sites * times
    assert counted.pop("refused", 0) == sum(case.refused.values()) * times
    allowed = set().union(*(SLUGS[kind] for kind in case.refused))
    assert {key.removeprefix("refused.") for key in counted} <= allowed


@VIDEO
def test_every_call_is_judged_right_and_its_grid_is_exact(case):
    model, inputs = case.build()
    for grid in (case.grid, case.other_grids[0]):
        report = vsa_compile.explain(model, **inputs(grid), options={"min_tokens": 0})
        converted = [site for site in report.sites if site.converted]
        assert len(converted) == case.sites
        assert len(report.sites) == case.calls
        for site in converted:
            assert site.grid == grid
            assert (
                tuple(segment.split()[0].replace("other", "text") for segment in site.segments)
                == case.segments
            )


@NEGATIVE
def test_other_attention_is_left_alone(case):
    model, inputs = case.build()
    report = vsa_compile.explain(model, **inputs(case.grid), options={"min_tokens": 0})
    assert len(report.sites) == case.calls
    assert not report.converted
    assert all(site.reason for site in report.sites)


@VIDEO
@pytest.mark.parametrize("sparsity", [0, 1e-6])
def test_all_tiles_kept_equals_the_eager_model_with_its_gradients(case, sparsity):
    model, inputs = case.build()
    kwargs = inputs(case.grid)
    wanted, wanted_grads = output_and_gradients(model, **kwargs)
    got, got_grads = output_and_gradients(converted(model, sparsity), **kwargs)
    assert_judged(case)
    assert_same_output(got, wanted)
    assert_same_gradients(got_grads, wanted_grads)


@THROUGH_INDUCTOR
def test_inductor_computes_the_same(case):
    model, inputs = case.build()
    kwargs = inputs(case.grid)
    wanted, wanted_grads = output_and_gradients(model, **kwargs)
    options = {"min_tokens": 0, "sparsity": 1e-6}
    compiled = torch.compile(model, backend="vsa", dynamic=False, options=options)
    got, got_grads = output_and_gradients(compiled, **kwargs)
    assert_judged(case)
    assert_same_output(got, wanted)
    assert_same_gradients(got_grads, wanted_grads)


@VIDEO
def test_symbolic_shapes_serve_landscape_and_portrait(case):
    model, inputs = case.build()
    symbolic = converted(model, 1e-6, dynamic=True)
    for grid in (case.grid, case.other_grids[0], case.other_grids[1]):
        wanted, wanted_grads = output_and_gradients(model, **inputs(grid))
        got, got_grads = output_and_gradients(symbolic, **inputs(grid))
        assert_same_output(got, wanted)
        assert_same_gradients(got_grads, wanted_grads)
    graphs, left = divmod(counters["vsa_compile"]["converted"], case.sites)
    assert left == 0
    assert graphs == (3 if case.name == "cogvideox_2b" else 1)  # learned positions fix the size


@VIDEO
def test_sparse_equals_the_model_with_sdpa_replaced_by_the_reference(case, monkeypatch):
    tile, sparsity = (2, 3, 2), 0.875
    model, inputs = case.build()
    kwargs = inputs(case.grid)
    with torch.no_grad():
        dense = model(**kwargs)[0]
        got = converted(model, sparsity, tile=tile)(**kwargs)[0]
        replaced = replace_attention(monkeypatch, case, tile, sparsity)
        wanted = model(**kwargs)[0]
    assert len(replaced) == case.sites
    assert_same_output(got, wanted)
    assert (got - dense).norm() > 1e-3 * dense.norm()  # else this proves nothing


def replace_attention(monkeypatch, case, tile, sparsity):
    """Put the reference in the place of every SDPA call over the case's whole sequence."""
    grid = Grid(*case.grid)
    before = case.segments.index("video")
    dense = torch.nn.functional.scaled_dot_product_attention
    replaced = []

    def sdpa(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        text = query.shape[2] - grid.tokens
        if text < 0 or (text > 0) != (len(case.segments) > 1) or key.shape[2] != query.shape[2]:
            return dense(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        replaced.append(query)
        start = text if before else 0
        padding = None if attn_mask is None else attn_mask[:, 0, 0]
        return reference.attention(
            query, key, value, grid=grid, sparsity=sparsity, tile=tile, scale=scale, q_start=start,
            kv_start=start, key_padding=padding,
        )  # fmt: skip

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sdpa)
    return replaced
