"""The cases of the template tests, by what they are about."""

from __future__ import annotations

from dataclasses import replace

import torch

from gpu_offline.cases import Case

CASES = (
    Case("ragged_grid_and_counts", heads=1, kv_heads=1, ragged=True),
    Case("token_major_fp16", torch.float16, layout="tokens_first", ragged=True),
    Case("full_tiles_width_96_bf16", torch.bfloat16, grid=(4, 8, 8), width=96, kept=2),
    Case("odd_tile_width_48", grid=(3, 7, 5), tile=(2, 3, 3), width=48, ragged=True),
    Case("odd_tile_fp16", torch.float16, grid=(3, 4, 5), tile=(2, 3, 3), width=16, ragged=True),
    Case("tile_of_several_blocks", grid=(3, 8, 9), tile=(2, 8, 8), width=16, heads=1, kv_heads=1, kept=2),
    Case(
        "text_on_both_sides_with_padding", grid=(3, 5, 6), width=16, batch=2, kv_heads=1, q_other=(3, 70),
        kv_other=(3, 70), padding=2, kept=2, ragged=True,
    ),
    Case(
        "text_of_different_lengths_bf16", torch.bfloat16, grid=(3, 5, 6), width=64, batch=2, q_other=(5, 0),
        kv_other=(0, 20), padding=1, kept=2,
    ),
    Case("text_keys_without_mask_fp16", torch.float16, grid=(4, 5, 4), kv_other=(9, 0), kept=1, ragged=True),
    Case(
        "text_keys_behind_a_masked_block", grid=(3, 5, 6), width=16, heads=1, kv_heads=1, kv_other=(70, 10),
        padding=1, kept=2, ragged=True,
    ),
    Case("packed_qkv_bf16", torch.bfloat16, layout="packed", ragged=True),
    Case("gated", grid=(5, 4, 6), kept=2, gated=True),
    Case("gated_bf16", torch.bfloat16, grid=(5, 4, 6), kept=2, gated=True, layout="tokens_first"),
    Case("dyed", dyed=True, ragged=True),
    Case(
        "dyed_text_bf16", torch.bfloat16, grid=(3, 5, 6), batch=2, kv_heads=1, q_other=(3, 9),
        kv_other=(3, 9), padding=2, kept=2, ragged=True, dyed=True,
    ),
    Case("symbolic_sizes", dynamic=True, q_other=(2, 0), kv_other=(2, 0), ragged=True),
    Case(
        "wide_offsets", grid=(3, 5, 6), width=16, heads=4, q_other=(0, 4), kv_other=(0, 4), padding=1, kept=2,
        wide=True,
    ),
)  # fmt: skip

BACKWARD = tuple(
    replace(case, name=f"backward_{case.name}", backward=True)
    for case in (
        Case("ragged_grid_and_counts", heads=1, kv_heads=1, ragged=True),
        Case("grouped_heads_fp16", torch.float16, kv_heads=1, layout="tokens_first", ragged=True),
        Case("full_tiles_width_96_bf16", torch.bfloat16, grid=(4, 8, 8), width=96, kept=2),
        Case("odd_tile_width_48", grid=(3, 7, 5), tile=(2, 3, 3), width=48, ragged=True),
        Case("tile_of_several_blocks", grid=(2, 9, 8), tile=(2, 8, 8), width=16, heads=1, kv_heads=1, kept=2),
        Case(
            "many_tiles", grid=(33, 2, 3), tile=(2, 2, 2), width=16, heads=1, kv_heads=1, kept=4, ragged=True,
        ),
        Case("deep_scores_fp16", torch.float16, grid=(3, 5, 6), width=16, kept=2, deep=True),
        Case(
            "text_on_both_sides_with_padding", grid=(3, 5, 6), width=16, batch=2, kv_heads=1, q_other=(3, 40),
            kv_other=(3, 70), padding=2, kept=2, ragged=True,
        ),
        Case(
            "text_of_different_lengths_bf16", torch.bfloat16, grid=(3, 5, 6), batch=2, q_other=(5, 0),
            kv_other=(0, 20), padding=1, kept=2,
        ),
        Case(
            "text_keys_alone_fp16", torch.float16, grid=(4, 5, 4), width=32, kv_other=(9, 0), kept=1,
            ragged=True,
        ),
        Case("text_queries_alone", grid=(3, 4, 5), width=16, q_other=(2, 4), kept=1, ragged=True, mute=True),
        Case("packed_qkv_bf16", torch.bfloat16, grid=(4, 5, 6), layout="packed", ragged=True),
        Case(
            "symbolic_sizes", grid=(3, 5, 6), width=16, dynamic=True, q_other=(2, 0), kv_other=(2, 0), kept=2,
            ragged=True,
        ),
        Case(
            "wide_offsets", grid=(3, 5, 6), width=16, heads=4, q_other=(0, 4), kv_other=(0, 4), padding=1,
            kept=2, wide=True,
        ),
    )
)  # fmt: skip


