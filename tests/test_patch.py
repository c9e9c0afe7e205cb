"""Attention calls that are in no graph: patch_attention(model), and what explain says of them."""

import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
import toy
from compare import assert_same_gradients, assert_same_output, output_and_gradients
from converting import converting
from torch import nn
from toy import Attention, Habits, ToyDiT, inputs

import vsa_compile
from vsa_compile import patch
from vsa_compile.convert.judge import Conversion, Decision
from vsa_compile.grids.prepare import attention_of
from vsa_compile.runtime import eager_calls

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of sdp_kernel

OPTIONS = {"min_tokens": 0, "sparsity": 0.5, "tile": (2, 2, 2)}
GRIDS = [(5, 6, 7), (5, 7, 6), (3, 4, 9)]
TWO = Habits(blocks=2)
MASKED = Habits(blocks=2, text="after", mask=True)


class Disabled(Attention):
    @torch.compiler.disable
    def unseen(self, q, k, v, mask):
        return super()._attend(q, k, v, mask)

    def _attend(self, q, k, v, mask):
        return self.unseen(q, k, v, mask)


class InAContext(Attention):
    def _attend(self, q, k, v, mask):
        with torch.backends.cuda.sdp_kernel():
            return F.scaled_dot_product_attention(q, k, v, mask)


class Branching(Attention):
    def _attend(self, q, k, v, mask):
        if torch.isnan(q).any():
            raise RuntimeError("not a number")
        return super()._attend(q, k, v, mask)


def written_as(kind: type[Attention], habits: Habits = TWO) -> ToyDiT:
    model = ToyDiT(habits)
    for block in model.blocks:
        block.attn.__class__ = kind
    return model


def patched(model: nn.Module, graphs: list[list[Decision]] | None = None, **options) -> nn.Module:
    """Prepared and patched; `graphs` gets the decisions on each call, which is converted without Inductor."""
    vsa_compile.patch_attention(vsa_compile.prepare(model), OPTIONS | options)
    if graphs is not None:
        attention = attention_of(model)
        assert isinstance(attention, patch.EagerAttention)
        attention._backend = converting(graphs, **(OPTIONS | options | {"dense_layers": ()}))
    return model


def fates(graphs: list[list[Decision]]) -> list[str]:
    return ["sparse" if isinstance(one, Conversion) else one.reason.slug for graph in graphs for one in graph]


def in_graphs(habits: Habits, grid) -> torch.Tensor:
    """What the whole model gives, whose graph shows the grid."""
    torch._dynamo.reset()
    graphs: list[list[Decision]] = []
    with torch.no_grad():
        out = torch.compile(ToyDiT(habits), backend=converting(graphs, **OPTIONS))(*inputs(habits, grid))
    assert fates(graphs) == ["sparse"] * habits.blocks
    torch._dynamo.reset()
    return out


# --- It is sparse ---------------------------------------------------------------------------------


def test_a_model_that_is_not_compiled_is_as_sparse_as_a_compiled_one():
    wanted = [in_graphs(TWO, grid) for grid in GRIDS]
    graphs: list[list[Decision]] = []
    model = patched(ToyDiT(TWO), graphs)
    for _ in range(2):
        for grid, out in zip(GRIDS, wanted, strict=True):
            with torch.no_grad():
                assert_same_output(model(*inputs(TWO, grid)), out)
    assert fates(graphs) == ["sparse"] * len(GRIDS)  # the calls of all blocks share a graph


def test_through_inductor():
    model = patched(ToyDiT(TWO))
    with torch.no_grad():
        got = model(*inputs(TWO, GRIDS[0]))
    assert_same_output(got, in_graphs(TWO, GRIDS[0]))


@pytest.mark.parametrize("kind", [Disabled, InAContext, Branching])
def test_what_breaks_graphs_is_as_sparse_as_what_does_not(kind):
    wanted, graphs, alone = in_graphs(TWO, GRIDS[0]), [], []
    model = torch.compile(patched(written_as(kind), alone), backend=converting(graphs, **OPTIONS))
    with torch.no_grad():
        assert_same_output(model(*inputs(TWO, GRIDS[0])), wanted)
    assert set(fates(graphs + alone)) == {"sparse"}
    assert bool(alone) == (kind is not Branching)  # which prepare captures


