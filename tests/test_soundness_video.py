"""Three axes are not yet a video, and windows of one are not it."""

from collections.abc import Callable

import pytest
import sympy
import torch
from soundness import GRID, VIDEO, WIDTH, Model, attention, dense, fates, latents
from torch import Tensor, nn
from torch.utils._sympy.functions import FloorDiv

import vsa_compile
from vsa_compile.analysis.sizes import equal

pytestmark = pytest.mark.quick


def pooled(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 4, 4)).mean((2, 3), keepdim=True)


def pooled_around_the_channels(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 4, 4)).transpose(3, 4).mean((2, 4), keepdim=True)


def pooled_behind_one(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 4, 4))[:, None].transpose(4, 5).mean((3, 5), keepdim=True)


def pooled_as_one_channel(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 4, 4)).mean(-1, keepdim=True).permute(0, 4, 1, 2, 3).mean((3, 4))


def pooled_of_one_sample(x: Tensor) -> Tensor:
    return x[0].unflatten(0, (-1, 4, 4)).permute(3, 0, 1, 2).mean((2, 3))


def pooled_head_by_head(x: Tensor) -> Tensor:
    """(B, heads, N/16, 4, 4, width): what looks like an unpatchify, but for patches that have cols alone."""
    return x.unflatten(1, (-1, 4, 4)).unflatten(-1, (2, -1)).permute(0, 4, 1, 2, 3, 5).mean((3, 4))


