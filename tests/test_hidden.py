"""Models of diffusers whose grid the graph hides: what converts by what means, and what else is said.

Four ways to compile are held: as it comes, with Dynamo's two capture flags around the call, with a hinted
grid, and prepared. Nothing here may be silently wrong: what stays dense equals the model at any sparsity.
"""

import math

import pytest
import torch

pytest.importorskip("diffusers")

import hidden
from compare import RULE_C, assert_same_gradients, assert_same_output, output_and_gradients
from converting import converting
from hidden import HIDDEN

import vsa_compile
from vsa_compile.convert.judge import Conversion, Refusal

EXACT = {"sparsity": 1e-6}  # every tile is kept, so the sparse operator gives what dense attention does
WHOLE = ("mochi", "hunyuan_video15", "framepack")  # text whose length is data; the flags keep them whole
each = pytest.mark.parametrize


def cases(*names, slow=()):
    """The cases of these names; those of `slow` repeat on another model what the others show."""
    found = [case for case in HIDDEN if case.name in (*names, *slow)]
    marked = [pytest.param(one, marks=pytest.mark.slow if one.name in slow else ()) for one in found]
    return each("case", marked, ids=lambda case: case.name)


def tensor(output):
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output


def flattened(model):
    """The model with its first tensor for output."""

    class First(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, **kwargs):
            return tensor(self.model(**kwargs))

    return First()


def spied(model, **options):
    """(compiled model, the decisions of every graph)."""
    graphs = []
    return torch.compile(model, backend=converting(graphs, **options)), graphs


def sites(graphs):
    return [one for decisions in graphs for one in decisions if isinstance(one, Conversion)]


def slugs(graphs):
    return {one.reason.slug for decisions in graphs for one in decisions if isinstance(one, Refusal)}


# What a plain torch.compile says of the calls it sees. Of Mochi's it sees none: their frame is not compiled.
AS_IT_COMES = {
    "mochi": {"cross"},
    "hunyuan_video15": {"one-axis", "unknown-grid"},
    "framepack": {"unknown-grid"},
    "ltx_coordinates": {"unknown-grid", "cross"},
    "ltx2": {"unknown-grid", "cross"},
    "sana_refiner": {"unknown-grid", "cross"},
    "cosmos3": {"unknown-grid"},
    "minimax_h3": {"unknown-grid", "reordered"},
    "wan_animate2": {"unknown-grid", "cross"},
}


@pytest.mark.no_cover
@cases(
    "mochi", "ltx_coordinates", "minimax_h3",
    slow=("hunyuan_video15", "framepack", "ltx2", "sana_refiner", "cosmos3", "wan_animate2"),
)  # fmt: skip
def test_as_it_comes_nothing_converts_and_nothing_is_wrong(case):
    model, inputs = case.build()
    compiled, graphs = spied(model, sparsity=0.75)
    with torch.no_grad():
        # Many graphs for those whose text is data, and none of them could convert.
        for grid in (case.grid, case.other_grids[0])[: 1 if case.name in WHOLE else 2]:
            assert_same_output(tensor(compiled(**inputs(grid))), tensor(model(**inputs(grid))))
    assert sites(graphs) == []
    assert slugs(graphs) == AS_IT_COMES[case.name]
    unknown = [d for ds in graphs for d in ds if d.reason.slug == "unknown-grid"]
    assert all("vsa_compile.prepare" in one.reason.text for one in unknown)


@pytest.mark.slow
@cases("mochi")
def test_the_capture_flags_alone_convert_a_model_with_text_of_any_length(case):
    model, inputs = case.build()
    model = flattened(model)
    compiled, graphs = spied(model, **EXACT)
    with torch._dynamo.config.patch(hidden.CAPTURE):
        for grid in (case.grid, case.other_grids[0]):
            wanted, wanted_grads = output_and_gradients(model, **inputs(grid))
            got, got_grads = output_and_gradients(compiled, **inputs(grid))
            assert_same_output(got, wanted)
            assert_same_gradients(got_grads, wanted_grads)
    found = sites(graphs)
    assert len(found) % case.sites == 0
    assert len(found) >= case.sites
    assert slugs(graphs) <= {"cross", "one-axis", "two-axes"}
    assert all([run.kind for run in site.segments] == ["video", "other"] for site in found)