def test_calls_that_are_in_graphs_stay_there():
    graphs, alone = [], []
    model = torch.compile(patched(ToyDiT(TWO), alone), backend=converting(graphs, **OPTIONS))
    with torch.no_grad():
        model(*inputs(TWO, GRIDS[0]))
    assert fates(graphs) == ["sparse"] * 2
    assert not alone


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dense_layers", [(), (0,), ("blocks.1",)])
def test_gradients_and_recomputes(reentrant, dense_layers, monkeypatch):
    def checkpoint(block, *args, use_reentrant):
        return torch.utils.checkpoint.checkpoint(block, *args, use_reentrant=reentrant)

    monkeypatch.setattr(toy, "checkpoint", checkpoint)
    (latents,) = inputs(TWO, GRIDS[0])
    graphs: list[list[Decision]] = []
    wanted = output_and_gradients(
        torch.compile(ToyDiT(TWO), backend=converting(graphs, dense_layers=dense_layers)), latents
    )
    torch._dynamo.reset()
    assert len(set(fates(graphs))) == 1 + bool(dense_layers)
    alone: list[list[Decision]] = []
    model = patched(ToyDiT(Habits(blocks=2, checkpointed=True)), alone, dense_layers=dense_layers)
    got = output_and_gradients(model, latents)
    assert_same_output(got[0], wanted[0])
    assert_same_gradients(got[1], wanted[1])
    assert set(fates(alone)) == {"sparse"}


# --- Masks ----------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """How many values of masks were read."""
    found: list[int] = []
    read = patch._all

    def counted(mask):
        found.append(mask.numel())
        return read(mask)

    monkeypatch.setattr(patch, "_all", counted)
    return found


def placed(latents: torch.Tensor) -> vsa_compile.VideoTokens:
    frames, rows, cols = (n // step for n, step in zip(latents.shape[-3:], (1, 2, 2), strict=True))
    return vsa_compile.VideoTokens((frames, rows, cols), 0, frames * rows * cols + 9)


class WithText(ToyDiT):
    """Its rule says where the video is: text follows it."""


vsa_compile.register_grid_rule(WithText, lambda model, given: placed(given["latents"]))


def test_a_mask_that_is_open_over_the_video(reads):
    graphs: list[list[Decision]] = []
    model = patched(WithText(MASKED), graphs)
    with torch.no_grad():
        got = model(*inputs(MASKED, GRIDS[0]))
    assert_same_output(got, in_graphs(MASKED, GRIDS[0]))
    assert fates(graphs) == ["sparse"]
    assert reads == [2 * 210]  # once, for both blocks


def test_a_mask_that_hides_some_of_the_video_stays_dense(reads):
    graphs: list[list[Decision]] = []
    model = patched(WithText(MASKED), graphs)
    latents, text, seen = inputs(MASKED, GRIDS[0])
    holes: list[torch.Tensor] = []

    def hide(module, args):
        x, mask = args
        holes.append(mask.clone())
        holes[-1][1, 0, 0, 100] = False
        return x, holes[-1]

    hooks = [block.register_forward_pre_hook(hide) for block in model.blocks]
    with torch.no_grad():
        got = model(latents, text, seen)
        for hook in hooks:
            hook.remove()
        plain = ToyDiT(MASKED)
        for block in plain.blocks:
            block.register_forward_pre_hook(hide)
        assert_same_output(got, plain(latents, text, seen))
    assert set(fates(graphs)) == {"mask"}


@pytest.mark.quick
def test_a_mask_that_was_written_to_is_read_again(reads):
    tokens, mask = torch.randn(1, 2, 219, 16), torch.ones(1, 1, 1, 219, dtype=torch.bool)
    graphs: list[list[Decision]] = []

    class Alone(WithText):
        def forward(self, latents):
            return F.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=mask)

    model = patched(Alone(MASKED), graphs)
    latents = inputs(TWO, GRIDS[0])[0]
    with torch.no_grad():
        model(latents), model(latents)
        mask[..., 7] = False
        out = model(latents)
    assert reads == [210, 210]
    assert fates(graphs) == ["sparse", "mask"]
    assert_same_output(out, eager_calls.original(tokens, tokens, tokens, attn_mask=mask))


# --- What it leaves alone -------------------------------------------------------------------------


@pytest.mark.quick
def test_other_lengths_and_other_models_stay_as_they_are():
    x, text = torch.randn(1, 2, 210, 16), torch.randn(1, 2, 9, 16)
    graphs: list[list[Decision]] = []

    class Cross(ToyDiT):
        def forward(self, latents):
            return F.scaled_dot_product_attention(x, text, text)

    model = patched(Cross(), graphs)
    out = model(inputs(TWO, GRIDS[0])[0])
    torch.testing.assert_close(out, eager_calls.original(x, text, text), rtol=0, atol=0)
    F.scaled_dot_product_attention(x, x, x)  # of no model
    vsa_compile.prepare(ToyDiT())(inputs(TWO, GRIDS[0])[0])  # of a model that is not patched
    assert not graphs


