"""Wan and what is built like it: Conv3d patches, one stream of video tokens, text by cross-attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .case import Built, Case, Draw, built, small


def like_wan(name: str, **config: Any) -> nn.Module:
    return small(name, **{"text_dim": 24, "freq_dim": 32, "ffn_dim": 80, "cross_attn_norm": True} | config)


def with_image(draw: Draw) -> dict[str, Any]:
    """Prompts of 512 tokens, which the models with an image take for granted, and the image."""
    return {
        "encoder_hidden_states": draw.normal(2, 512, 24),
        "encoder_hidden_states_image": draw.normal(2, 13, 20),
    }


def wan() -> Built:
    return built(like_wan("WanTransformer3DModel", num_layers=2), lambda draw: draw.denoise(draw.video()))


def wan_fused() -> Built:
    model = like_wan("WanTransformer3DModel")
    model.fuse_qkv_projections()
    return built(model, lambda draw: draw.denoise(draw.video()))


def wan_i2v() -> Built:
    return built(
        like_wan("WanTransformer3DModel", image_dim=20, added_kv_proj_dim=48),
        lambda draw: draw.denoise(draw.video(), **with_image(draw)),
    )


def wan_ti2v() -> Built:
    """The noise level of every token: [2, N]."""

    def inputs(draw: Draw) -> dict[str, Any]:
        levels = draw.noise_levels().repeat_interleave(draw.rows * draw.cols, dim=1)
        return draw.denoise(draw.video(), timestep=levels)

    return built(like_wan("WanTransformer3DModel"), inputs)


def wan_vace() -> Built:
    return built(
        like_wan("WanVACETransformer3DModel", vace_layers=[0], vace_in_channels=8),
        lambda draw: draw.denoise(
            draw.video(), control_hidden_states=draw.video(8), control_hidden_states_scale=torch.ones(1)
        ),
    )


def wan_animate() -> Built:
    """A pose for all frames but the first, and four pictures of a face for each of those."""
    model = like_wan(
        "WanAnimateTransformer3DModel", in_channels=12, latent_channels=4, image_dim=20,
        added_kv_proj_dim=48, motion_encoder_channel_sizes={"4": 4, "8": 4}, motion_encoder_size=8,
        motion_style_dim=8, motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=8,
        face_encoder_num_heads=2, inject_face_latents_blocks=1, motion_encoder_batch_size=256,
    )  # fmt: skip
    return built(
        model,
        lambda draw: draw.denoise(
            draw.video(12),
            **with_image(draw),
            pose_hidden_states=draw.video(4, draw.frames - 1),
            face_pixel_values=draw.normal(2, 3, 4 * (draw.frames - 1), 8, 8),
        ),
    )


def skyreels() -> Built:
    return built(like_wan("SkyReelsV2Transformer3DModel"), lambda draw: draw.denoise(draw.video()))


def skyreels_forcing(**config: Any) -> Built:
    """Diffusion forcing: a noise level for every frame."""
    return built(
        like_wan("SkyReelsV2Transformer3DModel", **config),
        lambda draw: draw.denoise(draw.video(), timestep=draw.noise_levels(), enable_diffusion_forcing=True),
    )


def chronoedit() -> Built:
    return built(
        like_wan("ChronoEditTransformer3DModel", image_dim=20, added_kv_proj_dim=48),
        lambda draw: draw.denoise(draw.video(), **with_image(draw)),
    )


def anyflow() -> Built:
    """From one noise level of every frame to another."""
    return built(
        like_wan("AnyFlowTransformer3DModel"),
        lambda draw: draw.denoise(
            draw.video().transpose(1, 2), timestep=draw.noise_levels(), r_timestep=draw.noise_levels() / 2
        ),
    )


def helios() -> Built:
    """Frames before the current ones at three resolutions: 16 by 4 each way, 2 by 2, 2 as they are."""

    def inputs(draw: Draw) -> dict[str, Any]:
        long, mid, short, now = torch.arange(20 + draw.frames).split([16, 2, 2, draw.frames])
        return draw.denoise(
            draw.video(),
            indices_hidden_states=now[None],
            indices_latents_history_short=short[None],
            indices_latents_history_mid=mid[None],
            indices_latents_history_long=long[None],
            latents_history_short=draw.video(frames=2),
            latents_history_mid=draw.video(frames=2),
            latents_history_long=draw.video(frames=16),
        )

    return built(like_wan("HeliosTransformer3DModel", rope_dim=(4, 6, 6)), inputs)


WAN = "WanTransformer3DModel"

CASES = [
    Case("wan", WAN, wan, sites=2, refused={"cross": 2}),
    Case("wan_i2v", WAN, wan_i2v, sites=1, refused={"cross": 2}, note="from an image"),
    Case("wan_ti2v", WAN, wan_ti2v, sites=1, refused={"cross": 1}, note="a noise level for every token"),
    Case("wan_fused", WAN, wan_fused, sites=1, refused={"cross": 1}, note="fused projections"),
    Case("wan_vace", "WanVACETransformer3DModel", wan_vace, sites=2, refused={"cross": 2}),
    Case("wan_animate", "WanAnimateTransformer3DModel", wan_animate, sites=1, refused={"cross": 3}, graphs=2),
    Case("skyreels", "SkyReelsV2Transformer3DModel", skyreels, sites=1, refused={"cross": 1}),
    Case(
        "skyreels_df", "SkyReelsV2Transformer3DModel", skyreels_forcing, sites=1, refused={"cross": 1},
        note="diffusion forcing",
    ),
    Case("chronoedit", "ChronoEditTransformer3DModel", chronoedit, sites=1, refused={"cross": 2}),
    Case("anyflow", "AnyFlowTransformer3DModel", anyflow, sites=1, refused={"cross": 1}),
    Case(
        "helios", "HeliosTransformer3DModel", helios, sites=1, refused={"cross": 1},
        segments=("history | history | history | video",),
    ),
]  # fmt: skip