@cases("mochi")
def test_another_length_of_text_is_no_other_graph(case):
    model, inputs = case.build()
    compiled, graphs = spied(model, **EXACT)
    with torch._dynamo.config.patch(hidden.CAPTURE), torch.no_grad():
        for lengths in ((4, 9), (1, 11), (8, 2)):
            kwargs = inputs(case.grid) | {"encoder_attention_mask": hidden.text_mask(*lengths)}
            assert_same_output(compiled(**kwargs)[0], model(**kwargs)[0])
    assert len(graphs) == 1


@pytest.mark.no_cover
@cases("ltx_coordinates", "sana_refiner", slow=("ltx2", "cosmos3", "wan_animate2"))
def test_a_hinted_grid_converts_what_a_graph_does_not_show(case):
    model, inputs = case.build()
    compiled, graphs = spied(model, **EXACT)
    for grid in (case.grid, case.other_grids[0]):
        with vsa_compile.video_grid(*grid), torch.no_grad():
            assert_same_output(tensor(compiled(**inputs(grid))), tensor(model(**inputs(grid))))
    assert {tuple(map(str, site.grid)) for site in sites(graphs)} == {
        tuple(map(str, grid)) for grid in (case.grid, case.other_grids[0])
    }
    assert slugs(graphs) <= {"cross", "unknown-grid", "one-axis"}


# --- Prepared -------------------------------------------------------------------------------------


class Recorder(torch.fx.Interpreter):
    """Runs a converted graph and notes of every sparse call: grid, start, tokens behind it."""

    def __init__(self, module, calls):
        super().__init__(module)
        self.calls = calls

    def call_function(self, target, args, kwargs):
        if target is torch.ops.vsa_compile.attention.default:
            query, grid, start = args[0], tuple(args[4]), args[6]
            self.calls.append((grid, start, query.shape[2] - start - math.prod(grid)))
        return super().call_function(target, args, kwargs)


def recorded(**options):
    """(backend, the sparse calls that ran, the reasons why others stay dense)."""
    calls, reasons, settings = (
        [],
        [],
        vsa_compile.Options.read({"min_tokens": 0, "tile": (2, 2, 2)} | options),
    )

    def convert(module, example_inputs):
        decisions = vsa_compile.backend.convert(module, settings)
        reasons.extend(one.reason for one in decisions if isinstance(one, Refusal))
        return Recorder(module, calls).run

    return convert, calls, reasons


def assert_ran(case, calls, grid):
    """Exactly the case's calls ran sparse, each over the grid and where the case says that it lies."""
    (words,) = (sequence.split(" | ") for sequence in case.segments)
    assert [ran for ran, _, _ in calls] == [grid] * case.sites
    for _, start, behind in calls:
        assert (start == 0) == (words[0] == "video")
        assert (behind == 0) == (words[-1] == "video")


@pytest.mark.no_cover
@cases(
    "ltx_coordinates", "minimax_h3",
    slow=("mochi", "hunyuan_video15", "framepack", "ltx2", "sana_refiner", "cosmos3", "wan_animate2"),
)  # fmt: skip
def test_a_prepared_model_converts_every_call_and_equals_eager(case):
    model, inputs = case.build()
    twin, _ = case.build()
    backend, calls, reasons = recorded(**EXACT)
    compiled = torch.compile(
        vsa_compile.prepare(twin), backend=backend, dynamic=False if case.note == "dynamic=False" else None
    )
    compiled, model = flattened(compiled), flattened(model)
    # Turned at once: Dynamo has nothing but the grid to tell the second from the first.
    grids = (case.grid, *case.other_grids)
    for grid in grids if case.name in ("ltx_coordinates", "minimax_h3") else grids[:2]:
        wanted, wanted_grads = output_and_gradients(model, **inputs(grid))
        got, got_grads = output_and_gradients(compiled, **inputs(grid))
        assert_same_output(got, wanted, RULE_C * case.tolerance)
        assert_same_gradients(
            {name.replace("_orig_mod.", ""): grad for name, grad in got_grads.items()},
            wanted_grads,
            1e-4 * case.tolerance,
        )
        assert_ran(case, calls, grid)
        calls.clear()
    assert {one.slug for one in reasons} <= {"cross", "one-axis", "unknown-grid"}


