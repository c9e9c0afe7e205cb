"""LTX-Video and LTX-2: the latent comes as a sequence, its frames, height and width as integers."""

from __future__ import annotations

import math
from typing import Any

import torch

from .case import Built, Case, Draw, built, small, text_mask


def sized(draw: Draw) -> dict[str, int]:
    return {"num_frames": draw.frames, "height": draw.rows, "width": draw.cols}


def ltx_video() -> Built:
    model = small(
        "LTXVideoTransformer3DModel", num_attention_heads=2, in_channels=8, out_channels=8,
        cross_attention_dim=32, caption_channels=24,
    )  # fmt: skip
    return built(
        model,
        lambda draw: draw.denoise(
            draw.normal(2, math.prod(draw.grid), 8),
            **sized(draw),
            encoder_attention_mask=text_mask(4, 9),
            rope_interpolation_scale=(8 / 25, 32, 32),
        ),
    )


def ltx2() -> Built:
    """Video and sound beside each other, each attending to itself, to the text, and to the other."""
    model = small(
        "LTX2VideoTransformer3DModel", in_channels=8, out_channels=8, cross_attention_dim=48,
        audio_in_channels=6, audio_out_channels=6, audio_num_attention_heads=3,
        audio_attention_head_dim=8, audio_cross_attention_dim=24, caption_channels=24,
        rope_double_precision=False,
    )  # fmt: skip

    def inputs(draw: Draw) -> dict[str, Any]:
        return draw.denoise(
            draw.normal(2, math.prod(draw.grid), 8),
            **sized(draw),
            fps=25.0,
            timestep=torch.tensor([[0.007], [0.003]]),
            audio_hidden_states=draw.normal(2, 9, 6),
            audio_encoder_hidden_states=draw.normal(2, 11, 24),
            encoder_attention_mask=text_mask(4, 9),
            audio_encoder_attention_mask=text_mask(4, 9),
            audio_num_frames=9,
        )

    return built(model, inputs)


CASES = [
    Case("ltx_video", "LTXVideoTransformer3DModel", ltx_video, sites=1, refused={"cross": 1}),
    Case(
        "ltx2", "LTX2VideoTransformer3DModel", ltx2, sites=1, refused={"audio": 1, "cross": 4},
        note="without video_coords",
    ),
]  # fmt: skip
