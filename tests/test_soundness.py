"""What was once believed of a graph and is not so: each as the smallest model that shows it.

A call that must not convert also has to give the numbers of the model, with every tile kept; one that must
convert shows that the cure took nothing that is true.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F
from compare import assert_same_output
from torch import Tensor, nn
from torch.utils._sympy.functions import FloorDiv

import vsa_compile
from vsa_compile.analysis.sizes import equal
from vsa_compile.convert.judge import Conversion

pytestmark = pytest.mark.quick

GRID, VIDEO, TEXT, WIDTH = (4, 4, 4), 64, 8, 16
ORDER = torch.randperm(VIDEO, generator=torch.Generator().manual_seed(0))
BACK = ORDER.argsort()
sdpa = F.scaled_dot_product_attention


def heads(x: Tensor) -> Tensor:
    """(B, N, 16) -> (B, 2, N, 8)."""
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


def attention(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, N, 16) alike. mask: (B or 1, 1, 1, N) or None."""
    return sdpa(heads(x), heads(x), heads(x), attn_mask=mask).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, *tokens: Tensor) -> Tensor:
        return self.attend(*tokens)


class Model(nn.Module):
    """Latents (B, 4, frames, rows, cols) -> tokens (B, N, 16) in raster order -> what `attend` gives.

    `before`: what becomes of the tokens on the way to the block.
    """

    def __init__(
        self, attend: Callable[..., Tensor], before: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv3d(4, WIDTH, 1)
        self.before = before
        self.blocks = nn.ModuleList([Block(attend)])

    def tokens(self, latents: Tensor) -> Tensor:
        return self.before(self.patch(latents).flatten(2).transpose(1, 2))

    def forward(self, latents: Tensor, *rest: Tensor) -> Tensor:
        return self.blocks[0](self.tokens(latents), *rest)


class TwoVideos(Model):
    """Another video of the same grid goes through the same patch embedding."""

    def forward(self, latents: Tensor, *rest: Tensor) -> Tensor:
        return self.blocks[0](self.tokens(latents), self.tokens(rest[0]), *rest[1:])


def latents(batch: int = 2, seed: int = 0, grid: tuple[int, ...] = GRID) -> Tensor:
    return torch.randn(batch, 4, *grid, generator=torch.Generator().manual_seed(seed))


def fates(model: nn.Module, *args: Tensor, context: Any = None, **options: Any) -> list[Any]:
    """The grid of every call that converts, the reason's slug of every one that does not.

    The converted graph must compute what the model does.
    """
    found: list[Any] = []
    settings = vsa_compile.Options.read({"min_tokens": 0, "sparsity": 1e-6} | options)

    def backend(module: torch.fx.GraphModule, example_inputs: list) -> Callable:
        for one in vsa_compile.backend.convert(module, settings):
            found.append(tuple(one.grid) if isinstance(one, Conversion) else one.reason.slug)
        return module.forward

    torch._dynamo.reset()
    with torch.no_grad():
        with context or nullcontext():
            got = torch.compile(model, backend=backend, dynamic=False)(*(x.clone() for x in args))
        assert_same_output(got, model(*(x.clone() for x in args)))
    return found


def dense(found: list[Any]) -> bool:
    """Whether there are calls, none of which converts."""
    return bool(found) and all(isinstance(one, str) for one in found)


def test_the_smallest_model_converts():
    assert fates(Model(lambda x: attention(x)), latents()) == [GRID]


# --- 1. What a mask lets through ------------------------------------------------------------------


def ones(batch: int = 2) -> Tensor:
    return torch.ones(batch, 1, 1, VIDEO + TEXT, dtype=torch.bool)


def frames_set_false(x: Tensor, pad: Tensor) -> Tensor:
    m = ones()
    m[..., 32:64] = False
    return m


def one_row_set_false(x: Tensor, pad: Tensor) -> Tensor:
    m = torch.ones(2, VIDEO + TEXT, dtype=torch.bool)
    m[0, 48:64] = False
    return m[:, None, None]


def filled_in_place(x: Tensor, pad: Tensor) -> Tensor:
    m = ones()
    m.masked_fill_(pad, False)
    return m


def anded_in_place(x: Tensor, pad: Tensor) -> Tensor:
    m = ones()
    m.logical_and_(~pad)
    return m


def anded_by_augmented_assignment(x: Tensor, pad: Tensor) -> Tensor:
    m = ones()
    m &= ~pad
    return m


def anded_out(x: Tensor, pad: Tensor) -> Tensor:
    m = ones()
    torch.logical_and(m, ~pad, out=m)
    return m


def zeroed_through_a_view(x: Tensor, pad: Tensor) -> Tensor:
    m = ones()
    m.view(2, -1)[:, 40:50].zero_()
    return m


def written_before_it_is_widened(x: Tensor, pad: Tensor) -> Tensor:
    m = torch.ones(2, VIDEO + TEXT, dtype=torch.bool)
    wide = m[:, None, None]
    m[:, :16] = False
    return wide


def positions_written_first(x: Tensor, pad: Tensor) -> Tensor:
    position = torch.arange(VIDEO + TEXT)
    position[10:20] = VIDEO + TEXT
    return (position < VIDEO + 1)[None, None, None].expand(2, -1, -1, -1)


def new_full_of_false(x: Tensor, pad: Tensor) -> Tensor:
    m = x.new_full((2, 1, 1, VIDEO + TEXT), False, dtype=torch.bool)
    m[..., VIDEO:] = True
    return m


def brought_into_another_order(x: Tensor, pad: Tensor) -> Tensor:
    m = torch.cat([torch.ones(2, VIDEO, dtype=torch.bool), ~pad[:, 0, 0, :TEXT]], 1)
    return m[:, torch.arange(VIDEO + TEXT - 1, -1, -1)][:, None, None]


def a_sum_of_what_is_negative(x: Tensor, pad: Tensor) -> Tensor:
    length = VIDEO + (pad[:, 0, 0, :TEXT].logical_not().int() - 1).sum(-1)
    return (torch.arange(VIDEO + TEXT)[None] < length[:, None])[:, None, None]


def a_length_that_wraps(x: Tensor, pad: Tensor) -> Tensor:
    length = (VIDEO + 2 * VIDEO + pad[:, 0, 0, :TEXT].sum(-1)).to(torch.int8)
    return (torch.arange(VIDEO + TEXT)[None] < length[:, None])[:, None, None]


def a_length_that_is_a_truth_value(x: Tensor, pad: Tensor) -> Tensor:
    length = (VIDEO + pad[:, 0, 0, :TEXT].sum(-1)).bool()
    return (torch.arange(VIDEO + TEXT)[None] < length[:, None])[:, None, None]


def padding_written_over_the_video(x: Tensor, pad: Tensor) -> Tensor:
    """CogView4's spelling, with the text taken to be in front."""
    m = torch.ones(2, VIDEO + TEXT, dtype=torch.int32)
    m[:, :TEXT] = ~pad[:, 0, 0, :TEXT]
    return m.bool()[:, None, None]


MASKS_THAT_HIDE_VIDEO = (
    frames_set_false, one_row_set_false, filled_in_place, anded_in_place, anded_by_augmented_assignment,
    anded_out, zeroed_through_a_view, written_before_it_is_widened, positions_written_first,
    new_full_of_false, brought_into_another_order, a_sum_of_what_is_negative, a_length_that_wraps,
    a_length_that_is_a_truth_value, padding_written_over_the_video,
)  # fmt: skip


def joint(mask: Callable[[Tensor, Tensor], Tensor]) -> Model:
    """Video in front of text, in one sequence under a mask."""
    return Model(lambda x, text, pad: attention(torch.cat([x, text], 1), mask(x, pad))[:, :VIDEO])


def text_and_padding() -> tuple[Tensor, Tensor]:
    """(B, T, C), and (B, 1, 1, T + V) bool: True where padding is, on video too."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, TEXT, WIDTH, generator=generator),
        torch.rand(2, 1, 1, VIDEO + TEXT, generator=generator) < 0.5,
    )


@pytest.mark.parametrize("mask", MASKS_THAT_HIDE_VIDEO, ids=lambda f: f.__name__)
def test_a_mask_that_hides_video_keys_stays_dense(mask: Callable[[Tensor, Tensor], Tensor]):
    assert fates(joint(mask), latents(), *text_and_padding()) == ["mask"]


def compared_with_other(x: Tensor, pad: Tensor) -> Tensor:
    length = VIDEO + pad[:, 0, 0, :TEXT].sum(-1)
    return torch.arange(VIDEO + TEXT).lt(other=length[:, None])[:, None, None]


def compared_by_function_with_other(x: Tensor, pad: Tensor) -> Tensor:
    length = VIDEO + pad[:, 0, 0, :TEXT].sum(-1)
    return torch.lt(torch.arange(VIDEO + TEXT), other=length[:, None])[:, None, None]


def joined_with_ones(x: Tensor, pad: Tensor) -> Tensor:
    return torch.cat([torch.ones(2, VIDEO, dtype=torch.bool), ~pad[:, 0, 0, :TEXT]], 1)[:, None, None]


@pytest.mark.parametrize(
    "mask", [compared_with_other, compared_by_function_with_other, joined_with_ones], ids=lambda f: f.__name__
)
def test_a_mask_of_the_text_alone_converts_however_it_is_spelled(mask: Callable[[Tensor, Tensor], Tensor]):
    assert fates(joint(mask), latents(), *text_and_padding()) == [GRID]


def test_a_mask_between_padding_whose_first_key_is_set_later_computes_what_it_did():
    """The HunyuanVideo refiner's spelling: padding sees nobody, then everybody sees the first key."""

    def mask(x: Tensor, pad: Tensor) -> Tensor:
        real = joined_with_ones(x, pad)
        both = real & real.transpose(2, 3)
        both[:, :, :, 0] = True
        return both

    model = Model(lambda x, text, pad: attention(torch.cat([x, text], 1), mask(x, pad)))
    assert fates(model, latents(), *text_and_padding()) == ["mask"]


# --- 2. Operators that only look like ours --------------------------------------------------------

_library = torch.library.Library("mylib", "DEF")
for _schema, _function in {
    "gate(Tensor q, Tensor g) -> Tensor": lambda q, g: q * 2,
    "scaled_dot_product_attention(Tensor q, Tensor k, Tensor v) -> Tensor": lambda q, k, v: (
        (q @ k.transpose(-1, -2)).sigmoid() @ v
    ),
    "flatten(Tensor x) -> Tensor": lambda x: tiled(x).clone(),
}.items():
    _library.define(_schema)
    _library.impl(_schema.partition("(")[0], _function, "CompositeExplicitAutograd")


def tiled(volume: Tensor) -> Tensor:
    """(B, C, frames, rows, cols) -> (B, C, N), tile by tile of (2, 2, 2)."""
    parts = volume.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return parts.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(2)


def test_a_gate_of_another_namespace_is_none():
    gate = torch.ops.mylib.gate

    def attend(x: Tensor) -> Tensor:
        return sdpa(gate(heads(x), x), heads(x), heads(x))

    fates(Model(attend), latents())  # the numbers show whether it was taken for ours


def test_an_attention_of_another_namespace_is_none():
    model = Model(lambda x: torch.ops.mylib.scaled_dot_product_attention(heads(x), heads(x), heads(x)) + 0)
    assert fates(model, latents()) == []


class FlattenedElsewhere(Model):
    def __init__(self, flatten: Callable[[Tensor], Tensor]) -> None:
        super().__init__(lambda x: attention(x))
        self.flatten = flatten

    def tokens(self, latents: Tensor) -> Tensor:
        return self.flatten(self.patch(latents)).transpose(1, 2)


def test_a_flatten_of_another_namespace_is_unknown():
    assert dense(fates(FlattenedElsewhere(torch.ops.mylib.flatten), latents()))


@torch.compiler.allow_in_graph
def flatten(volume: Tensor) -> Tensor:
    return tiled(volume)


@torch.compiler.allow_in_graph
def contiguous(x: Tensor) -> Tensor:
    return x.roll(1, 1)


def test_a_python_function_of_a_known_name_is_unknown():
    assert dense(fates(FlattenedElsewhere(flatten), latents()))
    assert dense(fates(Model(lambda x: attention(contiguous(x))), latents()))


# --- 3. Token order and identity ------------------------------------------------------------------


def by_index_copy(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y.index_copy_(1, ORDER, x)
    return y


def by_index_copy_into_a_clone(x: Tensor) -> Tensor:
    y = x.clone()
    y.index_copy_(1, ORDER, x)
    return y


def by_scatter(x: Tensor) -> Tensor:
    y = x.clone()
    y.scatter_(1, ORDER[None, :, None].expand(x.shape), x)
    return y


def by_copy(x: Tensor) -> Tensor:
    x = x.clone()
    x.copy_(x[:, ORDER])
    return x


def by_assignment(x: Tensor) -> Tensor:
    x = x.clone()
    x[:] = x[:, ORDER]
    return x


def by_scatter_through_a_view(x: Tensor) -> Tensor:
    x = x.clone()
    view = x.view(x.shape[0], VIDEO, 2, -1)
    view[:, ORDER] = view.clone()
    return x


def by_out(x: Tensor) -> Tensor:
    y = x.clone()
    torch.index_select(x, 1, ORDER, out=y)
    return y


def by_every_second_turned(x: Tensor) -> Tensor:
    """Every second frame turned from right to left."""
    y = x.unflatten(1, GRID).clone()
    y[:, 1::2] = y[:, 1::2].flip(3)
    return y.flatten(1, 3)


def by_write_under_an_alias(x: Tensor) -> Tensor:
    y = x.clone()
    same = y.view_as(y)
    y.copy_(x.roll(1, 1))
    return same


REORDERED_IN_PLACE = (
    by_index_copy, by_index_copy_into_a_clone, by_scatter, by_copy, by_assignment, by_scatter_through_a_view,
    by_out, by_every_second_turned, by_write_under_an_alias,
)  # fmt: skip


@pytest.mark.parametrize("write", REORDERED_IN_PLACE, ids=lambda f: f.__name__)
def test_tokens_that_were_written_in_another_order_stay_dense(write: Callable[[Tensor], Tensor]):
    assert dense(fates(Model(lambda x: attention(write(x))), latents()))


def by_index(x: Tensor) -> Tensor:
    return x[:, ORDER]


def by_gather(x: Tensor) -> Tensor:
    return x.gather(1, ORDER[None, :, None].expand(x.shape))


def by_roll(x: Tensor) -> Tensor:
    return x.roll(5, 1)


def by_flip(x: Tensor) -> Tensor:
    return x.flip(1)


def by_sort(x: Tensor) -> Tensor:
    return x[:, x.abs().sum((0, 2)).argsort()]


REORDERED = (by_index, by_gather, by_roll, by_flip, by_sort)


@pytest.mark.parametrize("reorder", REORDERED, ids=lambda f: f.__name__)
def test_a_sum_with_reordered_tokens_teaches_nothing_of_them(reorder: Callable[[Tensor], Tensor]):
    def attend(x: Tensor) -> Tensor:
        y = reorder(x)
        return attention(y) + (x + y).mean()

    assert dense(fates(Model(attend), latents()))
    assert fates(Model(lambda x: attention(x) + (x + reorder(x)).mean()), latents()) == [GRID]


@pytest.mark.parametrize("reorder", REORDERED, ids=lambda f: f.__name__)
def test_queries_alone_in_another_order_stay_dense(reorder: Callable[[Tensor], Tensor]):
    def attend(x: Tensor) -> Tensor:
        return x + sdpa(heads(reorder(x)), heads(x), heads(x)).transpose(1, 2).flatten(2)

    assert dense(fates(Model(attend), latents()))


TABLE = torch.randn(1, VIDEO, WIDTH, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_table_that_two_videos_share_does_not_make_them_one(batch: int):
    def attend(x: Tensor, other: Tensor) -> Tensor:
        x, other = x + TABLE, other + TABLE
        return sdpa(heads(x), heads(other), heads(other))

    assert fates(TwoVideos(attend), latents(batch), latents(batch, 1)) == ["cross"]


@pytest.mark.parametrize("batch", [1, 2])
def test_the_mean_difference_of_two_videos_does_not_make_them_one(batch: int):
    def attend(x: Tensor, other: Tensor) -> Tensor:
        return sdpa(heads(x), heads(other), heads(other)) + (x - other).mean()

    assert fates(TwoVideos(attend), latents(batch), latents(batch, 1)) == ["cross"]


@pytest.mark.parametrize("batch", [1, 2])
def test_two_shifts_of_a_clip_are_not_the_same_tokens(batch: int):
    def attend(x: Tensor) -> Tensor:
        clip = torch.cat([x, x[:, :16]], 1)
        early, late = clip[:, :VIDEO], clip[:, 16:]
        return sdpa(heads(early), heads(late), heads(late)) + (early - late).mean()

    assert dense(fates(Model(attend), latents(batch)))


@pytest.mark.parametrize("batch", [1, 2])
def test_one_video_under_a_table_converts_at_every_batch_size(batch: int):
    assert fates(Model(lambda x: attention(x + TABLE)), latents(batch)) == [GRID]


# A hint fills what is unknown.


def in_windows(x: Tensor) -> Tensor:
    """Window by window of (2, 2, 2)."""
    return tiled(x.transpose(1, 2).unflatten(2, GRID)).transpose(1, 2)


def rows_first(x: Tensor) -> Tensor:
    return x.unflatten(1, GRID).transpose(1, 2).flatten(1, 3)


SHOWN_NOT_TO_BE_RASTER = (in_windows, rows_first, by_index, by_flip, by_copy, by_every_second_turned)


@pytest.mark.parametrize("reorder", SHOWN_NOT_TO_BE_RASTER, ids=lambda f: f.__name__)
@pytest.mark.parametrize("hint", ["options", "video_grid", "prepare", "prepare, before the block"])
def test_a_hint_does_not_override_what_the_graph_shows(reorder: Callable[[Tensor], Tensor], hint: str):
    model = Model(lambda x: attention(reorder(x)))
    if hint == "prepare, before the block":
        model = Model(lambda x: attention(x), before=reorder)
    if hint.startswith("prepare"):
        found = fates(vsa_compile.prepare(model), latents())
    elif hint == "video_grid":
        found = fates(model, latents(), context=vsa_compile.video_grid(*GRID))
    else:
        found = fates(model, latents(), grid=GRID)
    assert dense(found)


def test_prepare_does_not_take_text_of_equal_length_for_the_video():
    def attend(text: Tensor, x: Tensor) -> Tensor:
        return attention(text).mean(1, keepdim=True) + x

    class TextFirst(Model):
        def forward(self, latents: Tensor, text: Tensor) -> Tensor:
            return self.blocks[0](text, self.tokens(latents))

    text = torch.randn(2, VIDEO, WIDTH, generator=torch.Generator().manual_seed(3))
    assert dense(fates(vsa_compile.prepare(TextFirst(attend)), latents(), text))


# Three axes are not yet a video.


def test_audio_features_that_are_pooled_are_no_video():
    class Audio(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pooled = x.unflatten(1, (-1, 4, 4)).mean((2, 3), keepdim=True)
            return attention(x) + pooled.mean()

    x = torch.randn(2, VIDEO, WIDTH, generator=torch.Generator().manual_seed(4))
    assert dense(fates(Audio(), x))


def test_tokens_of_channels_rows_and_cols_are_no_video():
    """ChannelViT: every channel is an image of its own."""

    class ChannelViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, WIDTH, 2, stride=2)

        def forward(self, images: Tensor) -> Tensor:
            batch, channels = images.shape[:2]
            x = self.patch(images.flatten(0, 1)[:, None]).unflatten(0, (batch, channels))
            return attention(x.transpose(1, 2).flatten(2).transpose(1, 2))

    images = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    assert dense(fates(ChannelViT(), images))


def test_a_size_divided_by_its_quotient_is_not_the_divisor():
    """n // (n // d) is 5 for n = 10 and d = 4."""
    n, d = sympy.symbols("n d", positive=True, integer=True)
    quotient = FloorDiv(n, FloorDiv(n, d))
    assert quotient.subs({n: 10, d: 4}) == 5
    assert not equal(quotient, d)
    assert equal(FloorDiv(n * d, d), n)


# --- 8. Models in the wild ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(2, 4, 4), (2, 2, 2), (4, 2, 2)])
def test_windows_are_not_the_video_shifted_or_not(size: tuple[int, int, int]):
    """A window in the batch is a small video, but not the one that the model sees."""

    def attend(x: Tensor, shift: int = 0) -> Tensor:
        volume = x.unflatten(1, GRID).roll(shift, 1) if shift else x.unflatten(1, GRID)
        counts = [n // extent for n, extent in zip(GRID, size, strict=True)]
        for axis in (2, 1, 0):
            volume = volume.unflatten(1 + axis, (counts[axis], size[axis]))
        windows = volume.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(0, 3)
        return attention(windows)

    assert dense(fates(Model(lambda x: attend(x)), latents()))
    assert dense(fates(Model(lambda x: attend(x, 1)), latents()))


def test_a_prepared_model_with_complex_rotary_code_behind_a_break_still_runs():
    """SkyReels-V2: what `prepare` lets Dynamo capture made its code for complex views fail."""

    class Rotary(Model):
        def forward(self, latents: Tensor, *rest: Tensor) -> Tensor:
            x = self.tokens(latents)
            sizes = torch.tensor([latents.shape[2:]]).tolist()
            (frames, rows, cols), width = sizes[0], WIDTH // 2
            torch._dynamo.graph_break()
            pairs = torch.view_as_complex(x.double().contiguous().reshape(*x.shape[:2], width, 2))
            angles = torch.polar(
                torch.ones(frames * rows * cols, width), torch.rand(width).expand(64, -1) * 0
            )
            turned = torch.view_as_real(pairs * angles[None]).flatten(2)
            return self.blocks[0](turned.float())

    assert fates(vsa_compile.prepare(Rotary(lambda x: attention(x))), latents())