def test_without_a_grid_it_stays_dense_with_the_reason():
    class Hidden(ToyDiT):
        def forward(self, x):
            return self.blocks[0](x, None)

    graphs: list[list[Decision]] = []
    model = patched(Hidden(), graphs)
    x = torch.randn(1, 210, 64)
    with torch.no_grad():
        model(x)
        with vsa_compile.video_grid(5, 6, 7):
            model(x)
    assert fates(graphs) == ["unknown-grid", "sparse"]
    strict = patched(Hidden(), fallback="error")
    with pytest.raises(vsa_compile.RefusedError, match="grid"):
        strict(x)


@pytest.mark.parametrize("how", ["unpatch", "unprepare"])
def test_undone(how):
    graphs: list[list[Decision]] = []
    model = patched(ToyDiT(TWO), graphs)
    undo = vsa_compile.unpatch_attention if how == "unpatch" else vsa_compile.unprepare
    assert undo(model) is model
    with torch.no_grad():
        model(*inputs(TWO, GRIDS[0]))
    assert not graphs
    assert vsa_compile.unpatch_attention(model) is model


@pytest.mark.quick
@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_are_patched_apart(make):
    model = patched(ToyDiT(TWO), sparsity=0.75)
    other = make(model)
    mine, its = attention_of(model), attention_of(other)
    assert isinstance(mine, patch.EagerAttention)
    assert isinstance(its, patch.EagerAttention)
    assert its is not mine
    assert its.options == mine.options
    vsa_compile.unpatch_attention(model)
    assert attention_of(other) is its


@pytest.mark.quick
def test_the_function_is_still_what_it_was():
    patched(ToyDiT())
    assert F.scaled_dot_product_attention is not eager_calls.original
    assert pickle.loads(pickle.dumps(F.scaled_dot_product_attention)) is F.scaled_dot_product_attention

    def attend(x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    x = torch.randn(1, 2, 8, 4)
    for function in (torch.jit.script(attend), torch.fx.symbolic_trace(attend)):
        torch.testing.assert_close(function(x), eager_calls.original(x, x, x))
    graph = torch.fx.symbolic_trace(attend).graph
    assert eager_calls.original in [node.target for node in graph.nodes]


@pytest.mark.quick
def test_bad_arguments():
    with pytest.raises(vsa_compile.ArgumentError, match="prepare"):
        vsa_compile.patch_attention(ToyDiT())
    with pytest.raises(vsa_compile.ArgumentError, match="Module"):
        vsa_compile.patch_attention(lambda x: x)  # pyright: ignore[reportArgumentType]
    model = vsa_compile.prepare(ToyDiT())
    with pytest.raises(vsa_compile.OptionError, match="sparsity"):
        vsa_compile.patch_attention(model, {"sparsty": 0.5})
    assert attention_of(model) is None
    vsa_compile.patch_attention(model, OPTIONS | {"dense_layers": (0,), "fallback": "error"})
    attention = attention_of(model)
    assert isinstance(attention, patch.EagerAttention)
    tokens = torch.randn(1, 2, 210, 16)
    with vsa_compile.video_grid(5, 6, 7), pytest.raises(vsa_compile.RefusedError, match="path"):
        attention(tokens, tokens, tokens)  # of no module


# --- What explain says ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Disabled, r"test_patch\.py, in _attend, which calls unseen"),
        (InAContext, r"test_patch\.py, in _attend"),
    ],
)
def test_explain_says_where_the_graph_breaks(kind, said):
    model = vsa_compile.prepare(written_as(kind))
    for _ in range(2):  # the second time Dynamo has the graphs already
        sites = vsa_compile.explain(model, *inputs(TWO, GRIDS[0]), options=OPTIONS).sites
        assert [site.name for site in sites] == ["blocks.0.attn", "blocks.1.attn"]
        assert [site.slug for site in sites] == ["not-captured"] * 2
        for site in sites:
            assert re.search(said, site.reason), site.reason
            assert "patch_attention" in site.reason


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", [Attention, Disabled, InAContext])
def test_explain_shows_the_calls_of_a_patched_model(kind, compiled):
    model = patched(written_as(kind), dense_layers=(1,))
    called = (
        torch.compile(model, backend="vsa", options=OPTIONS | {"dense_layers": (1,)}) if compiled else model
    )
    for _ in range(2):
        report = vsa_compile.explain(called, *inputs(TWO, GRIDS[0]))
        assert [(site.name, site.slug, site.grid) for site in report.sites] == [
            ("blocks.0.attn", "", GRIDS[0]),
            ("blocks.1.attn", "dense-layer", None),
        ]
        assert report.options.sparsity == 0.5
