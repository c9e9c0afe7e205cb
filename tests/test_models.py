"""Real models through the pass: the right calls, and the right numbers, forward and backward.

Most run the converted graph as it is, operator by operator: what the pass makes of a model is the same
whoever compiles it, and takes a tenth of the time. THROUGH_INDUCTOR run through the whole backend as well.
"""

import pytest
import torch
import zoo
from compare import RULE_C, assert_same_gradients, assert_same_output, output_and_gradients
from torch._dynamo.utils import counters

import vsa_compile
from vsa_compile.grid import Grid
from vsa_compile.ops import reference

# Models that write their attention as another one here does; what they share is shown on that one.
TWINS = ("wan_i2v", "wan_ti2v", "wan_fused", "wan_vace", "skyreels", "skyreels_df", "chronoedit", "anyflow",
         "cogvideox_2b", "cogvideox_1_5", "consisid", "cosmos_by_frame", "hunyuan_token_replace")  # fmt: skip
# They take long: `make test` judges them on one grid, `make slow` computes them.
LARGE = ("ltx2", "kandinsky5", "motif")
# They take longest; Kandinsky 5 and HunyuanVideo are written as the last two are.
LARGEST = ("sana_wm", "kandinsky6", "hunyuan_float_mask")
# Models whose sequences, layouts and norms others have, too.
COMPOSED = ("allegro", "easyanimate", "joyimage_edit", "cosmos")


def each_video(slow):
    return pytest.mark.parametrize(
        "case",
        [pytest.param(case, marks=pytest.mark.slow if case.name in slow else ()) for case in zoo.VIDEO],
        ids=lambda case: case.name,
    )


JUDGED, COMPUTED = each_video(TWINS + LARGEST), each_video(TWINS + LARGE + LARGEST + COMPOSED)
NEGATIVE = pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, marks=pytest.mark.slow if case.name in ("anyflow_far", "hunyuan_video_decoder") else ()
        )
        for case in zoo.NEGATIVE
    ],
    ids=lambda case: case.name,
)


def only(*names):
    cases = [case for case in zoo.VIDEO if case.name in names]
    assert len(cases) == len(names)
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


THROUGH_INDUCTOR = only("hunyuan_video")  # Wan goes through it as a pipeline
SEQUENCES = only("wan", "hunyuan_video", "cogvideox_5b", "helios")  # video alone, first and last

