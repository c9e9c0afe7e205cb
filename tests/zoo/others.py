"""Cosmos, Allegro, Kandinsky, SANA-WM: families of one or two."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.models import embeddings
from diffusers.models.transformers import transformer_cosmos
from torch import nn

from .case import TEXT, Built, Case, Draw, built, small, text_mask


def _resize(image: torch.Tensor, size: list[int], interpolation: str) -> torch.Tensor:
    return nn.functional.interpolate(image, size=size, mode=interpolation)


TORCHVISION_TRANSFORMS = SimpleNamespace(
    functional=SimpleNamespace(resize=_resize), InterpolationMode=SimpleNamespace(NEAREST="nearest")
)
"""A stand-in for the one function that Cosmos takes from torchvision."""


def cosmos(*, by_frame: bool = False) -> Built:
    """`by_frame`: a noise level for every frame [2, 1, T, 1, 1], and which frames are given."""
    transformer_cosmos.__dict__.setdefault("transforms", TORCHVISION_TRANSFORMS)
    model = small(
        "CosmosTransformer3DModel", text_embed_dim=24, adaln_lora_dim=8, max_size=(16, 32, 32),
        in_channels=4 + by_frame,
    )  # fmt: skip

    def inputs(draw: Draw) -> dict[str, Any]:
        latent = draw.video()
        frames = {}
        if by_frame:
            levels = draw.noise_levels()[:, None, :, None, None]
            frames = {"timestep": levels, "condition_mask": (levels == 0).expand_as(latent[:, :1]).float()}
        padding = torch.zeros(1, 1, 16 * draw.rows, 16 * draw.cols)
        return draw.denoise(latent, fps=24, padding_mask=padding, **frames)

    return built(model, inputs)


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


KANDINSKY = {
    "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 24, "in_text_dim2": 20, "time_dim": 24,
    "model_dim": 48, "ff_dim": 80, "num_text_blocks": 1, "num_visual_blocks": 1, "axes_dims": (4, 6, 6),
    "visual_cond": True,
}  # fmt: skip


def kandinsky5() -> Built:
    """Channels last; the latent, what is given of it, and where."""

    def inputs(draw: Draw) -> dict[str, Any]:
        return draw.denoise(
            draw.video(9).permute(0, 2, 3, 4, 1).contiguous(),
            pooled_projections=draw.normal(2, 20),
            visual_rope_pos=[torch.arange(size) for size in draw.grid],
            text_rope_pos=torch.arange(TEXT),
        )

    return built(diffusers.Kandinsky5Transformer3DModel(**KANDINSKY), inputs)


def kandinsky6() -> Built:
    """With sound."""
    model = diffusers.Kandinsky6Transformer3DModel(**KANDINSKY, in_audio_dim=6, out_audio_dim=6)

    def inputs(draw: Draw) -> dict[str, Any]:
        return draw.denoise(
            draw.video(9).permute(0, 2, 3, 4, 1).contiguous(),
            pooled_projections=draw.normal(2, 20),
            audio_hidden_states=draw.normal(2, 9, 6),
        )

    return built(model, inputs)


def sana_wm() -> Built:
    """A linear recurrence over frames in all blocks but every `softmax_every_n`-th; a camera moves."""
    model = diffusers.SanaWMTransformer3DModel(
        in_channels=4, num_layers=2, hidden_size=48, num_attention_heads=3, softmax_every_n=2,
        linear_head_dim=16, mlp_ratio=1.0, caption_channels=24, chunk_plucker_channels=6,
    )  # fmt: skip

    def inputs(draw: Draw) -> dict[str, Any]:
        lens = torch.tensor([draw.cols, draw.cols, draw.cols / 2, draw.rows / 2])
        camera = torch.cat([torch.eye(4).flatten(), lens]).repeat(2, draw.frames, 1)
        camera[..., 3] = torch.arange(draw.frames) / 4
        return draw.denoise(
            draw.normal(2, 4, *draw.grid),
            encoder_hidden_states=draw.normal(2, 1, TEXT, 24),
            encoder_attention_mask=text_mask(4, 9),
            timestep=draw.noise_levels()[:, None],
            camera_conditions=camera,
            chunk_plucker=draw.normal(2, 6, *draw.grid),
        )

    return built(model, inputs)


COSMOS = "CosmosTransformer3DModel"

CASES = [
    Case("cosmos", COSMOS, cosmos, sites=1, refused={"cross": 1}),
    Case(
        "cosmos_by_frame", COSMOS, lambda: cosmos(by_frame=True), sites=1, refused={"cross": 1},
        note="a noise level for every frame",
    ),
    Case("allegro", "AllegroTransformer3DModel", allegro, sites=1, refused={"cross": 1}),
    Case("kandinsky5", "Kandinsky5Transformer3DModel", kandinsky5, sites=1, refused={"text": 1, "cross": 1}),
    Case(
        "kandinsky6", "Kandinsky6Transformer3DModel", kandinsky6, sites=1,
        refused={"text": 2, "audio": 1, "cross": 4},
    ),
    Case(
        "sana_wm", "SanaWMTransformer3DModel", sana_wm, sites=2, refused={"cross": 2}, graphs=2,
        tolerance=20,  # attends in bf16: in fp64, all else being equal, its output moves by 8e-5
        note="one number of frames",  # once it changes, Dynamo's graph does not say that it is that of x
    ),
]  # fmt: skip
