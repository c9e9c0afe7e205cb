"""CogVideoX and what is built like it: Conv2d patches of every frame, text in front of the video."""

from __future__ import annotations

from functools import partial
from typing import Any

from diffusers.models import embeddings

from .case import GRID, TEXT, Built, Case, Draw, built, small


def like_cogvideox(name: str, **config: Any) -> Any:
    frames, rows, cols = GRID
    return small(
        name, time_embed_dim=24, text_embed_dim=24, max_text_seq_length=TEXT,
        sample_frames=4 * frames - 3, sample_height=2 * rows, sample_width=2 * cols, **config,
    )  # fmt: skip


def rotary(draw: Draw) -> Any:
    corners = (0, 0), (draw.rows, draw.cols)
    return embeddings.get_3d_rotary_pos_embed(16, corners, corners[1], draw.frames)


def cogvideox(*, rope: bool, patch_frames: int | None = None) -> Built:
    """Without rotary tables it adds sine embeddings, stored for the size GRID alone."""
    model = like_cogvideox(
        "CogVideoXTransformer3DModel", patch_size_t=patch_frames, use_rotary_positional_embeddings=rope
    )

    def inputs(draw: Draw) -> dict[str, Any]:
        latent = draw.video(frames=(patch_frames or 1) * draw.frames).transpose(1, 2).contiguous()
        return draw.denoise(latent, **{"image_rotary_emb": rotary(draw)} if rope else {})

    return built(model, inputs)


def consisid() -> Built:
    """The features of a face, at five depths of an image encoder, by hand-written attention."""
    model = like_cogvideox(
        "ConsisIDTransformer3DModel", use_rotary_positional_embeddings=True, is_train_face=True,
        cross_attn_interval=1, cross_attn_dim_head=8, cross_attn_num_heads=2, LFE_id_dim=10, LFE_vit_dim=8,
        LFE_depth=5, LFE_dim_head=4, LFE_num_heads=2, LFE_num_id_token=2, LFE_num_querie=3,
        LFE_output_dim=32, LFE_ff_mult=2,
    )  # fmt: skip

    def inputs(draw: Draw) -> dict[str, Any]:
        return draw.denoise(
            draw.video().transpose(1, 2).contiguous(),
            image_rotary_emb=rotary(draw),
            id_cond=draw.normal(2, 10),
            id_vit_hidden=[draw.normal(2, 7, 8) for _ in range(5)],
        )

    return built(model, inputs)


def easyanimate() -> Built:
    model = small("EasyAnimateTransformer3DModel", patch_size=2, time_embed_dim=24, text_embed_dim=24)
    return built(model, lambda draw: draw.denoise(draw.video()))


TextThenVideo = partial(Case, segments=("text | video",))
COGVIDEOX = "CogVideoXTransformer3DModel"

CASES = [
    TextThenVideo("cogvideox_2b", COGVIDEOX, partial(cogvideox, rope=False), sites=1, note="2B", graphs=2),
    TextThenVideo("cogvideox_5b", COGVIDEOX, partial(cogvideox, rope=True), sites=1, note="5B"),
    TextThenVideo(
        "cogvideox_1_5", COGVIDEOX, partial(cogvideox, rope=True, patch_frames=2), sites=1, note="1.5"
    ),
    TextThenVideo("consisid", "ConsisIDTransformer3DModel", consisid, sites=1, graphs=2),
    TextThenVideo("easyanimate", "EasyAnimateTransformer3DModel", easyanimate, sites=1, graphs=2),
]
