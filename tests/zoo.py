"""Tiny random-weight copies of the real diffusers and transformers models, with ground truth.

Every case says how many attention calls are 3D self-attention over the video's tokens (and so must
become sparse) and how many are something else (and must stay dense), with the reason.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import nn

Grid = tuple[int, int, int]
Inputs = Callable[[Grid], dict[str, Any]]
Built = tuple[nn.Module, Inputs]

GRID: Grid = (5, 6, 7)
"""Tokens along (frames, rows, cols): three different sizes, none a multiple of a tile's 4."""

OTHER_GRIDS: tuple[Grid, ...] = ((5, 7, 6), (3, 6, 10), (6, 5, 9))
"""More grids for dynamic shapes; the first swaps rows and cols, so it has as many tokens."""


@dataclass(frozen=True, eq=False)
class Case:
    """One model, how to call it, and what a compiler pass has to find in it.

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

    def __str__(self) -> str:
        return self.name


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Redraw every parameter, so that zero-initialised gates and outputs hide no attention."""
    generator = torch.Generator().manual_seed(seed)
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
    return model.eval()


class Draw:
    """Random inputs that depend on nothing but the grid."""

    def __init__(self, grid: Grid):
        frames, rows, cols = grid
        self.generator = torch.Generator().manual_seed(frames * 10_000 + rows * 100 + cols)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def tokens(self, *shape: int, vocabulary: int = 64) -> torch.Tensor:
        return torch.randint(2, vocabulary, shape, generator=self.generator)


def timesteps(batch: int) -> torch.Tensor:
    """A different noise level for every sample."""
    return torch.tensor([700.0, 310.0])[:batch]


def text_mask(*lengths: int, width: int) -> torch.Tensor:
    """Ones on the real text tokens of every sample and zeros on its padding: [B, width]."""
    return (torch.arange(width) < torch.tensor(lengths)[:, None]).long()


def wan() -> Built:
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        text_dim=24, freq_dim=32, ffn_dim=80, cross_attn_norm=True, rope_max_seq_len=32,
    )  # fmt: skip

    def inputs(grid: Grid) -> dict[str, Any]:
        frames, rows, cols = grid
        draw = Draw(grid)
        return {
            "hidden_states": draw.normal(2, 4, frames, 2 * rows, 2 * cols),
            "timestep": timesteps(2).long(),
            "encoder_hidden_states": draw.normal(2, 11, 24),
            "return_dict": False,
        }

    return randomise(model), inputs


def wan_i2v() -> Built:
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=9, out_channels=4, num_layers=2,
        text_dim=24, freq_dim=32, ffn_dim=80, cross_attn_norm=True, rope_max_seq_len=32,
        image_dim=20, added_kv_proj_dim=48,
    )  # fmt: skip

    def inputs(grid: Grid) -> dict[str, Any]:
        frames, rows, cols = grid
        draw = Draw(grid)
        return {
            "hidden_states": draw.normal(2, 9, frames, 2 * rows, 2 * cols),
            "timestep": timesteps(2).long(),
            "encoder_hidden_states": draw.normal(2, 512, 24),  # the model splits text off at 512
            "encoder_hidden_states_image": draw.normal(2, 13, 20),
            "return_dict": False,
        }

    return randomise(model), inputs


def hunyuan_video() -> Built:
    from diffusers import HunyuanVideoTransformer3DModel

    model = HunyuanVideoTransformer3DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=24,
        pooled_projection_dim=20, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip

    def inputs(grid: Grid) -> dict[str, Any]:
        frames, rows, cols = grid
        draw = Draw(grid)
        return {
            "hidden_states": draw.normal(2, 4, frames, 2 * rows, 2 * cols),
            "timestep": timesteps(2).long(),
            "encoder_hidden_states": draw.normal(2, 11, 24),
            "encoder_attention_mask": text_mask(4, 9, width=11),
            "pooled_projections": draw.normal(2, 20),
            "guidance": torch.full((2,), 6000.0),
            "return_dict": False,
        }

    return randomise(model), inputs


def _cogvideox(*, rotary: bool, patch_frames: int | None = None) -> Built:
    from diffusers import CogVideoXTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    frames, rows, cols = GRID
    model = CogVideoXTransformer3DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        time_embed_dim=24, text_embed_dim=20, max_text_seq_length=11, sample_frames=4 * frames - 3,
        sample_height=2 * rows, sample_width=2 * cols, patch_size_t=patch_frames,
        use_rotary_positional_embeddings=rotary,
    )  # fmt: skip

    def inputs(grid: Grid) -> dict[str, Any]:
        frames, rows, cols = grid
        draw = Draw(grid)
        angles = get_3d_rotary_pos_embed(16, ((0, 0), (rows, cols)), (rows, cols), frames)
        return {
            "hidden_states": draw.normal(2, (patch_frames or 1) * frames, 4, 2 * rows, 2 * cols),
            "encoder_hidden_states": draw.normal(2, 11, 20),
            "timestep": timesteps(2).long(),
            "image_rotary_emb": angles if rotary else None,
            "return_dict": False,
        }

    return randomise(model), inputs