SLUGS = {
    "cross": {"cross"},
    "text": {"one-axis", "unknown-grid"},
    "audio": {"one-axis"},
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


def named(segment, grid):
    """A segment of explain in the words of the zoo, but for text and other things without a grid."""
    kind = segment.split()[0]
    return "history" if kind == "video" and segment != f"video {Grid(*grid)}" else kind


def fits(segments, sequence, grid):
    """Whether explain's segments are the sequence that a case names."""
    allowed = {"video": {"video"}, "copy": {"video"}, "history": {"history", "other"}, "text": {"other"}}
    words, names = sequence.split(" | "), [named(segment, grid) for segment in segments]
    return len(words) == len(names) and all(
        name in allowed[word] for name, word in zip(names, words, strict=True)
    )


@pytest.mark.no_cover
@JUDGED
def test_every_call_is_judged_right_and_its_grid_is_exact(case):
    model, inputs = case.build()
    assert type(model).__name__ == case.of
    # A second grid of a twin is a second grid of the model that it is a twin of.
    for grid in (case.grid, *case.other_grids[: 0 if case.name in TWINS + LARGE + LARGEST else 1]):
        report = vsa_compile.explain(model, **inputs(grid), options={"min_tokens": 0})
        converted = [site for site in report.sites if site.converted]
        assert len(converted) == case.sites
        assert len(report.sites) == case.calls
        assert {site.grid for site in converted} == {grid}
        sequences = [
            next((one for one in case.segments if fits(site.segments, one, grid)), site.segments)
            for site in converted
        ]
        assert tuple(dict.fromkeys(sequences)) == case.segments


@NEGATIVE
def test_other_attention_is_left_alone(case):
    model, inputs = case.build()
    assert type(model).__name__ == case.of
    report = vsa_compile.explain(model, **inputs(case.grid), options={"min_tokens": 0})
    assert len(report.sites) == case.calls
    assert not report.converted
    assert all(site.reason for site in report.sites)


@pytest.mark.no_cover
@COMPUTED
def test_all_tiles_kept_equals_the_eager_model_with_its_gradients(case):
    assert_equals_eager(case, sparsity=1e-6)


@pytest.mark.no_cover
@SEQUENCES
def test_sparsity_0_equals_the_eager_model_with_its_gradients(case):
    assert_equals_eager(case, sparsity=0)


def assert_same(case, got, wanted, got_grads, wanted_grads):
    assert_same_output(got, wanted, RULE_C * case.tolerance)
    assert_same_gradients(got_grads, wanted_grads, 1e-4 * case.tolerance)


def assert_equals_eager(case, sparsity):
    model, inputs = case.build()
    kwargs = inputs(case.grid)
    wanted, wanted_grads = output_and_gradients(model, **kwargs)
    got, got_grads = output_and_gradients(converted(model, sparsity), **kwargs)
    assert_judged(case)
    assert_same(case, got, wanted, got_grads, wanted_grads)


@pytest.mark.slow
@THROUGH_INDUCTOR
def test_inductor_computes_the_same(case):
    model, inputs = case.build()
    kwargs = inputs(case.grid)
    wanted, wanted_grads = output_and_gradients(model, **kwargs)
    options = {"min_tokens": 0, "sparsity": 1e-6}
    compiled = torch.compile(model, backend="vsa", dynamic=False, options=options)
    got, got_grads = output_and_gradients(compiled, **kwargs)
    assert_judged(case)
    assert_same(case, got, wanted, got_grads, wanted_grads)


@pytest.mark.no_cover
@each_video([case.name for case in zoo.VIDEO if case.name != "hunyuan_video"])
def test_symbolic_shapes_serve_landscape_and_portrait(case):
    model, inputs = case.build()
    symbolic = converted(model, 1e-6, dynamic=True)
    for grid in (case.grid, *case.other_grids[: 2 if case.graphs == 1 else 1]):
        wanted, wanted_grads = output_and_gradients(model, **inputs(grid))
        got, got_grads = output_and_gradients(symbolic, **inputs(grid))
        assert_same(case, got, wanted, got_grads, wanted_grads)
    graphs, left = divmod(counters["vsa_compile"]["converted"], case.sites)
    assert left == 0
    assert graphs == case.graphs


@pytest.mark.no_cover
@COMPUTED
def test_sparse_equals_the_model_with_sdpa_replaced_by_the_reference(case, monkeypatch):
    tile, sparsity = (2, 3, 2), 0.875
    model, inputs = case.build()
    kwargs = inputs(case.grid)
    with torch.no_grad():
        dense = first(model(**kwargs))
        got = first(converted(model, sparsity, tile=tile)(**kwargs))
        replaced = replace_attention(monkeypatch, case, tile, sparsity)
        wanted = first(model(**kwargs))
    assert len(replaced) == case.sites
    assert_same_output(got, wanted, RULE_C * case.tolerance)
    assert (got - dense).norm() > 1e-3 * dense.norm()  # else this proves nothing


def first(output):
    return output[0] if isinstance(output, tuple) else output


def replace_attention(monkeypatch, case, tile, sparsity):
    """Put the reference in the place of every SDPA call over a sequence that holds the case's video.

    The video stands in front or at the end of it.
    """
    grid = Grid(*case.grid)
    alone = {sequence == "video" for sequence in case.segments}
    leads = case.segments[0].startswith("video")
    dense = torch.nn.functional.scaled_dot_product_attention
    replaced = []

    def sdpa(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        rest = query.shape[2] - grid.tokens
        if rest < 0 or (rest == 0) not in alone or key.shape[2] != query.shape[2]:
            return dense(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        replaced.append(query)
        start = 0 if leads else rest
        padding = None if attn_mask is None else attn_mask[:, 0, 0]
        return reference.attention(
            query, key, value, grid=grid, sparsity=sparsity, tile=tile, scale=scale, q_start=start,
            kv_start=start, key_padding=padding,
        )  # fmt: skip

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sdpa)
    return replaced


def test_the_page_is_current():
    page = zoo.page()
    assert zoo.PAGE.read_text(encoding="utf-8") == page, "write it again with: python tests/zoo"
