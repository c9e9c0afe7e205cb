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


@pytest.mark.parametrize("pool", [pooled, pooled_around_the_channels, pooled_behind_one])
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
