"""What must stay dense: attention without three axes, under a mask between tokens, or not SDPA at all."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from .case import GRID, TEXT, Built, Case, Draw, built, small, text_mask
from .wan import like_wan, skyreels_forcing


def anyflow_far() -> Built:
    """Causal over chunks of frames, by FlexAttention."""
    model = like_wan("AnyFlowFARTransformer3DModel")

    def inputs(draw: Draw) -> dict[str, Any]:
        latent, chunks = draw.video().transpose(1, 2), [1, draw.frames - 1]
        height, width = latent.shape[-2:]
        return draw.denoise(
            latent,
            timestep=draw.noise_levels(),
            r_timestep=draw.noise_levels() / 2,
            chunk_partition=chunks,
            attention_mask=model.build_attention_mask(chunk_partition=chunks, height=height, width=width),
        )

    return built(model.requires_grad_(False), inputs)  # FlexAttention has no backward on CPU


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


FixedFrames = partial(Case, other_grids=((5, 7, 6), (5, 6, 10), (5, 5, 9)))
ThreesOfFrames = partial(Case, grid=(6, 5, 7), other_grids=((6, 7, 5), (3, 6, 10), (9, 5, 6)))
Image = partial(Case, grid=(1, 6, 7), other_grids=((1, 7, 6), (1, 6, 10), (1, 5, 9)))

CASES = [
    ThreesOfFrames(
        "skyreels_ar", "SkyReelsV2Transformer3DModel", partial(skyreels_forcing, num_frame_per_block=3),
        refused={"mask": 1, "cross": 1}, note="autoregressive over blocks of frames",
    ),
    Case(
        "anyflow_far", "AnyFlowFARTransformer3DModel", anyflow_far, refused={"cross": 1},
        note="FlexAttention",
    ),
    FixedFrames(
        "latte", "LatteTransformer3DModel", latte, refused={"spatial": 1, "temporal": 1, "cross": 1}
    ),
    Case("sana_video", "SanaVideoTransformer3DModel", sana_video, refused={"cross": 1}),
    Case(
        "hunyuan_video_decoder", "HunyuanVideoDecoder3D", hunyuan_video_decoder, refused={"mask": 1}
    ),
    Image("flux", "FluxTransformer2DModel", flux, refused={"image": 2}),
    Image("sd3", "SD3Transformer2DModel", sd3, refused={"image": 1}),
    Image("pixart", "PixArtTransformer2DModel", pixart, refused={"image": 1, "cross": 1}),
    Case("t5", "T5EncoderModel", partial(t5, "T5"), refused={"text": 2}),
    Case("umt5", "UMT5EncoderModel", partial(t5, "UMT5"), refused={"text": 2}),
    Case("clip_text", "CLIPTextModel", clip_text, refused={"text": 2}),
]  # fmt: skip
