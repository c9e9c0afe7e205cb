"""Tiny random-weight copies of real diffusers and transformers models, with ground truth.

Every case says how many attention calls are 3D self-attention over the video's tokens (and so must
become sparse) and how many are something else (and must stay dense), with the reason.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models import embeddings
from diffusers.models.transformers import transformer_cosmos
from torch import nn

Grid = tuple[int, int, int]
Built = tuple[nn.Module, Callable[[Grid], dict[str, Any]]]

GRID: Grid = (5, 6, 7)  # (frames, rows, cols) in tokens: all different, none a multiple of 4
OTHER_GRIDS: tuple[Grid, ...] = ((5, 7, 6), (3, 6, 10), (6, 5, 9))  # the first has equal N
TEXT = 11  # tokens of a prompt, its padding included


@dataclass(frozen=True, eq=False)
class Case:
    """One model, how to call it, and what a compiler pass has to find in it.

    `build()` gives the model in eval mode and a function from a grid to its keyword arguments.
    `sites` counts the video self-attention calls, `segments` names the runs of their sequence in
    order, and `refused` counts the other attention calls by kind: "cross" (queries and keys are
    different sequences), "text", "spatial", "temporal", "image" (rows and cols, no frames), and
    "mask" (video self-attention under a mask between tokens).
    """

    name: str
    build: Callable[[], Built]
    sites: int = 0
    segments: tuple[str, ...] = ("video",)
    refused: dict[str, int] = field(default_factory=dict)
    grid: Grid = GRID
    other_grids: tuple[Grid, ...] = OTHER_GRIDS

    @property
    def calls(self) -> int:
        """All attention calls of one forward pass."""
        return self.sites + sum(self.refused.values())


class Draw:
    """Random inputs that depend on nothing but the grid."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.frames, self.rows, self.cols = grid
        self.generator = torch.Generator().manual_seed(int.from_bytes(bytes(grid)))

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal values."""
        return torch.randn(shape, generator=self.generator)

    def video(self) -> torch.Tensor:
        """The latent that patches of (1, 2, 2) turn into the grid: [2, 4, T, height, width]."""
        return self.normal(2, 4, self.frames, 2 * self.rows, 2 * self.cols)

    def denoise(self, latent: torch.Tensor, **more: Any) -> dict[str, Any]:
        """What every denoiser takes: a latent, embedded prompts [2, TEXT, 24], noise levels [2]."""
        return {
            "hidden_states": latent,
            "encoder_hidden_states": self.normal(2, TEXT, 24),
            "timestep": torch.tensor([7.0, 3.0]),  # small: sin(6000 x) would magnify rounding
            "return_dict": False,
            **more,
        }


def text_mask(*lengths: int, width: int = TEXT) -> torch.Tensor:
    """Ones on the real text tokens of every sample and zeros on its padding: [B, width]."""
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def built(model: nn.Module, inputs: Callable[[Draw], dict[str, Any]]) -> Built:
    """Redraw every parameter, so that no zero-initialised gate or output hides the attention."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and name == "weight":
                noise *= parameter[0].numel() ** -0.5
            elif name == "weight" and parameter.ndim == 1:
                noise = 1 + 0.1 * noise
            elif not isinstance(module, nn.Embedding):
                noise *= 0.2
            parameter.data.copy_(noise)
    return model.eval(), lambda grid: inputs(Draw(grid))


def small(name: str, **config: Any) -> nn.Module:
    """A transformer of diffusers with 3 heads of width 16 and one block, but for its `config`."""
    shape = {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 1}
    return getattr(diffusers, name)(**shape | {"in_channels": 4, "out_channels": 4} | config)


def _wan(**config: Any) -> nn.Module:
    return small(
        "WanTransformer3DModel", text_dim=24, freq_dim=32, ffn_dim=80, cross_attn_norm=True, **config
    )  # fmt: skip


def wan() -> Built:
    return built(_wan(num_layers=2), lambda draw: draw.denoise(draw.video()))


def wan_i2v() -> Built:
    return built(
        _wan(image_dim=20, added_kv_proj_dim=48),
        lambda draw: draw.denoise(
            draw.video(),
            encoder_hidden_states=draw.normal(2, 512, 24),  # the model takes 512 for granted
            encoder_hidden_states_image=draw.normal(2, 13, 20),
        ),
    )


