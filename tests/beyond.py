"""Video models that diffusers does not have: plain PyTorch in the styles of other code bases, and encoders.

Each is written small and in our own words; what counts is how it makes tokens, positions and attention.
The cases say, as in the zoo, which calls are video self-attention.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from zoo import TEXT, Built, Case, Draw, Grid, built

HEADS, HEAD = 3, 16
WIDTH = HEADS * HEAD
PATCH = 2 * 2 * 4  # pixels of a (1, 2, 2) patch times channels


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, N, WIDTH) each -> (B, N, WIDTH)."""
    q, k, v = (x.unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Fused qkv. `rotate` turns queries and keys (B, N, heads, HEAD)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, rotate: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD)).unbind(2)
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        return self.out(attend(*(t.flatten(2) for t in (q, k, v))))


class Block(nn.Module):
    def __init__(self, attention: type[nn.Module] = Attention) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(WIDTH), attention()
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())

    def forward(self, x: Tensor, *rest: object) -> Tensor:
        x = x + self.attn(self.norm(x), *rest)
        return x + self.mlp(x)


def patches_by_hand(x: Tensor) -> Tensor:
    """(B, 4, F, 2 R, 2 C) -> (B, F R C, PATCH)."""
    batch, channels, frames, height, width = x.shape
    x = x.reshape(batch, channels, frames, height // 2, 2, width // 2, 2)
    return x.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, frames * (height // 2) * (width // 2), PATCH)


def patches_rearranged(x: Tensor) -> Tensor:
    """einops' `b c f (r p) (w q) -> b (f r w) (p q c)`: elementary axes, one permute, one reshape."""
    b, c, f, height, width = x.shape
    axes = {"b": b, "c": c, "f": f, "r": height // 2, "p": 2, "w": width // 2, "q": 2}
    x = torch.reshape(x, tuple(axes[a] for a in "bcfrpwq")).permute([0, 2, 3, 5, 4, 6, 1])
    return torch.reshape(x, (b, axes["f"] * axes["r"] * axes["w"], PATCH))


class Plain(nn.Module):
    """Patches, two blocks with learned positions for each axis, patches back."""

    def __init__(self, patches: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.patches = patches
        self.enter, self.leave = nn.Linear(PATCH, WIDTH), nn.Linear(WIDTH, PATCH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, latent: Tensor) -> Tensor:
        x = self.enter(self.patches(latent))
        for block in self.blocks:
            x = block(x)
        b, c, f, height, width = latent.shape
        x = self.leave(x).reshape(b, f, height // 2, width // 2, c, 2, 2)
        return x.permute(0, 4, 1, 2, 5, 3, 6).reshape(latent.shape)


# --- Wan's original code ------------------------------------------------------------------------------

THIRDS = [4, 2, 2]  # complex channels of a head that time, rows and cols turn


def frequencies(count: int, width: int) -> Tensor:
    """(count, width) complex: e^(i position / 100^(channel / width))."""
    angles = torch.arange(count)[:, None] / 100 ** (torch.arange(width) / width)
    return torch.polar(torch.ones_like(angles), angles)


def axis_tables(freqs: Tensor, grid: Grid) -> Tensor:
    """(F R C, 1, HEAD / 2): one table for each axis, laid over the grid."""
    f, h, w = grid
    time, rows, cols = freqs.split(THIRDS, dim=1)
    axes = (time[:f].view(f, 1, 1, -1), rows[:h].view(1, h, 1, -1), cols[:w].view(1, 1, w, -1))
    return torch.cat([axis.expand(f, h, w, -1) for axis in axes], dim=-1).reshape(f * h * w, 1, -1)


def turned(x: Tensor, table: Tensor) -> Tensor:
    """(..., N, heads, HEAD) by a complex table (N, 1, HEAD / 2)."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * table).flatten(-2)


class Rotary(nn.Module):
    """Complex tables in one buffer. `by_sample`: looped over samples whose grids are read from a tensor."""

    def __init__(self, by_sample: bool) -> None:
        super().__init__()
        self.by_sample = by_sample
        self.patch = nn.Conv3d(4, WIDTH, (1, 2, 2), stride=(1, 2, 2))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.leave = nn.Linear(WIDTH, PATCH)
        self.register_buffer("freqs", torch.cat([frequencies(32, width) for width in THIRDS], dim=1))

    def forward(self, latent: Tensor) -> Tensor:
        x = self.patch(latent)
        grid_sizes = torch.tensor([x.shape[2:]] * len(x))
        grid = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)

        def rotate_samples(t: Tensor) -> Tensor:
            turns = [axis_tables(self.freqs, size) for size in grid_sizes.tolist()]
            return torch.stack([turned(one, turn) for one, turn in zip(t, turns, strict=True)])

        def rotate_all(t: Tensor) -> Tensor:
            return turned(t, axis_tables(self.freqs, grid))

        for block in self.blocks:
            x = block(x, rotate_samples if self.by_sample else rotate_all)
        return self.leave(x)


# --- Text and video in one sequence, and loops --------------------------------------------------------


class Packed(nn.Module):
    """Two streams, one attention over [text | video]; the text in front is cut off again."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.text = nn.Linear(PATCH, WIDTH), nn.Linear(24, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.leave = nn.Linear(WIDTH, PATCH)

    def forward(self, latent: Tensor, text: Tensor) -> Tensor:
        x = torch.cat([self.text(text), self.patch(patches_by_hand(latent))], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.leave(x[:, text.shape[1] :])


class SampleLoop(nn.Module):
    """One attention call for each sample of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv = nn.Linear(PATCH, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.patch(patches_by_hand(latent))
        return x + torch.cat([attend(*self.qkv(one[None]).chunk(3, dim=-1)) for one in x])


# --- Spatial and temporal attention: nothing may convert ----------------------------------------------


class SpaceTime(nn.Module):
    """Rows and cols attend within a frame, then frames at each place, then all to the text (Open-Sora)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.text = nn.Linear(PATCH, WIDTH), nn.Linear(24, 2 * WIDTH)
        self.space, self.time = Block(), Block()

    def forward(self, latent: Tensor, text: Tensor) -> Tensor:
        frames, b = latent.shape[2], len(latent)
        x = self.patch(patches_by_hand(latent)).unflatten(1, (frames, -1))
        x = self.space(x.flatten(0, 1)).unflatten(0, (b, frames))
        x = self.time(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, -1)).transpose(1, 2)
        x = x.flatten(1, 2)
        return x + attend(x, *self.text(text).chunk(2, dim=-1))


class Interleaved(nn.Module):
    """Blocks over a frame and over time in turn; frames lie in the batch from the start (Latte)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(4, WIDTH, 2, stride=2)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, latent: Tensor) -> Tensor:
        b, _, f = latent.shape[:3]
        x = self.patch(latent.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)
        for i, block in enumerate(self.blocks):
            x = block(x)
            old, new = (b, f) if i % 2 == 0 else (b, x.shape[0] // b)
            x = x.reshape(old, new, x.shape[1], WIDTH).permute(0, 2, 1, 3).reshape(-1, new, WIDTH)
        return x


# --- Encoders of transformers -------------------------------------------------------------------------

SQUARE: Grid = (5, 6, 6)
ENCODER = {
    "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 2, "intermediate_size": 64,
    "attn_implementation": "sdpa", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


class Encoder(nn.Module):
    def __init__(self, model: nn.Module, **more: bool) -> None:
        super().__init__()
        self.model, self.more = model, more

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels, **self.more).last_hidden_state


def _pixels(draw: Draw) -> dict[str, Tensor]:
    return {"pixels": draw.normal(2, 2 * draw.frames, 3, 4 * draw.rows, 4 * draw.cols)}


def vjepa2() -> Built:
    config = transformers.VJEPA2Config(
        patch_size=4, crop_size=24, frames_per_clip=10, mlp_ratio=2.0, pred_hidden_size=24,
        pred_num_attention_heads=1, pred_num_hidden_layers=1, **ENCODER,
    )  # fmt: skip
    return built(Encoder(transformers.VJEPA2Model(config), skip_predictor=True), _pixels)


def videomae() -> Built:
    config = transformers.VideoMAEConfig(image_size=24, patch_size=4, num_frames=10, **ENCODER)
    return built(Encoder(transformers.VideoMAEModel(config)), _pixels)


def vivit() -> Built:
    config = transformers.VivitConfig(image_size=24, num_frames=10, tubelet_size=[2, 4, 4], **ENCODER)
    return built(Encoder(transformers.VivitModel(config, add_pooling_layer=False)), _pixels)


def _latent(make: Callable[[], nn.Module]) -> Callable[[], Built]:
    return lambda: built(make(), lambda draw: {"latent": draw.video()})


def _prompted(make: Callable[[], nn.Module]) -> Callable[[], Built]:
    return lambda: built(make(), lambda draw: {"latent": draw.video(), "text": draw.normal(2, TEXT, 24)})


def case(name: str, build: Callable[[], Built], of: str = "", **truth: Any) -> Case:
    return Case(name, of, build, **truth)


VIDEO = [
    case("patchify by hand", _latent(lambda: Plain(patches_by_hand)), sites=2),
    case("rearranged", _latent(lambda: Plain(patches_rearranged)), sites=2),
    case("complex rotary", _latent(lambda: Rotary(by_sample=False)), sites=2),
    case("packed", _prompted(Packed), sites=2, segments=("text | video",)),
    case("sample loop", _latent(SampleLoop), sites=2),
]
ENCODERS = [
    case("vjepa2", vjepa2, "VJEPA2Model", sites=2, grid=SQUARE, other_grids=()),
    case("videomae", videomae, "VideoMAEModel", sites=2, grid=SQUARE, other_grids=()),
    case("vivit", vivit, "VivitModel", sites=2, segments=("text | video",), grid=SQUARE, other_grids=()),
]
NEGATIVE = [
    case("space and time", _prompted(SpaceTime), refused={"spatial": 1, "temporal": 1, "cross": 1}),
    case("interleaved", _latent(Interleaved), refused={"spatial": 2, "temporal": 2}),
]
BROKEN = case(
    "rotary by sample", _latent(lambda: Rotary(by_sample=True)), sites=2, how=("prepare", "video_grid")
)
"""Reading the grid from a tensor breaks the graph in every attention call."""
