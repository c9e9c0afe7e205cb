"""Seeded faults: edits of the kernel, each of which the comparison of some case must notice."""

from __future__ import annotations

from dataclasses import dataclass, replace


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

FORWARD_FAULTS = {
    "border_off_by_one": Fault(_RAGGED, "(c < cols - corner_c)", "(c <= cols - corner_c)"),
    "box_padding_is_real": Fault("odd_tile_width_48", "slot < TILE_F * TILE_R * TILE_C", "slot < slot + 1"),
    "score_of_padding_not_masked": Fault(_RAGGED, "if not ALL_REAL:\n", "if False:\n"),
    "v_load_not_masked": Fault(_RAGGED, _UNMASKED_V + "ALL_REAL)", _UNMASKED_V + "True)"),
    "v_load_of_other_keys_not_masked": Fault(_MASKED, _UNMASKED_V + "False)", _UNMASKED_V + "True)"),
    "border_tile_taken_for_full": Fault("packed_qkv_bf16", "(c > cols - TILE_C)", "(c > cols)"),
    "box_padding_not_masked": Fault(
        "odd_tile_fp16", "smaller | (SLOTS > TILE_F * TILE_R * TILE_C)", "smaller"
    ),
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
    "video_of_queries_starts_at_0": Fault("symbolic_sizes", "token += start", "token += 0"),
    "other_queries_miss_the_last_keys": Fault(
        "wide_offsets", "NKV, tl.int32) - tl.where(is_video, video, 0)", "NKV, tl.int32) - video"
    ),
    "video_rows_take_other_keys_from_video": Fault(
        _MASKED, "tl.where(is_video, kv_start, other_keys)", "other_keys"
    ),
    "key_padding_ignored": Fault(_MASKED, "return in_video | ", "return True | "),
    "key_padding_of_video_honoured": Fault("wide_offsets", "return in_video | ", "return "),
    "key_padding_of_first_batch_only": Fault(_TEXT, "PADDING + idx_b *", "PADDING + 0 * idx_b *"),
    "last_other_rows_not_written": Fault("symbolic_sizes", "other < others)", "other < others - 1)"),
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

_QUERIES, _KEYS, _PACKED = "text_queries_alone", "text_keys_alone_fp16", "packed_qkv_bf16"
_GROUPED, _LONG = "grouped_heads_fp16", "many_tiles"
_BACKWARD = {
    "delta_of_queries_left_out": Fault(_QUERIES, "(grad_weights - delta[:, None])", "grad_weights"),
    "delta_of_keys_left_out": Fault(_QUERIES, "(grad_weights - delta[None, :])", "grad_weights"),
    "delta_not_stored": Fault(_PACKED, "+ token, delta, mask=real)", "+ token, delta, mask=real & False)"),
    "grad_q_in_base_2": Fault(_QUERIES, "grad_q *= RAW_SCALE", "grad_q *= SCALE"),
    "grad_k_in_base_2": Fault(_QUERIES, "grad_k * RAW_SCALE", "grad_k * SCALE"),
    "lse_in_base_e": Fault(_QUERIES, " * 1.4426950408889634", ""),
    "grad_k_from_weights": Fault(_KEYS, "dot(grad_scores.to(q.dtype)", "dot(weights.to(q.dtype)"),
    "grad_v_from_scores": Fault(
        _KEYS, "dot(weights.to(grad_out.dtype)", "dot((weights * SCALE).to(grad_out.dtype)"
    ),
    "grad_q_rounded_to_bf16": Fault(
        _QUERIES, "grad_scores.to(k.dtype), k", "grad_scores.to(tl.bfloat16).to(k.dtype), k"
    ),
    "grad_k_rounded_to_bf16": Fault(
        _QUERIES, "grad_scores.to(q.dtype), q", "grad_scores.to(tl.bfloat16).to(q.dtype), q"
    ),
    "weights_of_padding_not_masked": Fault("deep_scores_fp16", "tl.where(real, weights, 0.0)", "weights"),
    "count_ignored_in_backward": Fault(_PACKED, "count = tl.minimum(count, KCAP)", "count = KCAP"),
    "last_query_tile_dropped": Fault(_GROUPED, "(stop - start) *", "(stop - start - 1) *"),
    "lists_of_all_tiles_start_alike": Fault(_GROUPED, "LISTED + start", "LISTED"),
    "only_the_first_head_of_a_group": Fault(
        _GROUPED, "range(0, GROUPS):\n        q_head", "range(0, 1):\n        q_head"
    ),
    "heads_of_a_group_interleaved": Fault(
        "wide_offsets", "idx_h * GROUPS + group\n        line", "idx_h + group * KV_HEADS\n        line"
    ),
    "later_parts_of_a_query_tile_are_the_first": Fault(
        "tile_of_several_blocks",
        "% (Q_SLOTS // BLOCK_Q) * BLOCK_Q + row\n            token",
        "% 1 + row\n            token",
    ),
    "gradients_of_padding_keys": Fault(
        "text_on_both_sides_with_padding", "tl.where(key_seen[:, None], grad_k", "tl.where(True, grad_k"
    ),
    "other_queries_left_out": Fault(_QUERIES, "if HAS_OTHER_QUERIES:", "if False:"),
    "video_keys_take_other_queries_from_video": Fault(
        _QUERIES, "tl.where(is_video, q_start, others)", "others"
    ),
    "video_of_listed_queries_starts_at_0": Fault(_QUERIES, "(token + q_start)", "(token)"),
    "tiles_begin_too_late": Fault(_KEYS, "tl.where(is_video, all_other_blocks, 0)", "0"),
    "search_stops_early": Fault(_PACKED, "probe <= count[:, None]", "probe < count[:, None]"),
    "search_goes_one_too_far": Fault(_PACKED, "(tile < column[None, :])", "(tile <= column[None, :])"),
    "search_goes_past_the_count": Fault(_PACKED, "below < count[:, None]", "below < KCAP"),
    "later_rows_overwrite_earlier": Fault(_LONG, "place += tl.sum(one, 0)", "place += 0"),
    "starts_of_the_first_rows_alone": Fault(_LONG, "start += tl.sum(below, 0)", "start = tl.sum(below, 0)"),
    "coldest_columns_first": Fault(_GROUPED, "> listed[:, None]", "< listed[:, None]"),
    "ties_of_columns_at_one_place": Fault(
        _GROUPED, "& (other[None, :] < column[:, None])", "& (other[None, :] < 0)"
    ),
    "columns_counted_for_one_head": Fault(
        "wide_offsets", "range(0, GROUPS):\n        line =", "range(0, 1):\n        line ="
    ),
}

SELECT_FAULTS = {
    "ties_to_the_highest": Fault(
        "select_ties", "tl.cumsum(level, 0) <= spare", "tl.sum(level, 0) - tl.cumsum(level, 0) < spare"
    ),
    "one_tile_too_many": Fault(
        "select_ties", "tl.cumsum(level, 0) <= spare", "tl.cumsum(level, 0) <= spare + 1"
    ),
    "minus_zero_below_zero": Fault(
        "select_by_strange_threshold", "tl.where(score == 0.0, 0.0, score)", "score"
    ),
    "nan_lowest": Fault("select_strange_scores", ", 2**31 - 1)\n", ", 1 - 2**31)\n"),
    "what_is_above_nan": Fault(
        "select_strange_scores", "tl.where(border == 2**31 - 1, 0, ", "tl.where(False, 0, "
    ),
    "negative_scores_upside_down": Fault("select_ties", "bits ^ ((bits >> 31) & (2**31 - 1))", "bits"),
    "last_bits_not_compared": Fault("select_by_count", "range(0, 31)", "range(0, 29)"),
    "on_the_threshold_is_below": Fault("select_by_threshold", "~(score < threshold)", "(score > threshold)"),
    "nan_is_below_the_threshold": Fault(
        "select_by_strange_threshold", "~(score < threshold)", "(score >= threshold)"
    ),
    "thresholds_of_the_first_row": Fault("select_by_threshold", "+ idx_m * stride_hm)", ")"),
    "count_of_tiles_ignored": Fault("select_by_count", "tl.load(COUNT).to(tl.int32)", "KCAP"),
    "no_tile_is_kept": Fault(
        "select_count_of_nothing", "kept = tl.maximum(kept, 1)", "kept = tl.maximum(kept, 0)"
    ),
    "rest_of_a_list_is_no_tile": Fault("select_by_count", "MK - 1 + 0 * tile", "MK + 0 * tile"),
    "ties_of_each_block": Fault("select_rows_of_several_blocks", "spare -= tl.sum(level, 0)", "spare -= 0"),
    "blocks_overwrite_each_other": Fault(
        "select_rows_of_several_blocks", "written += tl.sum(one, 0)", "written += 0"
    ),
}

_MAP_BOX, _MAP_RAGGED, _MAP_WIDTH = (
    "mapped_tile_of_several_blocks",
    "mapped_ragged_grid_and_counts",
    "mapped_packed_width_48_bf16",
)
_SHAPE = "[heads, frames, rows, cols, D]"
_MAP_TEXT, _MAP_GROUPED = "mapped_text_on_both_sides_with_padding", "backward_mapped_token_major"
MAP_FAULTS = {
    "box_of_the_first_head": Fault(_MAP_RAGGED, "tl.cast(head, tl.int32), f, r", "0, f, r"),
    "box_of_the_first_part": Fault(_MAP_BOX, "f += part * (BLOCK // (TILE_R * TILE_C))", "f += 0"),
    "map_starts_at_0": Fault(_MAP_TEXT, "base + tl.cast(start, tl.int64) * stride_n,", "base,"),
    "map_of_the_first_batch": Fault(_MAP_TEXT, " K + idx_b * stride_kb, kv_start", " K, kv_start"),
    "map_ends_a_frame_late": Fault(_MAP_RAGGED, _SHAPE, "[heads, frames + 1, rows, cols, D]"),
    "map_ends_a_row_early": Fault(_MAP_RAGGED, _SHAPE, "[heads, frames, rows - 1, cols, D]"),
    "map_is_as_wide_as_its_box": Fault(_MAP_WIDTH, "rows, cols, D]", "rows, cols, D_PADDED]"),
    "frames_of_a_map_too_near": Fault(_MAP_RAGGED, "rows * stride_r, stride_r", "cols * stride_r, stride_r"),
    "rows_and_cols_of_a_corner_swapped": Fault(_MAP_RAGGED, "f, r, c, 0]", "f, c, r, 0]"),
    "scores_past_the_end_not_masked": Fault(_MAP_RAGGED, "if not ALL_REAL:\n", "if False:\n"),
    "queries_of_the_key_head": Fault(_MAP_GROUPED, "q_boxes, q_head", "q_boxes, idx_h"),
    "gradients_of_the_key_head": Fault(_MAP_GROUPED, "grad_boxes, q_head", "grad_boxes, idx_h"),
    "gradients_of_the_first_batch": Fault(
        _MAP_GROUPED, "GRAD_OUT + idx_b * stride_gb, q_start", "GRAD_OUT, q_start"
    ),
}  # fmt: skip

PACKED_FAULTS = {
    "as_many_other_queries_as_keys": Fault(
        "packed_text_bf16", "tl.cast(NQ, tl.int32) - q_video\n", "tl.cast(NQ, tl.int32) - video\n"
    ),
    "queries_in_tiles_of_keys": Fault(
        "packed_ragged", "Q_TILE_F, Q_TILE_R, Q_TILE_C, ", "TILE_F, TILE_R, TILE_C, "
    ),
    "queries_in_the_raster_of_keys": Fault(
        "packed_ragged", "q_start, q_frames, q_rows", "q_start, frames, rows"
    ),
    "query_boxes_in_the_raster_of_keys": Fault(
        "backward_mapped_packed_text_bf16", "part, q_rows, q_cols, ", "part, rows, cols, "
    ),
    "query_maps_of_the_raster_of_keys": Fault(
        "mapped_packed_ragged", "HEADS, q_frames, q_rows, q_cols", "HEADS, frames, rows, cols"
    ),
    "columns_as_long_as_rows": Fault("backward_packed_ragged", "COLUMNS + head * MQ", "COLUMNS + head * M"),
    "other_queries_after_the_keys_video": Fault(
        "backward_packed_text_bf16", "(token, skip_from, q_video)", "(token, skip_from, video)"
    ),
    "as_many_query_tiles_as_key_tiles": Fault("backward_packed_text_bf16", "mask=row < MQ", "mask=row < M"),
}  # fmt: skip

BACKWARD_FAULTS = {
    name: replace(fault, noticed_by=f"backward_{fault.noticed_by}") for name, fault in _BACKWARD.items()
}
CASE_FAULTS = {**FORWARD_FAULTS, **BACKWARD_FAULTS, **MAP_FAULTS, **PACKED_FAULTS}
FAULTS = {**CASE_FAULTS, **SELECT_FAULTS}