def cogvideox_2b() -> Built:
    return _cogvideox(rotary=False)


def cogvideox_5b() -> Built:
    return _cogvideox(rotary=True)


def cogvideox_1_5() -> Built:
    return _cogvideox(rotary=True, patch_frames=2)


def ltx_video() -> Built:
    from diffusers import LTXVideoTransformer3DModel

    model = LTXVideoTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8, out_channels=8, num_layers=2,
        cross_attention_dim=32, caption_channels=24,
    )  # fmt: skip

    def inputs(grid: Grid) -> dict[str, Any]:
        frames, rows, cols = grid
        draw = Draw(grid)
        return {
            "hidden_states": draw.normal(2, frames * rows * cols, 8),
            "encoder_hidden_states": draw.normal(2, 11, 24),
            "timestep": timesteps(2).long(),
            "encoder_attention_mask": text_mask(4, 9, width=11),
            "num_frames": frames,
            "height": rows,
            "width": cols,
            "rope_interpolation_scale": (8 / 25, 32, 32),
            "return_dict": False,
        }

    return randomise(model), inputs


def _resize(image: torch.Tensor, size: list[int], interpolation: str) -> torch.Tensor:
    return nn.functional.interpolate(image, size=size, mode=interpolation)


def _stand_in_for_torchvision() -> ModuleType:
    """The one function that Cosmos takes from torchvision, which these tests do not depend on."""
    transforms = ModuleType("transforms")
    transforms.InterpolationMode = type("InterpolationMode", (), {"NEAREST": "nearest"})
    transforms.functional = ModuleType("functional")
    transforms.functional.resize = _resize
    return transforms


def cosmos() -> Built:
    from diffusers import CosmosTransformer3DModel
    from diffusers.models.transformers import transformer_cosmos

    if not hasattr(transformer_cosmos, "transforms"):
        transformer_cosmos.transforms = _stand_in_for_torchvision()
    model = CosmosTransformer3DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        mlp_ratio=2.0, text_embed_dim=24, adaln_lora_dim=8, max_size=(16, 32, 32),
    )  # fmt: skip

    def inputs(grid: Grid) -> dict[str, Any]:
        frames, rows, cols = grid
        draw = Draw(grid)
        return {
            "hidden_states": draw.normal(2, 4, frames, 2 * rows, 2 * cols),
            "timestep": timesteps(2),
            "encoder_hidden_states": draw.normal(2, 11, 24),
            "fps": 24,
            "padding_mask": torch.zeros(1, 1, 16 * rows, 16 * cols),
            "return_dict": False,
        }

    return randomise(model), inputs


def allegro() -> Built:
    from diffusers import AllegroTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    model = AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=48, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=96, caption_channels=24,
    )  # fmt: skip

    def inputs(grid: Grid) -> dict[str, Any]:
        frames, rows, cols = grid
        draw = Draw(grid)
        *angles, t, h, w = get_3d_rotary_pos_embed_allegro(
            48, ((0, 0), (rows, cols)), (rows, cols), frames, interpolation_scale=(2.2, 2.0, 2.0)
        )
        positions = torch.cartesian_prod(t.long(), h.long(), w.long()).T.unsqueeze(1).contiguous()
        return {
            "hidden_states": draw.normal(2, 4, frames, 2 * rows, 2 * cols),
            "encoder_hidden_states": draw.normal(2, 1, 11, 24),
            "timestep": timesteps(2).long(),
            "encoder_attention_mask": text_mask(4, 9, width=11),
            "image_rotary_emb": (tuple(angles), tuple(positions)),
            "return_dict": False,
        }

    return randomise(model), inputs


def latte() -> Built:
    from diffusers import LatteTransformer3DModel

    frames, rows, _ = GRID
    model = LatteTransformer3DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        patch_size=2, sample_size=2 * rows, video_length=frames, caption_channels=24,
        cross_attention_dim=48, norm_type="ada_norm_single", num_embeds_ada_norm=1000,
        activation_fn="gelu-approximate", norm_elementwise_affine=False,
    )  # fmt: skip

    def inputs(grid: Grid) -> dict[str, Any]:
        frames, rows, cols = grid
        draw = Draw(grid)
        return {
            "hidden_states": draw.normal(2, 4, frames, 2 * rows, 2 * cols),
            "encoder_hidden_states": draw.normal(2, 11, 24),
            "timestep": timesteps(2).long(),
            "return_dict": False,
        }

    return randomise(model), inputs


def sana_video() -> Built:
    from diffusers import SanaVideoTransformer3DModel

    model = SanaVideoTransformer3DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        num_cross_attention_heads=3, cross_attention_head_dim=16, cross_attention_dim=48,
        caption_channels=24, rope_max_seq_len=32,
    )  # fmt: skip

    def inputs(grid: Grid) -> dict[str, Any]:
        frames, rows, cols = grid
        draw = Draw(grid)
        return {
            "hidden_states": draw.normal(2, 4, frames, 2 * rows, 2 * cols),
            "encoder_hidden_states": draw.normal(2, 11, 24),
            "encoder_attention_mask": text_mask(4, 9, width=11),
            "timestep": timesteps(2),
            "return_dict": False,
        }

    return randomise(model), inputs