@cases("ltx_coordinates", slow=["minimax_h3", "cosmos3"])
def test_blocks_of_a_prepared_model_that_are_compiled_alone_convert(case):
    model, inputs = case.build()
    twin, _ = case.build()
    backend, calls, _ = recorded(**EXACT)
    for block in vsa_compile.prepare(twin).get_submodule(
        "layers" if case.name == "cosmos3" else "transformer_blocks"
    ):
        block.compile(backend=backend)
    with torch.no_grad():
        for grid in (case.grid, *case.other_grids):
            assert_same_output(tensor(twin(**inputs(grid))), tensor(model(**inputs(grid))))
            assert_ran(case, calls, grid)
            calls.clear()


def shuffled(case, kwargs):
    """The arguments of a call whose tokens are in no raster order, or do not lie side by side."""
    order = torch.randperm(math.prod(case.grid), generator=torch.Generator().manual_seed(0))
    if case.name == "ltx_coordinates":
        return {"video_coords": kwargs["video_coords"][:, :, order]}
    if case.name == "sana_refiner":
        return {
            "video_rotary_emb": tuple(
                x.index_select(x.dim() - 2 if x.dim() == 4 else 1, order) for x in kwargs["video_rotary_emb"]
            )
        }
    if case.name == "minimax_h3":
        return {"video_indices": kwargs["video_indices"][order]}
    return {"vision_sequence_indexes": kwargs["vision_sequence_indexes"][order]}


@cases("ltx_coordinates", "sana_refiner", "minimax_h3", "cosmos3")
def test_tokens_in_another_order_stay_dense_and_the_reason_says_so(case):
    model, inputs = case.build()
    twin, _ = case.build()
    backend, calls, reasons = recorded(sparsity=0.75)
    compiled = torch.compile(vsa_compile.prepare(twin), backend=backend)
    kwargs = inputs(case.grid) | shuffled(case, inputs(case.grid))
    with torch.no_grad():
        assert_same_output(tensor(compiled(**kwargs)), tensor(model(**kwargs)))
    assert calls == []
    unknown = [one.text for one in reasons if one.slug == "unknown-grid"]
    assert unknown
    assert all("did not learn" in text and "video_grid" in text for text in unknown)
    assert any("raster" in text or "spreads" in text for text in unknown)


@pytest.mark.no_cover
def test_several_samples_of_text_under_a_mask_stay_dense_and_say_why():
    (case,) = hidden.DENSE
    model, inputs = case.build()
    twin, _ = case.build()
    backend, calls, reasons = recorded(sparsity=0.75)
    compiled = torch.compile(vsa_compile.prepare(twin), backend=backend)
    with torch.no_grad():
        assert_same_output(tensor(compiled(**inputs(case.grid))), tensor(model(**inputs(case.grid))))
    assert calls == []
    slugs = [one.slug for one in reasons]
    assert (slugs.count("mask"), slugs.count("one-axis")) == (case.refused["padding"], case.refused["text"])


@pytest.mark.slow
def test_another_number_of_frames_converts_when_prepared():
    """SanaWM counts its frames in another input: to a graph of symbolic sizes no axis of its tokens, so that
    one of its two calls stays dense there, and the reason names what this test does."""
    case = hidden.FRAMES
    model, inputs = case.build()
    twin, _ = case.build()
    backend, calls, _ = recorded(**EXACT)
    compiled = torch.compile(vsa_compile.prepare(twin), backend=backend, dynamic=False)
    with torch.no_grad():
        for grid in (case.grid, case.other_grids[1]):
            got, wanted = tensor(compiled(**inputs(grid))), tensor(model(**inputs(grid)))
            assert_same_output(got, wanted, RULE_C * case.tolerance)
            assert_ran(case, calls, grid)
            calls.clear()


def test_frames_that_are_counted_in_another_input_are_an_unknown_grid():
    def attend(x, levels):
        x = x.unflatten(1, (levels.shape[1], -1)) * levels[:, :, None, None]
        q = x.flatten(1, 2).unsqueeze(1)
        return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    backend, _, reasons = recorded(**EXACT)
    levels = torch.rand(1, 3)
    torch._dynamo.mark_dynamic(levels, 1)
    torch.compile(attend, backend=backend)(torch.randn(1, 180, 16), levels)
    assert [one.slug for one in reasons] == ["unknown-grid"]