def _mapped(case: Case) -> Case:
    """Read through tensor maps wherever those can be. fp32 never is."""
    dtype = torch.float16 if case.dtype == torch.float32 else case.dtype
    return replace(case, name=f"mapped_{case.name}", maps=True, dtype=dtype)


def _backward(case: Case) -> Case:
    return replace(case, name=f"backward_{case.name}", backward=True)


# Each with another reason why a tensor map might be wrong.
_MAPPED = tuple(
    _mapped(case)
    for case in (
        Case("ragged_grid_and_counts", grid=(5, 3, 6), width=16, ragged=True),
        Case(
            "token_major", grid=(3, 2, 5), width=16, layout="tokens_first", batch=2, kv_heads=1, kept=2,
            ragged=True,
        ),
        Case(
            "packed_width_48_bf16", torch.bfloat16, grid=(3, 5, 6), width=48, layout="packed", kept=2,
            ragged=True,
        ),
        Case("tile_of_several_blocks", grid=(5, 8, 4), tile=(4, 8, 4), width=16, heads=1, kv_heads=1, kept=2),
        Case(
            "text_on_both_sides_with_padding", grid=(3, 2, 6), width=16, batch=2, kv_heads=1, q_other=(3, 9),
            kv_other=(3, 70), padding=2, kept=2, ragged=True,
        ),
        Case(
            "symbolic_sizes", grid=(3, 5, 6), width=16, heads=1, kv_heads=1, dynamic=True, q_other=(2, 0),
            kv_other=(2, 0), kept=2, ragged=True,
        ),
        Case(
            "wide_offsets", grid=(3, 5, 6), width=16, heads=4, q_other=(0, 4), kv_other=(0, 4), kept=2,
            wide=True,
        ),
    )
)  # fmt: skip
# A sum's gradient has stride 0, which no tensor map reads: dK and dV take pointers, dQ does not.
_MUTE = _mapped(Case("mute", grid=(3, 4, 5), width=16, kept=1, ragged=True, mute=True))
_DYED = _mapped(Case("dyed", grid=(4, 5, 4), width=16, kv_other=(9, 0), kept=1, ragged=True, dyed=True))
MAPPED = (*_MAPPED, _DYED, *map(_backward, (*_MAPPED, _MUTE)))
# Its rows are not 16 bytes apart.
UNMAPPED = Case("unaligned_width_20_bf16", torch.bfloat16, width=20, ragged=True, maps=True)

# Rendered as under mode="max-autotune", in the last configuration of their row.
AUTOTUNED = (
    Case("autotuned_bf16", torch.bfloat16, grid=(4, 5, 6), kv_heads=1, ragged=True, kv_other=(0, 5)),
    Case("autotuned_backward_bf16", torch.bfloat16, grid=(4, 5, 6), kv_heads=1, ragged=True, backward=True),
)

# Queries that are a raster of their own: fewer than the keys, in tiles of another shape.
_PACKED = (
    Case("packed_ragged", grid=(5, 6, 7), q_grid=(3, 5, 8), q_tile=(2, 4, 8), width=16, ragged=True),
    Case(
        "packed_text_bf16", torch.bfloat16, grid=(3, 5, 6), q_grid=(4, 2, 9), q_tile=(4, 2, 2), width=16,
        batch=2, kv_heads=1, q_other=(3, 9), kv_other=(3, 20), padding=2, kept=2, ragged=True,
    ),
    Case(
        "packed_few_queries", grid=(5, 6, 7), q_grid=(1, 1, 5), q_tile=(2, 4, 2), width=16, kept=7,
        heads=1, kv_heads=1, dynamic=True,
    ),
)  # fmt: skip
PACKED = tuple(each for case in _PACKED for way in (case, _mapped(case)) for each in (way, _backward(way)))
ALL = (*CASES, *BACKWARD, *MAPPED, UNMAPPED, *PACKED)
