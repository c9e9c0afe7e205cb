"""Which calls are converted, and the reason for each that is not."""

import dataclasses
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import Habits, ToyDiT, inputs

import vsa_compile
from vsa_compile.convert.judge import block_indices

pytestmark = pytest.mark.quick

GRID = (5, 6, 7)
ALL = {"min_tokens": 0}
sdpa = F.scaled_dot_product_attention


def explained(model, *args, options=ALL):
    return vsa_compile.explain(model, *args, options=options).sites


def heads(x, count=4):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("habits", "segments"),
    [
        (Habits(), ("video 5x6x7",)),
        (Habits(spelling="positional", fused=True), ("video 5x6x7",)),
        (Habits(text="before", groups=2), ("other 9", "video 5x6x7")),
        (Habits(text="after", checkpointed=True), ("video 5x6x7", "other 9")),
        (Habits(text="after", mask=True, checkpointed=True, scale=0.3), ("video 5x6x7", "other 9")),
        (Habits(text="before", mask=True, spelling="positional"), ("other 9", "video 5x6x7")),
    ],
)
def test_video_self_attention_is_found_in_every_spelling(habits, segments):
    (site,) = explained(ToyDiT(habits), *inputs(habits))
    assert site.converted, site.reason
    assert site.grid == GRID
    assert site.segments == segments
    assert site.name == "blocks.0.attn"
    assert (site.kept_tiles, site.total_tiles) == (1, 8)