def hunyuan_video() -> Built:
    model = small(
        "HunyuanVideoTransformer3DModel", num_layers=1, num_single_layers=1, num_refiner_layers=1,
        mlp_ratio=2.0, text_embed_dim=24, pooled_projection_dim=20, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    return built(
        model,
        lambda draw: draw.denoise(
            draw.video(),
            encoder_attention_mask=text_mask(4, 9),
            pooled_projections=draw.normal(2, 20),
            guidance=torch.tensor([6.0, 5.0]),
        ),
    )


def cogvideox(*, rotary: bool, patch_frames: int | None = None) -> Built:
    """Without rotary tables it adds sine embeddings, stored for the size GRID alone."""
    frames, rows, cols = GRID
    model = small(
        "CogVideoXTransformer3DModel", time_embed_dim=24, text_embed_dim=24,
        max_text_seq_length=TEXT, sample_frames=4 * frames - 3, sample_height=2 * rows,
        sample_width=2 * cols, patch_size_t=patch_frames, use_rotary_positional_embeddings=rotary,
    )  # fmt: skip

    def inputs(draw: Draw) -> dict[str, Any]:
        frames, rows, cols = draw.grid
        latent = draw.normal(2, (patch_frames or 1) * frames, 4, 2 * rows, 2 * cols)
        if not rotary:
            return draw.denoise(latent)
        corners = (0, 0), (rows, cols)
        tables = embeddings.get_3d_rotary_pos_embed(16, corners, (rows, cols), frames)
        return draw.denoise(latent, image_rotary_emb=tables)

    return built(model, inputs)


def ltx_video() -> Built:
    model = small(
        "LTXVideoTransformer3DModel", num_attention_heads=2, in_channels=8, out_channels=8,
        cross_attention_dim=32, caption_channels=24,
    )  # fmt: skip
    return built(
        model,
        lambda draw: draw.denoise(
            draw.normal(2, math.prod(draw.grid), 8),
            encoder_attention_mask=text_mask(4, 9),
            num_frames=draw.frames,
            height=draw.rows,
            width=draw.cols,
            rope_interpolation_scale=(8 / 25, 32, 32),
        ),
    )


def _resize(image: torch.Tensor, size: list[int], interpolation: str) -> torch.Tensor:
    return nn.functional.interpolate(image, size=size, mode=interpolation)


TORCHVISION_TRANSFORMS = SimpleNamespace(
    functional=SimpleNamespace(resize=_resize), InterpolationMode=SimpleNamespace(NEAREST="nearest")
)
"""A stand-in for the one function that Cosmos takes from torchvision."""


def cosmos() -> Built:
    transformer_cosmos.__dict__.setdefault("transforms", TORCHVISION_TRANSFORMS)
    model = small("CosmosTransformer3DModel", text_embed_dim=24, adaln_lora_dim=8, max_size=(16, 32, 32))
    return built(
        model,
        lambda draw: draw.denoise(
            draw.video(), fps=24, padding_mask=torch.zeros(1, 1, 16 * draw.rows, 16 * draw.cols)
        ),
    )


def allegro() -> Built:
    model = small(
        "AllegroTransformer3DModel", num_attention_heads=2, attention_head_dim=48,
        cross_attention_dim=96, caption_channels=24,
    )  # fmt: skip

    def inputs(draw: Draw) -> dict[str, Any]:
        frames, *size = draw.grid
        angles = embeddings.get_3d_rotary_pos_embed_allegro(
            48, ((0, 0), size), size, frames, interpolation_scale=(2.2, 2.0, 2.0)
        )
        positions = torch.cartesian_prod(*(axis.long() for axis in angles[3:]))
        return draw.denoise(
            draw.video(),
            encoder_hidden_states=draw.normal(2, 1, TEXT, 24),
            encoder_attention_mask=text_mask(4, 9),
            image_rotary_emb=(angles[:3], tuple(positions.T.unsqueeze(1).contiguous())),
        )

    return built(model, inputs)


def latte() -> Built:
    model = small(
        "LatteTransformer3DModel", patch_size=2, sample_size=2 * GRID[1], video_length=GRID[0],
        caption_channels=24, cross_attention_dim=48, norm_type="ada_norm_single",
        num_embeds_ada_norm=1000, activation_fn="gelu-approximate", norm_elementwise_affine=False,
    )  # fmt: skip
    return built(model, lambda draw: draw.denoise(draw.video()))


def sana_video() -> Built:
    model = small(
        "SanaVideoTransformer3DModel", num_cross_attention_heads=3, cross_attention_head_dim=16,
        cross_attention_dim=48, caption_channels=24, rope_max_seq_len=32,
    )  # fmt: skip
    return built(model, lambda draw: draw.denoise(draw.video(), encoder_attention_mask=text_mask(4, 9)))


def hunyuan_video_decoder() -> Built:
    autoencoder = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_num_groups=4
    )
    return built(autoencoder.decoder, lambda draw: {"hidden_states": draw.normal(2, 4, *draw.grid)})