@pytest.mark.parametrize(
    "pool",
    [
        pooled, pooled_around_the_channels, pooled_behind_one, pooled_as_one_channel, pooled_of_one_sample,
        pooled_head_by_head,
    ],
)  # fmt: skip
def test_audio_features_that_are_pooled_are_no_video(pool: Callable[[Tensor], Tensor]):
    """Their tokens are split into three axes, but no channels stand in front of these."""

    class Audio(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return attention(x) + pool(x).mean()

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


class Volume(nn.Module):
    """Latents (B, 4, frames, rows, cols) -> `before` -> patch embedding -> attention."""

    def __init__(self, before: Callable[[Tensor], Tensor], pool: bool = False) -> None:
        super().__init__()
        self.before = before
        self.patch = nn.AvgPool3d(1) if pool else nn.Conv3d(4, WIDTH, 1)

    def forward(self, volume: Tensor) -> Tensor:
        x = self.patch(self.before(volume)).flatten(2).transpose(1, 2)
        return attention(x.repeat(1, 1, WIDTH // x.shape[-1]))


@pytest.mark.parametrize("frames_first", [False, True])
def test_channels_rows_and_cols_of_each_frame_are_no_video(frames_first: bool):
    class ChannelViT(nn.Module):
        def forward(self, volume: Tensor) -> Tensor:
            frames = volume if frames_first else volume.transpose(1, 2)
            x = frames.flatten(0, 1).flatten(1)[..., None] * torch.ones(WIDTH)
            return attention(x)

    assert dense(fates(ChannelViT(), torch.randn(2, 4, 3, 4, 4) if frames_first else latents()))


def deinterleaved_cols(v: Tensor) -> Tensor:
    return torch.cat([v[..., ::2], v[..., 1::2]], -1)


def deinterleaved_frames(v: Tensor) -> Tensor:
    return torch.cat([v[:, :, ::2], v[:, :, 1::2]], 2)


def halves_of_rows_swapped(v: Tensor) -> Tensor:
    return torch.cat([v[..., 2:, :], v[..., :2, :]], -2)


def frames_within_pairs_first(v: Tensor) -> Tensor:
    return v.unflatten(2, (2, 2)).transpose(2, 3).flatten(2, 3)


def blocks_swapped(v: Tensor) -> Tensor:
    """Parts of rows and of cols in each other's place."""
    return v.unflatten(4, (2, 2)).unflatten(3, (2, 2)).transpose(3, 5).flatten(5, 6).flatten(3, 4)


def of_two_copies(v: Tensor) -> Tensor:
    return v.repeat(1, 1, 1, 2, 1)[:, :, :, 3:7]


def rolled(v: Tensor) -> Tensor:
    return v.roll(1, -1)


PIXELS_MOVED = (
    deinterleaved_cols, deinterleaved_frames, halves_of_rows_swapped, frames_within_pairs_first, rolled,
    blocks_swapped, of_two_copies,
)  # fmt: skip


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("moved", PIXELS_MOVED, ids=lambda f: f.__name__)
def test_what_was_reordered_before_a_convolution_stays_so(moved: Callable[[Tensor], Tensor], pool: bool):
    assert fates(Volume(moved, pool), latents()) == ["reordered"]


def reference_frames_first(v: Tensor) -> Tensor:
    return torch.cat([v[:, :, 2:], v[:, :, :2]], 2)


def first_frame_repeated(v: Tensor) -> Tensor:
    return torch.cat([v[:, :, :1], v], 2)


def upsampled_but_for_the_first(v: Tensor) -> Tensor:
    """Channels become frames and pixels, as in a decoder."""
    return v.repeat(1, 2, 1, 1, 1).unflatten(1, (-1, 2)).permute(0, 1, 3, 2, 4, 5).flatten(2, 3)[:, :, 1:]


def circular_cols(v: Tensor) -> Tensor:
    """Circular padding by hand, as for panoramas."""
    return torch.cat([v[..., -1:], v, v[..., :1]], -1)


def upsampled_and_circular(v: Tensor) -> Tensor:
    doubled = v.repeat_interleave(2, 4)
    return torch.cat([doubled[..., -1:], doubled, doubled[..., :1]], -1)


def every_second_frame(v: Tensor) -> Tensor:
    return v[:, :, ::2]


def test_a_decoder_that_drops_the_first_frame_of_what_it_upsampled_makes_a_video():
    class Decoder(nn.Module):
        """Convolution, channels to frames and pixels, all but the first frame, convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv3d(4, 32, 1), nn.Conv3d(4, WIDTH, 1)

        def forward(self, volume: Tensor) -> Tensor:
            x = self.first(volume).unflatten(1, (4, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
            x = x.flatten(6, 7).flatten(4, 5).flatten(2, 3)[:, :, 1:]
            return attention(self.last(x).flatten(2).transpose(1, 2))

    assert fates(Decoder(), latents(grid=(2, 2, 3))) == [(3, 4, 6)]


@pytest.mark.parametrize(
    ("cut", "grid"),
    [
        (reference_frames_first, (4, 4, 4)),
        (first_frame_repeated, (5, 4, 4)),
        (every_second_frame, (2, 4, 4)),
        (circular_cols, (4, 4, 6)),
        (upsampled_but_for_the_first, (7, 4, 4)),
        (upsampled_and_circular, (4, 4, 10)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_clip_that_is_cut_together_before_a_convolution_is_a_video(cut: Callable, grid: tuple):
    assert fates(Volume(cut), latents()) == [grid]


def in_windows(volume: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B * windows, C, T, 2, 2)"""
    return volume.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 3, 5, 1, 2, 4, 6).flatten(0, 2)


def in_coarse_grids(volume: Tensor) -> Tensor:
    return volume.unflatten(4, (2, -1)).unflatten(3, (2, -1)).permute(0, 4, 6, 1, 2, 3, 5).flatten(0, 2)


@pytest.mark.parametrize("partition", [in_windows, in_coarse_grids], ids=lambda f: f.__name__)
def test_windows_with_a_convolution_inside_are_windows(partition: Callable[[Tensor], Tensor]):
    def and_pooled(volume: Tensor) -> Tensor:
        windows = partition(volume)
        return windows + nn.functional.avg_pool3d(windows, 1)

    for before in (partition, and_pooled):
        for pool in (False, True):
            assert fates(Volume(before, pool), latents()) == ["windows"]


def test_windows_where_heads_are_stay_windows():
    class Grids(nn.Module):
        def forward(self, volume: Tensor) -> Tensor:  # every second frame attends to every second frame
            x = volume.unflatten(2, (2, 2)).permute(0, 3, 2, 4, 5, 1).flatten(2, 4)
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert fates(Grids(), latents()) == ["windows"]


def test_a_size_divided_by_its_quotient_is_not_the_divisor():
    """n // (n // d) is 5 for n = 10 and d = 4."""
    n, d = sympy.symbols("n d", positive=True, integer=True)
    quotient = FloorDiv(n, FloorDiv(n, d))
    assert quotient.subs({n: 10, d: 4}) == 5
    assert not equal(quotient, d)
    assert equal(FloorDiv(n * d, d), n)


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


@pytest.mark.seconds
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