class Video(nn.Module):
    """(B, 16, frames, rows, cols) -> q, k, v of 4 heads from a 1x1x1 patchify, then `attend`."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend

    def forward(self, latents, *rest):
        return self.attend(latents.flatten(2).transpose(1, 2), *rest)


def refused(attend, *rest, grid=GRID, options=ALL):
    (site,) = explained(Video(attend), torch.randn(2, 16, *grid), *rest, options=options)
    assert not site.converted
    return site.reason


def test_the_smallest_video_attention_converts():
    (site,) = explained(Video(lambda x: sdpa(heads(x), heads(x), heads(x))), torch.randn(2, 16, *GRID))
    assert site.converted
    assert site.grid == GRID


def test_cross_attention_is_refused_even_when_the_text_is_as_long():
    text = torch.randn(2, 210, 16)
    assert "cross-attention" in refused(lambda x, t: sdpa(heads(x), heads(t), heads(t)), text)


def test_another_video_of_the_same_grid_is_cross_attention():
    other = torch.randn(2, 16, *GRID)

    def attend(x, y):
        tokens = y.flatten(2).transpose(1, 2)
        return sdpa(heads(x), heads(tokens), heads(tokens))

    assert "cross-attention" in refused(attend, other)


def test_dropout_and_causal_are_refused():
    assert "dropout" in refused(lambda x: sdpa(heads(x), heads(x), heads(x), dropout_p=0.1))
    assert "causal" in refused(lambda x: sdpa(heads(x), heads(x), heads(x), is_causal=True))


@pytest.mark.parametrize(
    ("shape", "dtype", "text"),
    [
        ((210, 210), torch.bool, "not a key-padding mask"),
        ((2, 1, 1, 210), torch.bool, "not provably True on the video keys"),
        ((2, 1, 1, 210), torch.float32, "added to the scores"),
        ((2, 4, 1, 210), torch.bool, "not a key-padding mask"),
        ((2, 1, 210, 210), torch.bool, "not a key-padding mask"),
    ],
)
def test_other_masks_are_refused(shape, dtype, text):
    mask = torch.ones(shape, dtype=dtype)
    assert text in refused(lambda x, m: sdpa(heads(x), heads(x), heads(x), attn_mask=m), mask)


def test_a_mask_that_cuts_into_the_video_is_refused():
    length = torch.tensor([200, 205])

    def attend(x, lengths):
        mask = (torch.arange(210)[None] < lengths[:, None])[:, None, None]
        return sdpa(heads(x), heads(x), heads(x), attn_mask=mask)

    assert "not provably True" in refused(attend, length)


def test_a_mask_that_is_true_by_construction_converts():
    def attend(x):
        mask = torch.ones(2, 210, dtype=torch.bool)[:, None, None]
        return sdpa(heads(x), heads(x), heads(x), attn_mask=mask)

    (site,) = explained(Video(attend), torch.randn(2, 16, *GRID))
    assert site.converted


def test_spatial_and_temporal_attention_are_refused():
    def spatial(x):
        frames = heads(x.unflatten(1, GRID).flatten(0, 1).flatten(1, 2))
        return sdpa(frames, frames, frames)

    def temporal(x):
        columns = heads(x.unflatten(1, GRID).permute(0, 2, 3, 1, 4).flatten(0, 2))
        return sdpa(columns, columns, columns)

    assert "two axes" in refused(spatial)
    assert "one axis" in refused(temporal)


def test_a_single_frame_is_an_image():
    assert "two axes" in refused(lambda x: sdpa(heads(x), heads(x), heads(x)), grid=(1, 12, 14))


def test_tokens_in_another_order_are_refused():
    def columns_first(x):
        tokens = heads(x.unflatten(1, GRID).permute(0, 2, 3, 1, 4).flatten(1, 3))
        return sdpa(tokens, tokens, tokens)

    def tiled(x):
        boxes = x.unflatten(1, (5, 3, 2, 7)).permute(0, 1, 2, 4, 3, 5).flatten(1, 4)
        return sdpa(heads(boxes), heads(boxes), heads(boxes))

    assert "not raster" in refused(columns_first)
    assert "not raster" in refused(tiled)


@pytest.mark.parametrize(
    "reorder", [lambda x: x.flip(1), lambda x: x[:, torch.arange(209, -1, -1)], lambda x: x.roll(3, 1)]
)
def test_shuffled_tokens_are_refused(reorder):
    def attend(x):
        shuffled = heads(reorder(x))
        return sdpa(shuffled, shuffled, shuffled)

    refused(attend)


def test_tokens_scattered_in_place_are_refused():
    order = torch.randperm(210)

    def attend(x, index):
        scattered = torch.empty_like(x)
        scattered[:, index] = x
        return sdpa(heads(scattered), heads(scattered), heads(scattered))

    refused(attend, order)


def test_plain_tokens_show_no_grid_and_the_reason_names_the_way_out():
    class Tokens(nn.Module):
        def forward(self, x):
            return sdpa(heads(x), heads(x), heads(x))

    (site,) = explained(Tokens(), torch.randn(2, 210, 16))
    assert 'options={"grid"' in site.reason
    (site,) = explained(Tokens(), torch.randn(2, 210, 16), options=ALL | {"grid": GRID})
    assert site.converted
    assert site.grid == GRID
    (site,) = explained(Tokens(), torch.randn(2, 211, 16), options=ALL | {"grid": GRID})
    assert not site.converted


def test_few_tokens_stay_dense():
    reason = refused(lambda x: sdpa(heads(x), heads(x), heads(x)), options={"min_tokens": 211})
    assert reason == "210 video tokens are below min_tokens=211; dense is faster there"


def test_wide_heads_and_unequal_widths_are_refused():
    q = torch.randn(1, 1, 210, 272)
    v = torch.randn(2, 210, 32)

    def wide(x, w):
        return sdpa(*[x[:, None].repeat(1, 1, 1, 17)] * 3) + w

    assert "head width 272" in refused(wide, q)
    assert "keys are 4 wide and values 8" in refused(
        lambda x, v: sdpa(heads(x), heads(x), heads(x + 0 * v[..., :16]).repeat(1, 1, 1, 2)), v
    )


def test_bodies_of_autograd_functions_are_refused():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return sdpa(heads(x), heads(x), heads(x))

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return torch.zeros_like(x)

    x = torch.randn(2, 16, *GRID, requires_grad=True)
    (site,) = explained(Video(Doubled.apply), x)
    assert "autograd.Function" in site.reason


def test_func_transforms_are_refused():
    def attend(x):
        return torch.func.grad(lambda y: sdpa(heads(y), heads(y), heads(y)).sum())(x)

    assert "torch.func" in refused(attend)


@pytest.mark.seconds
def test_dense_layers_are_counted_by_the_module_path():
    habits = Habits(blocks=3)
    sites = explained(ToyDiT(habits), *inputs(habits), options=ALL | {"dense_layers": (0, 2)})
    assert [site.converted for site in sites] == [False, True, False]
    assert "block 0 is listed in dense_layers" in sites[0].reason


class TwoLists(torch.nn.Module):
    """Blocks in several lists, one of them in stages."""

    def __init__(self):
        super().__init__()
        blocks = lambda: torch.nn.ModuleList(ToyDiT(Habits(blocks=2)).blocks)  # noqa: E731
        self.patch = torch.nn.Conv3d(4, 64, 1)
        self.doubles, self.singles, self.stages = blocks(), blocks(), torch.nn.ModuleList([blocks()])

    def forward(self, latents):
        x = self.patch(latents).flatten(2).transpose(1, 2)
        for block in (*self.doubles, *self.singles, *self.stages[0]):
            x = block(x, None)
        return x


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("layers", "dense"),
    [
        ((1,), {"doubles.1.attn", "singles.1.attn"}),
        (("singles.1",), {"singles.1.attn"}),
        (("singles", "doubles.0.attn"), {"singles.0.attn", "singles.1.attn", "doubles.0.attn"}),
        (("stages.0.1", 0), {"doubles.0.attn", "singles.0.attn", "stages.0.1.attn"}),
        (("singles.1.att",), set()),
    ],
)
def test_dense_layers_of_several_lists(layers, dense):
    """A number is the index in every list, a path is one module; several numbers in a path need a path."""
    sites = explained(TwoLists(), torch.randn(1, 4, *GRID), options=ALL | {"dense_layers": layers})
    assert {site.name for site in sites if site.slug == "dense-layer"} == dense
    doubtful = {site.name for site in sites if site.slug == "several-indices"}
    in_stages = {"stages.0.0.attn", "stages.0.1.attn"} if any(isinstance(x, int) for x in layers) else set()
    assert doubtful == in_stages - dense
    assert all("list blocks by their paths" in site.reason for site in sites if site.name in doubtful)


def test_dense_layers_without_a_module_path_are_refused():
    def attend(latents):
        x = heads(latents.flatten(2).transpose(1, 2))
        return sdpa(x, x, x)

    (site,) = explained(attend, torch.randn(2, 16, *GRID), options=ALL | {"dense_layers": (0,)})
    assert "no module path" in site.reason


@pytest.mark.parametrize(
    ("path", "indices"),
    [("blocks.3.attn1", [3]), ("stages.0.blocks.11.attn", [0, 11]), ("encoder.attn", []), ("", [])],
)
def test_block_indices(path, indices):
    assert block_indices(path) == indices


@pytest.mark.seconds
def test_the_report_reads_well_and_serialises():
    import json

    habits = Habits(text="after", mask=True, blocks=2)
    report = vsa_compile.explain(ToyDiT(habits), *inputs(habits), options=ALL | {"sparsity": 0.5})
    text, data = str(report), json.loads(report.to_json())
    assert "blocks.1.attn" in text
    assert "4 of 8" in text
    assert "2 of 2 attention calls sparse" in text
    assert data["totals"]["converted"] == 2
    assert data["sites"][0]["grid"] == [5, 6, 7]
    dense = 4 * 2 * 4 * 16 * 219 * 219
    assert data["sites"][0]["flops_dense"] == dense
    assert data["sites"][0]["flops_sparse"] == 4 * 2 * 4 * 16 * (210 * 105 + 210 * 9 + 9 * 219)


@pytest.mark.no_cover
@pytest.mark.seconds
def test_explain_leaves_a_compiled_model_compiled():
    habits = Habits()
    model, args = ToyDiT(habits), inputs(habits)
    compiles = []

    def counting(module, _):
        compiles.append(module)
        return module.forward

    model.compile(backend=counting)
    model(*args)
    for _ in range(20):
        assert explained(model, *args)[0].converted
    model(*args)
    assert len(compiles) == 1


def test_explain_sees_through_an_optimized_module():
    habits = Habits()
    compiled = torch.compile(ToyDiT(habits), backend="eager")
    assert explained(compiled, *inputs(habits))[0].name == "blocks.0.attn"


@pytest.mark.seconds
def test_explain_follows_the_shapes_and_options_of_each_call():
    habits = Habits()
    model = ToyDiT(habits)
    for grid in [(5, 6, 7), (5, 7, 6), (3, 4, 5)]:
        (site,) = explained(model, *inputs(habits, grid))
        assert site.grid == grid
    (site,) = explained(model, *inputs(habits), options=ALL | {"tile": (5, 6, 7)})
    assert site.total_tiles == 1


def test_an_entry_that_fails_leaves_the_call_dense_and_says_so(monkeypatch, caplog):
    """Of one value nothing is known then; other calls of the graph convert."""
    from vsa_compile.analysis.optable import table

    def broken(call):
        raise IndexError("a spelling nobody thought of")

    def attend(x):
        turned = heads(x.tile(1))
        return sdpa(heads(x), heads(x), heads(x)) + sdpa(turned, turned, turned)

    entry = dataclasses.replace(table._ENTRIES[torch.Tensor.tile], layout=broken)
    monkeypatch.setitem(table._ENTRIES, torch.Tensor.tile, entry)
    table._entry.cache_clear()
    monkeypatch.setattr(logging.getLogger("vsa_compile.analysis"), "handlers", [])
    before = torch._dynamo.utils.counters["vsa_compile"]["failed_entries"]
    first, second = explained(Video(attend), torch.randn(2, 16, *GRID))
    table._entry.cache_clear()
    assert first.converted
    assert not second.converted
    assert "the entry of tile failed" in caplog.text
    assert torch._dynamo.utils.counters["vsa_compile"]["failed_entries"] == before + 1
