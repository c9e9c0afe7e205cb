"""Models of diffusers whose grid the graph hides: what converts by what means, and what else is said.

Three ways to compile are held: as it comes, with Dynamo's two capture flags around the call, and prepared.
Nothing here may be silently wrong: what stays dense equals the model at any sparsity.
"""

import pytest
import torch

pytest.importorskip("diffusers")

import hidden
from compare import assert_same_gradients, assert_same_output, output_and_gradients
from converting import converting
from hidden import HIDDEN

import vsa_compile
from vsa_compile.sites import Refusal, Site

EXACT = {"sparsity": 1e-6}  # every tile is kept, so the sparse operator gives what dense attention does
WHOLE = ("mochi", "hunyuan_video15", "framepack")  # text whose length is data; the flags keep them whole
PACKED = ("minimax_h3",)  # one run of text, audio and video; a grid alone does not say where the video is
each = pytest.mark.parametrize


def cases(*names):
    return each("case", [case for case in HIDDEN if case.name in names], ids=lambda case: case.name)


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
    return [one for decisions in graphs for one in decisions if isinstance(one, Site)]


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
    "minimax_h3": {"unknown-grid"},
    "wan_animate2": {"unknown-grid", "cross"},
}


@each("case", HIDDEN, ids=lambda case: case.name)
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


@cases(*WHOLE)
def test_the_capture_flags_alone_convert_models_with_text_of_any_length(case):
    model, inputs = case.build()
    model = flattened(model)
    compiled, graphs = spied(model, **EXACT)
    with torch._dynamo.config.patch(hidden.CAPTURE):
        for grid in (case.grid, case.other_grids[0])[: 2 if case.name == "mochi" else 1]:
            wanted, wanted_grads = output_and_gradients(model, **inputs(grid))
            got, got_grads = output_and_gradients(compiled, **inputs(grid))
            assert_same_output(got, wanted)
            assert_same_gradients(got_grads, wanted_grads)
    found = sites(graphs)
    assert len(found) % case.sites == 0
    assert len(found) >= case.sites
    assert slugs(graphs) <= {"cross", "one-axis", "two-axes"}
    for site in found:
        runs = tuple(run.kind for run in site.segments)
        assert runs[:1] == ("video",) if case.name != "framepack" else runs[-1] == "other"


@cases("mochi")
def test_another_length_of_text_is_no_other_graph(case):
    model, inputs = case.build()
    compiled, graphs = spied(model, **EXACT)
    with torch._dynamo.config.patch(hidden.CAPTURE), torch.no_grad():
        for lengths in ((4, 9), (1, 11), (8, 2)):
            kwargs = inputs(case.grid) | {"encoder_attention_mask": hidden.text_mask(*lengths)}
            assert_same_output(compiled(**kwargs)[0], model(**kwargs)[0])
    assert len(graphs) == 1


@each("case", [c for c in HIDDEN if c.name not in (*WHOLE, *PACKED)], ids=lambda case: case.name)
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