def hunyuan_video_decoder() -> Built:
    from diffusers import AutoencoderKLHunyuanVideo

    model = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_num_groups=4
    ).decoder

    def inputs(grid: Grid) -> dict[str, Any]:
        return {"hidden_states": Draw(grid).normal(2, 4, *grid)}

    return randomise(model), inputs


def flux() -> Built:
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=16, num_layers=1,
        num_single_layers=1, joint_attention_dim=24, pooled_projection_dim=20,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip

    def inputs(grid: Grid) -> dict[str, Any]:
        _, rows, cols = grid
        draw = Draw(grid)
        positions = torch.cartesian_prod(torch.zeros(1), torch.arange(rows), torch.arange(cols))
        return {
            "hidden_states": draw.normal(2, rows * cols, 16),
            "encoder_hidden_states": draw.normal(2, 11, 24),
            "pooled_projections": draw.normal(2, 20),
            "timestep": timesteps(2) / 1000,
            "img_ids": positions,
            "txt_ids": torch.zeros(11, 3),
            "return_dict": False,
        }

    return randomise(model), inputs


def sd3() -> Built:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        sample_size=16, pos_embed_max_size=16, joint_attention_dim=24, caption_projection_dim=48,
        pooled_projection_dim=20,
    )  # fmt: skip

    def inputs(grid: Grid) -> dict[str, Any]:
        _, rows, cols = grid
        draw = Draw(grid)
        return {
            "hidden_states": draw.normal(2, 4, 2 * rows, 2 * cols),
            "encoder_hidden_states": draw.normal(2, 11, 24),
            "pooled_projections": draw.normal(2, 20),
            "timestep": timesteps(2).long(),
            "return_dict": False,
        }

    return randomise(model), inputs


def pixart() -> Built:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        sample_size=16, cross_attention_dim=48, caption_channels=24,
        use_additional_conditions=False,
    )  # fmt: skip

    def inputs(grid: Grid) -> dict[str, Any]:
        _, rows, cols = grid
        draw = Draw(grid)
        return {
            "hidden_states": draw.normal(2, 4, 2 * rows, 2 * cols),
            "encoder_hidden_states": draw.normal(2, 11, 24),
            "encoder_attention_mask": text_mask(4, 9, width=11),
            "timestep": timesteps(2).long(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            "return_dict": False,
        }

    return randomise(model), inputs


def _text_inputs(grid: Grid) -> dict[str, Any]:
    """As many text tokens as the grid has video tokens, the second sample padded."""
    width = math.prod(grid)
    return {
        "input_ids": Draw(grid).tokens(2, width),
        "attention_mask": text_mask(width, width - 7, width=width),
        "return_dict": False,
    }


def _t5(name: str) -> Built:
    import transformers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=64, d_model=48, d_kv=16, d_ff=80, num_layers=2, num_heads=3
    )
    return randomise(getattr(transformers, f"{name}EncoderModel")(config)), _text_inputs


def t5() -> Built:
    return _t5("T5")


def umt5() -> Built:
    return _t5("UMT5")


def clip_text() -> Built:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=64, hidden_size=48, intermediate_size=80, projection_dim=48,
        num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=300,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return randomise(CLIPTextModel(config)), _text_inputs


VIDEO = [
    Case("wan", wan, sites=2, refused={"cross": 2}),
    Case("wan_i2v", wan_i2v, sites=2, refused={"cross": 4}),
    Case("hunyuan_video", hunyuan_video, sites=2, segments=("video", "text"), refused={"text": 1}),
    Case("cogvideox_2b", cogvideox_2b, sites=2, segments=("text", "video")),
    Case("cogvideox_5b", cogvideox_5b, sites=2, segments=("text", "video")),
    Case("cogvideox_1_5", cogvideox_1_5, sites=2, segments=("text", "video")),
    Case("ltx_video", ltx_video, sites=2, refused={"cross": 2}),
    Case("cosmos", cosmos, sites=2, refused={"cross": 2}),
    Case("allegro", allegro, sites=2, refused={"cross": 2}),
]

IMAGE_GRIDS = {"grid": (1, 6, 7), "other_grids": ((1, 7, 6), (1, 6, 10), (1, 5, 9))}

NEGATIVE = [
    Case("latte", latte, refused={"spatial": 2, "temporal": 2, "cross": 2}),
    Case("sana_video", sana_video, refused={"cross": 2}),
    Case("hunyuan_video_decoder", hunyuan_video_decoder, refused={"mask": 1}),
    Case("flux", flux, refused={"image": 2}, **IMAGE_GRIDS),
    Case("sd3", sd3, refused={"image": 2}, **IMAGE_GRIDS),
    Case("pixart", pixart, refused={"image": 2, "cross": 2}, **IMAGE_GRIDS),
    Case("t5", t5, refused={"text": 2}),
    Case("umt5", umt5, refused={"text": 2}),
    Case("clip_text", clip_text, refused={"text": 2}),
]
