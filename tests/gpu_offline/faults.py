"""Seeded faults: edits of the kernel, each of which the comparison of some case must notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """noticed_by: the case that the fault is run on. right occurs in that case's rendered program."""

    noticed_by: str
    right: str
    wrong: str

    def put_into(self, source: str) -> str:
        if self.right not in source:
            raise AssertionError(f"the kernel no longer says {self.right!r}: adapt this fault to it")
        return source.replace(self.right, self.wrong)


_RAGGED = "ragged_grid_and_counts"
_TEXT = "text_on_both_sides_with_padding"
_MASKED = "text_keys_behind_a_masked_block"
_FP16 = "token_major_fp16"
_UNMASKED_V = "v = load_rows(values, key, key_real, stride_vn, stride_vd, D, D_PADDED, "

FAULTS = {
    "border_off_by_one": Fault(_RAGGED, "(c < cols - corner_c)", "(c <= cols - corner_c)"),
    "box_padding_is_real": Fault("odd_tile_width_48", "slot < TILE_F * TILE_R * TILE_C", "slot < slot + 1"),
    "score_of_padding_not_masked": Fault(_RAGGED, "if not ALL_REAL:\n", "if False:\n"),
    "v_load_not_masked": Fault(_RAGGED, _UNMASKED_V + "ALL_REAL)", _UNMASKED_V + "True)"),
    "v_load_of_other_keys_not_masked": Fault(_MASKED, _UNMASKED_V + "False)", _UNMASKED_V + "True)"),
    "last_tile_dropped": Fault(_FP16, "range(0, count *", "range(0, (count - 1) *"),
    "tile_read_twice": Fault(_FP16, "listed + step //", "listed + (step & ~1) //"),
    "count_ignored": Fault(_RAGGED, "count = tl.minimum(count, KCAP)", "count = KCAP"),
    "sum_not_rescaled": Fault(_FP16, "row_sum * decay + ", "row_sum + "),
    "output_not_rescaled": Fault(_FP16, "acc * decay[:, None]", "acc"),
    "lse_in_base_2": Fault(_RAGGED, "tl.log2(row_sum)) * LN2", "tl.log2(row_sum))"),
    "exponential_in_base_e": Fault(_RAGGED, "tl.exp2(scores * SCALE", "tl.exp(scores * SCALE"),
    "scale_off_by_1_percent": Fault(_RAGGED, "row_sum, SCALE,", "row_sum, SCALE * 1.01,"),
    "wrong_kv_head": Fault("wide_offsets", "idx_h // GROUPS", "idx_h % (HEADS // GROUPS)"),
    "kv_head_not_shared": Fault("wide_offsets", "idx_h // GROUPS", "idx_h"),
    "rows_and_cols_swapped_in_box": Fault(_RAGGED, "f * rows + r) * cols + c)", "f * cols + c) * rows + r)"),
    "rows_and_cols_swapped_between_boxes": Fault(
        "full_tiles_width_96_bf16", "corner_r) * cols + corner_c", "corner_c) * cols + corner_r"
    ),
    "video_of_keys_starts_at_0": Fault(_MASKED, "(key + kv_start)", "(key)"),
    "video_of_queries_starts_at_0": Fault("symbolic_sizes", "token += q_start", "token += 0"),
    "other_queries_miss_the_last_keys": Fault(
        "wide_offsets", "NKV, tl.int32) - tl.where(is_video, video, 0)", "NKV, tl.int32) - video"
    ),
    "video_rows_take_other_keys_from_video": Fault(
        _MASKED, "tl.where(is_video, kv_start, other_keys)", "other_keys"
    ),
    "key_padding_ignored": Fault(_MASKED, "(in_video | padding.to(tl.int1))", "(padding.to(tl.int1) | True)"),
    "key_padding_of_video_honoured": Fault(
        "wide_offsets", "(in_video | padding.to(tl.int1))", "padding.to(tl.int1)"
    ),
    "key_padding_of_first_batch_only": Fault(_TEXT, "PADDING + idx_b *", "PADDING + 0 * idx_b *"),
    "last_other_rows_not_written": Fault("symbolic_sizes", "other < other_rows)", "other < other_rows - 1)"),
    "empty_row_is_0_by_0": Fault(_RAGGED, "tl.where(row_sum == 0.0, 1.0, row_sum)", "row_sum"),
    "no_anchor_for_unseen_rows": Fault(
        _MASKED, 'tl.where(new_max == float("-inf"), 0.0, new_max)', "new_max"
    ),
    "later_parts_of_a_tile_are_the_first": Fault(
        "tile_of_several_blocks", "% (SLOTS // BLOCK_K) * BLOCK_K + column", "% 1 + column"
    ),
    "columns_past_the_width_read": Fault(
        "odd_tile_width_48", "mask=real[:, None] & (d < D)[None, :]", "mask=real[:, None]"
    ),
    "weights_rounded_to_bf16": Fault(_RAGGED, "weights.to(v.dtype)", "weights.to(tl.bfloat16).to(v.dtype)"),
}  # fmt: skip
