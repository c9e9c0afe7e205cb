"""HunyuanVideo and what is built like it: video and text in one sequence, both in streams of their own."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import torch

from .case import Built, Case, Draw, built, small, text_mask


def hunyuan_video(mask: torch.dtype = torch.long, **config: Any) -> Built:
    """Its pipeline passes the text's mask in the dtype of the model."""
    model = small(
        "HunyuanVideoTransformer3DModel", num_single_layers=1, num_refiner_layers=1, mlp_ratio=2.0,
        text_embed_dim=24, pooled_projection_dim=20, rope_axes_dim=(4, 6, 6), **config,
    )  # fmt: skip
    return built(
        model,
        lambda draw: draw.denoise(
            draw.video(),
            encoder_attention_mask=text_mask(4, 9).to(mask),
            pooled_projections=draw.normal(2, 20),
            guidance=torch.tensor([6.0, 5.0]),
        ),
    )


def motif() -> Built:
    """Its decoder starts from the patches again and sees them beside what the encoder made of them."""
    model = small(
        "MotifVideoTransformer3DModel", in_channels=9, num_single_layers=2, num_decoder_layers=1,
        mlp_ratio=2.0, text_embed_dim=24, rope_axes_dim=(4, 6, 6), enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )  # fmt: skip
    return built(model, lambda draw: draw.denoise(draw.video(9), encoder_attention_mask=text_mask(4, 9)))


def joyimage_edit() -> Built:
    """A sequence of pictures, each a frame."""
    model = diffusers.JoyImageEditTransformer3DModel(
        in_channels=4, hidden_size=48, num_attention_heads=3, text_dim=24, mlp_width_ratio=2.0,
        num_layers=1, rope_dim_list=[4, 6, 6],
    )  # fmt: skip

    def inputs(draw: Draw) -> dict[str, Any]:
        return draw.denoise(draw.video().transpose(1, 2).unsqueeze(3))

    return built(model, inputs)


HUNYUAN = "HunyuanVideoTransformer3DModel"

CASES = [
    Case("hunyuan_video", HUNYUAN, hunyuan_video, sites=2, segments=("video | text",), refused={"text": 1}),
    Case(
        "hunyuan_token_replace", HUNYUAN, partial(hunyuan_video, image_condition_type="token_replace"),
        sites=2, segments=("video | text",), refused={"text": 1}, note="the first frame replaced",
    ),
    Case(
        "hunyuan_float_mask", HUNYUAN, partial(hunyuan_video, torch.float32), sites=2,
        segments=("video | text",), refused={"text": 1}, note="a mask of floats, as its pipeline passes it",
    ),
    Case(
        "motif", "MotifVideoTransformer3DModel", motif, sites=3,
        segments=("video | text", "video | copy"), refused={"cross": 2},
    ),
    Case(
        "joyimage_edit", "JoyImageEditTransformer3DModel", joyimage_edit, sites=1,
        segments=("video | text",), graphs=2,
    ),
]  # fmt: skip