def flux() -> Built:
    model = small(
        "FluxTransformer2DModel", in_channels=16, num_layers=1, num_single_layers=1,
        joint_attention_dim=24, pooled_projection_dim=20, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return built(
        model,
        lambda draw: draw.denoise(
            draw.normal(2, draw.rows * draw.cols, 16),
            pooled_projections=draw.normal(2, 20),
            timestep=torch.tensor([0.007, 0.003]),
            img_ids=torch.cartesian_prod(*(torch.arange(float(size)) for size in draw.grid)),
            txt_ids=torch.zeros(TEXT, 3),
        ),
    )


def sd3() -> Built:
    model = small(
        "SD3Transformer2DModel", sample_size=16, pos_embed_max_size=16, joint_attention_dim=24,
        caption_projection_dim=48, pooled_projection_dim=20,
    )  # fmt: skip
    return built(
        model,
        lambda draw: draw.denoise(draw.video().squeeze(2), pooled_projections=draw.normal(2, 20)),
    )


def pixart() -> Built:
    model = small("PixArtTransformer2DModel", sample_size=16, cross_attention_dim=48, caption_channels=24)
    return built(
        model,
        lambda draw: draw.denoise(draw.video().squeeze(2), encoder_attention_mask=text_mask(4, 9)),
    )


def _text_encoder(model: nn.Module) -> Built:
    """Fed with as many text tokens as the grid has video tokens, the second prompt padded."""

    def inputs(draw: Draw) -> dict[str, Any]:
        width = math.prod(draw.grid)
        return {
            "input_ids": torch.randint(2, 64, (2, width), generator=draw.generator),
            "attention_mask": text_mask(width, width - 7, width=width),
            "return_dict": False,
        }

    return built(model, inputs)


def t5(family: str) -> Built:
    config = getattr(transformers, f"{family}Config")(
        vocab_size=64, d_model=48, d_kv=16, d_ff=80, num_layers=2, num_heads=3
    )
    return _text_encoder(getattr(transformers, f"{family}EncoderModel")(config))


def clip_text() -> Built:
    config = transformers.CLIPTextConfig(
        vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=3, max_position_embeddings=300, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return _text_encoder(transformers.CLIPTextModel(config))


TextThenVideo = partial(Case, segments=("text", "video"))

VIDEO = [
    Case("wan", wan, sites=2, refused={"cross": 2}),
    Case("wan_i2v", wan_i2v, sites=1, refused={"cross": 2}),
    Case("hunyuan_video", hunyuan_video, sites=2, segments=("video", "text"), refused={"text": 1}),
    TextThenVideo("cogvideox_2b", partial(cogvideox, rotary=False), sites=1),
    TextThenVideo("cogvideox_5b", partial(cogvideox, rotary=True), sites=1),
    TextThenVideo("cogvideox_1_5", partial(cogvideox, rotary=True, patch_frames=2), sites=1),
    Case("ltx_video", ltx_video, sites=1, refused={"cross": 1}),
    Case("cosmos", cosmos, sites=1, refused={"cross": 1}),
    Case("allegro", allegro, sites=1, refused={"cross": 1}),
]

FixedFrames = partial(Case, other_grids=((5, 7, 6), (5, 6, 10), (5, 5, 9)))
Image = partial(Case, grid=(1, 6, 7), other_grids=((1, 7, 6), (1, 6, 10), (1, 5, 9)))

NEGATIVE = [
    FixedFrames("latte", latte, refused={"spatial": 1, "temporal": 1, "cross": 1}),
    Case("sana_video", sana_video, refused={"cross": 1}),
    Case("hunyuan_video_decoder", hunyuan_video_decoder, refused={"mask": 1}),
    Image("flux", flux, refused={"image": 2}),
    Image("sd3", sd3, refused={"image": 1}),
    Image("pixart", pixart, refused={"image": 1, "cross": 1}),
    Case("t5", partial(t5, "T5"), refused={"text": 2}),
    Case("umt5", partial(t5, "UMT5"), refused={"text": 2}),
    Case("clip_text", clip_text, refused={"text": 2}),
]
