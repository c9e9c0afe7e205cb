"""Tiny random copies of the diffusers models whose video grid a captured graph hides, with ground truth.

Where it hides: text of a length that is data splits the graph (Mochi, HunyuanVideo 1.5, Framepack), the
positions are an input (LTX, LTX-2, the SanaWM refiner, MiniMax-H3), tokens are scattered into the sequence
by index (Cosmos 3, MiniMax-H3), or the grid is read back from a tensor (Wan-Animate 2).
"""

import math
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import nn
from zoo import TEXT, Built, Case, Draw, built, small, text_mask
from zoo.others import sana_wm

CAPTURE = {"capture_scalar_outputs": True, "capture_dynamic_output_shape_ops": True}
"""Dynamo's two flags that keep a graph whole across sizes that are data."""


def mochi() -> Built:
    model = small(
        "MochiTransformer3DModel", num_layers=2, pooled_projection_dim=32, text_embed_dim=24,
        time_embed_dim=16, max_sequence_length=TEXT,
    )  # fmt: skip
    return built(model, lambda draw: draw.denoise(draw.video(), encoder_attention_mask=text_mask(4, 9)))


def hunyuan_video15() -> Built:
    model = small(
        "HunyuanVideo15Transformer3DModel", num_refiner_layers=1, mlp_ratio=2.0, patch_size=2,
        text_embed_dim=24, text_embed_2_dim=20, image_embed_dim=18, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip

    def inputs(draw: Draw) -> dict[str, Any]:
        return draw.denoise(
            draw.video(),
            encoder_attention_mask=text_mask(4, 9),
            encoder_hidden_states_2=draw.normal(2, 7, 20),
            encoder_attention_mask_2=text_mask(3, 6, width=7),
            image_embeds=draw.normal(2, 5, 18),
        )

    return built(model, inputs)


def framepack(samples: int = 1) -> Built:
    """With the packed history that its pipeline keeps: 16, 2 and 1 frames, and the first one.

    One sample has its text cut to length; several have a mask (samples, 1, 1, N), written in a loop.
    """
    model = small(
        "HunyuanVideoFramepackTransformer3DModel", num_single_layers=2, num_refiner_layers=1, mlp_ratio=2.0,
        text_embed_dim=24, pooled_projection_dim=20, rope_axes_dim=(4, 6, 6), has_image_proj=True,
        image_proj_dim=18, has_clean_x_embedder=True,
    )  # fmt: skip

    def inputs(draw: Draw) -> dict[str, Any]:
        def latents(frames: int) -> torch.Tensor:
            return draw.normal(samples, 4, frames, 2 * draw.rows, 2 * draw.cols)

        first, far, near, last, now = torch.arange(20 + draw.frames).split([1, 16, 2, 1, draw.frames])
        return draw.denoise(
            latents(draw.frames),
            encoder_hidden_states=draw.normal(samples, TEXT, 24),
            encoder_attention_mask=text_mask(4, 9)[:samples],
            timestep=torch.tensor([7.0, 3.0])[:samples],
            pooled_projections=draw.normal(samples, 20),
            guidance=torch.tensor([6.0, 5.0])[:samples],
            image_embeds=draw.normal(samples, 5, 18),
            indices_latents=now,
            latents_clean=latents(2),
            indices_latents_clean=torch.cat([first, last]),
            latents_history_2x=latents(2),
            indices_latents_history_2x=near,
            latents_history_4x=latents(16),
            indices_latents_history_4x=far,
        )

    return built(model, inputs)


def ltx_coordinates() -> Built:
    """As the conditioning pipeline calls it: the positions of all tokens, and no sizes."""
    model = small(
        "LTXVideoTransformer3DModel", num_attention_heads=2, in_channels=8, out_channels=8,
        cross_attention_dim=32, caption_channels=24,
    )  # fmt: skip

    def inputs(draw: Draw) -> dict[str, Any]:
        positions = torch.cartesian_prod(*map(torch.arange, draw.grid)).T.float()
        return draw.denoise(
            draw.normal(2, math.prod(draw.grid), 8),
            encoder_attention_mask=text_mask(4, 9),
            video_coords=(positions * torch.tensor([8 / 25, 32, 32])[:, None]).expand(2, -1, -1),
        )

    return built(model, inputs)


AUDIO = {
    "num_attention_heads": 2, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 32,
    "audio_in_channels": 8, "audio_out_channels": 8, "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16, "caption_channels": 24,
}  # fmt: skip


def ltx2() -> Built:
    """As its pipeline calls it: the sizes too, but the positions are computed outside, once a video."""
    model = small("LTX2VideoTransformer3DModel", **AUDIO)

    def inputs(draw: Draw) -> dict[str, Any]:
        return draw.denoise(
            draw.normal(2, math.prod(draw.grid), 8),
            audio_hidden_states=draw.normal(2, 9, 8),
            audio_encoder_hidden_states=draw.normal(2, TEXT, 24),
            encoder_attention_mask=text_mask(4, 9),
            audio_encoder_attention_mask=text_mask(4, 9),
            num_frames=draw.frames,
            height=draw.rows,
            width=draw.cols,
            audio_num_frames=9,
            video_coords=model.rope.prepare_video_coords(2, *draw.grid, torch.device("cpu")),
            audio_coords=model.audio_rope.prepare_audio_coords(2, 9, torch.device("cpu")),
        )

    return built(model, inputs)


def sana_refiner() -> Built:
    """One window without a cache: the rotary tables are an input."""
    model = small("SanaWMLTX2RefinerTransformer3DModel", **AUDIO)

    def inputs(draw: Draw) -> dict[str, Any]:
        frames, rows, cols = draw.grid
        tables = model.build_rotary_emb_for_absolute_positions(
            2, list(range(frames)), rows, cols, torch.device("cpu"), 24.0
        )
        tokens = math.prod(draw.grid)
        return draw.denoise(
            draw.normal(2, tokens, 8),
            encoder_attention_mask=text_mask(4, 9),
            timestep=torch.full((2, tokens), 7.0),
            video_rotary_emb=tables,
        )

    return built(model, inputs)


def cosmos3() -> Built:
    """[13 of text | video] in one packed sequence; video attends to text, text causally to itself."""
    model = diffusers.Cosmos3OmniTransformer(
        head_dim=16, hidden_size=48, intermediate_size=64, latent_channel=4, num_attention_heads=4,
        num_hidden_layers=2, num_key_value_heads=2, patch_latent_dim=16, rope_axes_dim=(4, 2, 2),
        vocab_size=40,
    )  # fmt: skip

    def inputs(draw: Draw) -> dict[str, Any]:
        text, tokens = 13, math.prod(draw.grid)
        video = torch.arange(text, text + tokens)
        positions = torch.cartesian_prod(*map(torch.arange, draw.grid)).T + text
        return {
            "input_ids": torch.randint(0, 40, (text,), generator=draw.generator),
            "text_indexes": torch.arange(text),
            "position_ids": torch.cat([torch.arange(text).expand(3, -1), positions], dim=1),
            "und_len": text,
            "sequence_length": text + tokens,
            "vision_tokens": [draw.normal(1, 4, draw.frames, 2 * draw.rows, 2 * draw.cols)],
            "vision_token_shapes": [draw.grid],
            "vision_sequence_indexes": video,
            "vision_mse_loss_indexes": video,
            "vision_timesteps": torch.full((tokens,), 7.0),
            "vision_noisy_frame_indexes": [torch.arange(draw.frames)],
            "return_dict": False,
        }

    return built(model, inputs)


def minimax_h3() -> Built:
    """One packed sequence [text | audio | video], told by tags, positions and indices."""
    model = diffusers.MiniMaxH3Transformer3DModel(
        num_attention_heads=3, attention_head_dim=16, hidden_size=48, num_layers=2, num_refiner_layers=1,
        ffn_dim=64, in_channels=4, audio_in_channels=8, text_dim=24, freq_dim=16, time_embed_hidden_dim=32,
        time_embed_dim=24, rope_freq_dim=2,
    )  # fmt: skip

    def inputs(draw: Draw) -> dict[str, Any]:
        lengths = [TEXT, 6, math.prod(draw.grid)]
        text, audio, video = torch.arange(sum(lengths)).split(lengths)
        tags = torch.tensor([1, 2, 0]).repeat_interleave(torch.tensor(lengths))
        positions = torch.arange(sum(lengths))[:, None].repeat(1, 3)
        positions[video] = torch.cartesian_prod(*map(torch.arange, draw.grid)) + TEXT + 6
        return {
            "hidden_states": draw.normal(1, len(video), 16),
            "audio_hidden_states": draw.normal(1, len(audio), 8),
            "encoder_hidden_states": draw.normal(1, len(text), 24),
            "timestep": torch.tensor([0.3, 0.7]),
            "timestep_indices": (tags == 0).long(),
            "token_tags": tags,
            "position_ids": positions,
            "video_indices": video,
            "audio_indices": audio,
            "text_indices": text,
            "return_dict": False,
        }

    return built(model, inputs)


class ReferencePass(nn.Module):
    """Wan-Animate 2 over its reference frames, the dense pass; the other is block-sparse already."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = diffusers.WanAnimate2Transformer3DModel(
            text_len=TEXT, in_dim=8, dim=48, ffn_dim=64, freq_dim=16, text_dim=24, out_dim=4, num_heads=4,
            num_layers=2, use_img_emb=False,
        )  # fmt: skip

    def forward(
        self, latents: list[torch.Tensor], condition: list[torch.Tensor], text: Any, size: Any
    ) -> Any:
        sample = self.transformer(
            latents,
            torch.tensor([1.0]),
            [text],
            condition,
            WanAnimate2KVCache(2),
            "extract",
            seq_len=math.prod(latents[0].shape[1:]) // 4,
            offset_grid_sizes=size,
            return_dict=False,
        )
        return sample[0][0]


def wan_animate2() -> Built:
    def inputs(draw: Draw) -> dict[str, Any]:
        latents = draw.normal(2, 4, draw.frames, 2 * draw.rows, 2 * draw.cols)
        return {
            "latents": [latents[0]],
            "condition": [latents[1]],
            "text": draw.normal(6, 24),
            "size": torch.tensor([draw.grid]),
        }

    return built(ReferencePass(), inputs)


def case(name: str, of: str, build: Any, how: tuple[str, ...] = ("prepare",), **truth: Any) -> Case:
    return Case(name, of, build, how=how, other_grids=((5, 7, 6), (3, 6, 10)), **truth)


HINTED = ("prepare", "video_grid")
FRAMEPACK = "HunyuanVideoFramepackTransformer3DModel"

HIDDEN = [
    case(
        "mochi", "MochiTransformer3DModel", mochi, sites=4, segments=("video | text",), refused={"cross": 1}
    ),
    case(
        "hunyuan_video15", "HunyuanVideo15Transformer3DModel", hunyuan_video15, sites=1,
        segments=("video | text",), refused={"text": 1},
    ),
    case(
        "framepack", FRAMEPACK, framepack, sites=3, segments=("history | history | history | video | text",),
        refused={"text": 1}, note="dynamic=False",
    ),
    case(
        "ltx_coordinates", "LTXVideoTransformer3DModel", ltx_coordinates, HINTED, sites=1,
        refused={"cross": 1}, note="with video_coords",
    ),
    case(
        "ltx2", "LTX2VideoTransformer3DModel", ltx2, HINTED, sites=1, refused={"audio": 1, "cross": 4},
        note="with video_coords",
    ),
    case(
        "sana_refiner", "SanaWMLTX2RefinerTransformer3DModel", sana_refiner, HINTED, sites=1,
        refused={"cross": 1},
    ),
    case("cosmos3", "Cosmos3OmniTransformer", cosmos3, HINTED, sites=2, refused={"text": 2}),
    case(
        "minimax_h3", "MiniMaxH3Transformer3DModel", minimax_h3, sites=2, segments=("text | video",),
        refused={"text": 1},
    ),
    case(
        "wan_animate2", "WanAnimate2Transformer3DModel", wan_animate2, HINTED, sites=2, refused={"cross": 2},
        note="over the reference frames",
    ),
]  # fmt: skip
FRAMES = case(
    "sana_wm", "SanaWMTransformer3DModel", sana_wm, sites=2, refused={"cross": 2}, tolerance=20,
    note="any number of frames, dynamic=False",
)  # fmt: skip
"""Its graph shows the grid while the number of frames stays the same."""
DENSE = [case("framepack_samples", FRAMEPACK, partial(framepack, 2), (), refused={"padding": 3, "text": 1},
              note="several samples")]  # fmt: skip