def test_video_that_is_split_by_frames_of_another_input_says_how_to_convert():
    def attend(video, levels):
        x = video.flatten(2).transpose(1, 2).unflatten(1, (levels.shape[1], -1)) * levels[:, :, None, None]
        q, k = (x + y for y in (0, levels[:, :, None, None]))
        q, k = (y.flatten(1, 2).unsqueeze(1) for y in (q, k))
        return torch.nn.functional.scaled_dot_product_attention(q, k, k)

    backend, calls, reasons = recorded(**EXACT)
    video, levels = torch.randn(1, 16, 3, 6, 10), torch.rand(1, 3)
    torch._dynamo.mark_dynamic(levels, 1)
    torch.compile(attend, backend=backend)(video, levels)
    (reason,) = reasons
    assert reason.slug == "unknown-grid"
    assert "dynamic=False" in reason.text
    assert not calls
    torch._dynamo.reset()
    torch.compile(attend, backend=backend, dynamic=False)(video, levels.clone())
    assert calls == [((3, 6, 10), 0, 0)]


@pytest.mark.slow
@cases("framepack")
def test_a_sequence_cut_at_a_length_that_is_data_says_how_to_convert(case):
    """With symbolic sizes Dynamo cannot tell how long x[:, :-n] is, so that queries and keys come apart."""
    model, inputs = case.build()
    twin, _ = case.build()
    backend, calls, reasons = recorded(**EXACT)
    compiled = torch.compile(vsa_compile.prepare(twin), backend=backend)
    with torch.no_grad():
        for grid in (case.grid, case.other_grids[0]):
            calls.clear(), reasons.clear()
            assert_same_output(tensor(compiled(**inputs(grid))), tensor(model(**inputs(grid))))
    apart = [one for one in reasons if one.slug == "data-dependent"]
    assert len(calls) + len(apart) == case.sites
    assert apart
    assert all("dynamic=False" in one.text for one in apart)


@pytest.mark.no_cover
@cases("mochi", slow=("hunyuan_video15", "wan_animate2"))
def test_explain_names_the_way_out_and_shows_that_it_is_one(case):
    model, inputs = case.build()
    plain = vsa_compile.explain(model, options={"min_tokens": 0}, **inputs(case.grid))
    dense = [site for site in plain.sites if site.slug not in ("cross", "one-axis")]
    assert len(dense) == case.sites
    assert not plain.converted
    assert all("vsa_compile.prepare(model)" in site.reason for site in dense)
    prepared = vsa_compile.explain(vsa_compile.prepare(model), options={"min_tokens": 0}, **inputs(case.grid))
    assert [site.grid for site in prepared.sites if site.converted] == [case.grid] * case.sites
    assert len(prepared.sites) == case.calls
    assert {site.name for site in prepared.sites} == {site.name for site in plain.sites}


# --- Queries that are padding ---------------------------------------------------------------------


class Joint(torch.nn.Module):
    """[video | text] whose padding neither sees nor is seen, as HunyuanVideo 1.5 masks it."""

    def forward(self, latents, text, padding):
        x = torch.cat([latents.flatten(2).transpose(1, 2), text], dim=1)
        q = x.unflatten(-1, (2, -1)).transpose(1, 2)
        seen = padding[:, None, None, :].repeat(1, 1, x.shape[1], 1)
        return torch.nn.functional.scaled_dot_product_attention(
            q, q, q, attn_mask=seen & seen.transpose(2, 3)
        )


@each("hides_video", [False, True])
def test_queries_that_are_padding_give_zeros_as_dense_attention_does(hides_video):
    latents, text = torch.randn(2, 32, 5, 6, 7), torch.randn(2, 9, 32)
    video, seen = torch.ones(2, 210, dtype=torch.bool), torch.arange(9) < torch.tensor([[4], [9]])
    if hides_video:
        video[1, 17] = False

    class Masked(Joint):
        def forward(self, latents, text, seen):
            front = video if hides_video else torch.ones(2, 210, dtype=torch.bool)
            return super().forward(latents, text, torch.cat([front, seen], dim=1))

    compiled, graphs = spied(Masked(), **EXACT)
    inputs = [x.clone().requires_grad_() for x in (latents, text)]
    wanted = Masked()(*inputs, seen)
    got = compiled(*inputs, seen)
    assert_same_output(got.detach(), wanted.detach())
    assert (got[0, :, 214:] == 0).all()
    weights = torch.randn(wanted.shape)
    for a, b in zip(*(torch.autograd.grad(y, inputs, weights) for y in (got, wanted)), strict=True):
        assert_same_output(a, b)
    assert len(sites(graphs)) == (not hides_video)
