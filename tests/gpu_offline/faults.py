"""Seeded faults: edits of the kernels, each of which the comparison of some case must notice.

A fault names its place as those of tests/mutants.py do: a function, and the code in it (syntax.py). Kernels
are rendered from templates, and each has its own copy of the functions that templates share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from syntax import replaced

from gpu_offline.program import Program


@dataclass(frozen=True)
class Fault:
    """noticed_by: the case that the fault is run on.

    place: "template::function" of a function that the kernel of this template calls; "template" alone is the
        kernel itself. There, `right` becomes `wrong`; nth as in syntax.py.
    """

    noticed_by: str
    place: str
    right: str
    wrong: str
    nth: int = 0

    @property
    def template(self) -> str:
        return self.place.partition("::")[0]

    def put_into(self, name: str, kernel: str) -> str:
        """Into the source of the kernel called `name`. Raises NoPlaceError."""
        within = self.place.partition("::")[2] or name
        return replaced(kernel, self.right, self.wrong, language="python", within=within, nth=self.nth)

    def put_into_program(self, program: Program) -> Program:
        """Into the one kernel that was rendered from the template."""
        name, kernel = program.template_kernel(self.template)
        return replace(program, source=program.source.replace(kernel, self.put_into(name, kernel)))


_FWD, _DQ, _DKDV = "attend_fwd", "attend_dq", "attend_dkdv"
_TRANSPOSE, _RANK = "transpose_lists", "rank_columns"
_BOX, _STEP, _OTHERS = "attend_fwd::box_tokens", "attend_fwd::softmax_step", "attend_fwd::tile_or_others"
_PARTIAL, _PART, _ROWS = "attend_fwd::is_partial", "attend_fwd::takes_part", "attend_fwd::load_rows"
_RAGGED = "ragged_grid_and_counts"
_TEXT = "text_on_both_sides_with_padding"
_MASKED = "text_keys_behind_a_masked_block"
_FP16 = "token_major_fp16"
_V = "load_rows(values, key, key_real, stride_vn, stride_vd, D, D_PADDED, {})"
_V_LISTED, _V_OTHER, _V_UNMASKED = _V.format("ALL_REAL"), _V.format("False"), _V.format("True")
_COLUMN = "step % (SLOTS // BLOCK_K) * BLOCK_K + column"

FORWARD_FAULTS = {
    "border_off_by_one": Fault(_RAGGED, _BOX, "c < cols - corner_c", "c <= cols - corner_c"),
    "box_padding_is_real": Fault(
        "odd_tile_width_48", _BOX, "slot < TILE_F * TILE_R * TILE_C", "slot < slot + 1"
    ),
    "score_of_padding_not_masked": Fault(_RAGGED, _STEP, "not ALL_REAL", "False"),
    "v_load_not_masked": Fault(_RAGGED, _FWD, _V_LISTED, _V_UNMASKED),
    "v_load_of_other_keys_not_masked": Fault(_MASKED, _FWD, _V_OTHER, _V_UNMASKED),
    "border_tile_taken_for_full": Fault("packed_qkv_bf16", _PARTIAL, "c > cols - TILE_C", "c > cols"),
    "box_padding_not_masked": Fault(
        "odd_tile_fp16", _PARTIAL, "smaller | (SLOTS > TILE_F * TILE_R * TILE_C)", "smaller"
    ),
    "last_tile_dropped": Fault(_FP16, _FWD, "count * (SLOTS // BLOCK_K)", "(count - 1) * (SLOTS // BLOCK_K)"),
    "tile_read_twice": Fault(_FP16, _FWD, "step // (SLOTS // BLOCK_K)", "(step & ~1) // (SLOTS // BLOCK_K)"),
    "count_ignored": Fault(_RAGGED, _FWD, "tl.minimum(count, KCAP)", "KCAP"),
    "sum_not_rescaled": Fault(_FP16, _STEP, "row_sum * decay", "row_sum"),
    "output_not_rescaled": Fault(_FP16, _STEP, "acc * decay[:, None]", "acc"),
    "lse_in_base_2": Fault(_RAGGED, _FWD, "(row_max + tl.log2(row_sum)) * LN2", "row_max + tl.log2(row_sum)"),
    "exponential_in_base_e": Fault(
        _RAGGED, _STEP,
        "tl.exp2(scores * SCALE - anchor[:, None])", "tl.exp(scores * SCALE - anchor[:, None])",
    ),
    "scale_off_by_1_percent": Fault(
        _RAGGED, _FWD, "row_sum, SCALE, PRECISION, ALL_REAL", "row_sum, SCALE * 1.01, PRECISION, ALL_REAL"
    ),
    "wrong_kv_head": Fault("wide_offsets", _FWD, "idx_h // GROUPS", "idx_h % (HEADS // GROUPS)"),
    "kv_head_not_shared": Fault("wide_offsets", _FWD, "idx_h // GROUPS", "idx_h"),
    "rows_and_cols_swapped_in_box": Fault(
        _RAGGED, _BOX, "(f * rows + r) * cols + c", "(f * cols + c) * rows + r"
    ),
    "rows_and_cols_swapped_between_boxes": Fault(
        "full_tiles_width_96_bf16", _BOX,
        "(corner_f * rows + corner_r) * cols + corner_c", "(corner_f * rows + corner_c) * cols + corner_r",
    ),
    "video_of_keys_starts_at_0": Fault(_MASKED, _FWD, "key + kv_start", "key"),
    "video_of_queries_starts_at_0": Fault("symbolic_sizes", _OTHERS, "token += start", ""),
    "other_queries_miss_the_last_keys": Fault(
        "wide_offsets", _FWD, "tl.where(is_video, video, 0)", "video"
    ),
    "video_rows_take_other_keys_from_video": Fault(
        _MASKED, _FWD, "tl.where(is_video, kv_start, other_keys)", "other_keys"
    ),
    "key_padding_ignored": Fault(_MASKED, _PART, "in_video = ...", "in_video = True"),
    "key_padding_of_video_honoured": Fault("wide_offsets", _PART, "in_video = ...", "in_video = False"),
    "key_padding_of_first_batch_only": Fault(_TEXT, _FWD, "PADDING + idx_b * ...", "PADDING"),
    "last_other_rows_not_written": Fault("symbolic_sizes", _OTHERS, "other < others", "other < others - 1"),
    "empty_row_is_0_by_0": Fault(_RAGGED, _FWD, "tl.where(row_sum == 0.0, 1.0, row_sum)", "row_sum"),
    "no_anchor_for_unseen_rows": Fault(
        _MASKED, _STEP, 'tl.where(new_max == float("-inf"), 0.0, new_max)', "new_max"
    ),
    "later_parts_of_a_tile_are_the_first": Fault("tile_of_several_blocks", _FWD, _COLUMN, "column"),
    "columns_past_the_width_read": Fault(
        "odd_tile_width_48", _ROWS, "real[:, None] & (d < D)[None, :]", "real[:, None]"
    ),
    "weights_rounded_to_bf16": Fault(
        _RAGGED, _STEP, "weights.to(v.dtype)", "weights.to(tl.bfloat16).to(v.dtype)"
    ),
}  # fmt: skip

_QUERIES, _KEYS, _PACKED = "text_queries_alone", "text_keys_alone_fp16", "packed_qkv_bf16"
_GROUPED, _LONG = "grouped_heads_fp16", "many_tiles"
_Q_STEP, _KEY_STEP = "attend_dq::query_gradient_step", "attend_dkdv::key_gradient_step"
_SEARCH, _LISTED = "transpose_lists::tiles_below", "rank_columns::times_listed"
_BACKWARD = {
    "delta_of_queries_left_out": Fault(_QUERIES, _Q_STEP, "grad_weights - delta[:, None]", "grad_weights"),
    "delta_of_keys_left_out": Fault(_QUERIES, _KEY_STEP, "grad_weights - delta[None, :]", "grad_weights"),
    "delta_not_stored": Fault(_PACKED, _DQ, "tl.store(DELTA + head * NQ + token, ...)", ""),
    "grad_q_in_base_2": Fault(_QUERIES, _DQ, "grad_q *= RAW_SCALE", "grad_q *= SCALE"),
    "grad_k_in_base_2": Fault(_QUERIES, _DKDV, "grad_k * RAW_SCALE", "grad_k * SCALE"),
    "lse_in_base_e": Fault(_QUERIES, "attend_dkdv::load_lse", "1.4426950408889634", "1.0"),
    "lse_of_queries_in_base_e": Fault(_QUERIES, "attend_dq::load_lse", "1.4426950408889634", "1.0"),
    "grad_k_from_weights": Fault(_KEYS, _KEY_STEP, "grad_scores.to(q.dtype)", "weights.to(q.dtype)"),
    "grad_v_from_scores": Fault(
        _KEYS, _KEY_STEP, "weights.to(grad_out.dtype)", "(weights * SCALE).to(grad_out.dtype)"
    ),
    "grad_q_rounded_to_bf16": Fault(
        _QUERIES, _Q_STEP, "grad_scores.to(k.dtype)", "grad_scores.to(tl.bfloat16).to(k.dtype)"
    ),
    "grad_k_rounded_to_bf16": Fault(
        _QUERIES, _KEY_STEP, "grad_scores.to(q.dtype)", "grad_scores.to(tl.bfloat16).to(q.dtype)"
    ),
    "weights_of_padding_not_masked": Fault(
        "deep_scores_fp16", _Q_STEP, "tl.where(real, weights, 0.0)", "weights"
    ),
    "count_ignored_in_backward": Fault(_PACKED, _DQ, "tl.minimum(count, KCAP)", "KCAP"),
    "last_query_tile_dropped": Fault(_GROUPED, _DKDV, "stop - start", "stop - start - 1"),
    "lists_of_all_tiles_start_alike": Fault(
        _GROUPED, _DKDV, "COLUMNS + line * LISTED + start", "COLUMNS + line * LISTED"
    ),
    "only_the_first_head_of_a_group": Fault(_GROUPED, _DKDV, "range(0, GROUPS)", "range(0, 1)"),
    "heads_of_a_group_interleaved": Fault(
        "wide_offsets", _DKDV, "idx_h * GROUPS + group", "idx_h + group * KV_HEADS"
    ),
    "later_parts_of_a_query_tile_are_the_first": Fault(
        "tile_of_several_blocks", _DKDV, "step % (Q_SLOTS // BLOCK_Q) * BLOCK_Q + row", "row"
    ),
    "gradients_of_padding_keys": Fault(
        _TEXT, _DKDV, "tl.where(key_seen[:, None], grad_k * RAW_SCALE, 0.0)", "grad_k * RAW_SCALE"
    ),
    "other_queries_left_out": Fault(_QUERIES, _DKDV, "if HAS_OTHER_QUERIES:\n    ...", ""),
    "video_keys_take_other_queries_from_video": Fault(
        _QUERIES, _DKDV, "tl.where(is_video, q_start, others)", "others"
    ),
    "video_of_listed_queries_starts_at_0": Fault(_QUERIES, _DKDV, "token + q_start", "token"),
    "tiles_begin_too_late": Fault(_KEYS, _DKDV, "tl.where(is_video, all_other_blocks, 0)", "0"),
    "search_stops_early": Fault(_PACKED, _SEARCH, "probe <= count[:, None]", "probe < count[:, None]"),
    "search_goes_one_too_far": Fault(_PACKED, _SEARCH, "tile < column[None, :]", "tile <= column[None, :]"),
    "search_goes_past_the_count": Fault(_PACKED, _TRANSPOSE, "below < count[:, None]", "below < KCAP"),
    "later_rows_overwrite_earlier": Fault(_LONG, _TRANSPOSE, "place += tl.sum(one, 0)", ""),
    "starts_of_the_first_rows_alone": Fault(
        _LONG, _TRANSPOSE, "start += tl.sum(below, 0)", "start = tl.sum(below, 0)"
    ),
    "coldest_columns_first": Fault(
        _GROUPED, _RANK, "other_listed[None, :] > listed[:, None]", "other_listed[None, :] < listed[:, None]"
    ),
    "ties_of_columns_at_one_place": Fault(
        _GROUPED, _RANK, "other[None, :] < column[:, None]", "other[None, :] < 0"
    ),
    "columns_counted_for_one_head": Fault("wide_offsets", _LISTED, "range(0, GROUPS)", "range(0, 1)"),
}  # fmt: skip

_SELECT, _ORDERED, _SPARE = "select", "select::ordered", "tl.cumsum(level, 0) <= spare"
_SIGN = "bits ^ ((bits >> 31) & (2**31 - 1))"
SELECT_FAULTS = {
    "ties_to_the_highest": Fault(
        "select_ties", _SELECT, _SPARE, "tl.sum(level, 0) - tl.cumsum(level, 0) < spare"
    ),
    "one_tile_too_many": Fault("select_ties", _SELECT, _SPARE, f"{_SPARE} + 1"),
    "minus_zero_below_zero": Fault(
        "select_by_strange_threshold", _ORDERED, "tl.where(score == 0.0, 0.0, score)", "score"
    ),
    "nan_lowest": Fault(
        "select_strange_scores", _ORDERED,
        "tl.where(score == score, ..., 2**31 - 1)", f"tl.where(score == score, {_SIGN}, 1 - 2**31)",
    ),
    "what_is_above_nan": Fault("select_strange_scores", _SELECT, "border == 2**31 - 1", "False"),
    "negative_scores_upside_down": Fault("select_ties", _ORDERED, _SIGN, "bits"),
    "last_bits_not_compared": Fault("select_by_count", _SELECT, "range(0, 31)", "range(0, 29)"),
    "on_the_threshold_is_below": Fault(
        "select_by_threshold", _SELECT, "~(score < threshold)", "score > threshold"
    ),
    "nan_is_below_the_threshold": Fault(
        "select_by_strange_threshold", _SELECT, "~(score < threshold)", "score >= threshold"
    ),
    "thresholds_of_the_first_row": Fault("select_by_threshold", _SELECT, "idx_m * stride_hm", "0"),
    "count_of_tiles_ignored": Fault("select_by_count", _SELECT, "tl.load(COUNT).to(tl.int32)", "KCAP"),
    "no_tile_is_kept": Fault(
        "select_count_of_nothing", _SELECT, "tl.maximum(kept, 1)", "tl.maximum(kept, 0)"
    ),
    "rest_of_a_list_is_no_tile": Fault("select_by_count", _SELECT, "MK - 1 + 0 * tile", "MK + 0 * tile"),
    "ties_of_each_block": Fault(
        "select_rows_of_several_blocks", _SELECT, "spare -= tl.sum(level, 0)", ""
    ),
    "blocks_overwrite_each_other": Fault(
        "select_rows_of_several_blocks", _SELECT, "written += tl.sum(one, 0)", ""
    ),
}  # fmt: skip

_MAP_BOX, _MAP_RAGGED, _MAP_WIDTH = (
    "mapped_tile_of_several_blocks",
    "mapped_ragged_grid_and_counts",
    "mapped_packed_width_48_bf16",
)
_MAP_TEXT, _MAP_GROUPED = "mapped_text_on_both_sides_with_padding", "backward_mapped_token_major"
_MAP, _LOAD, _SHAPE = "attend_fwd::tensor_map", "attend_fwd::load_box", "[heads, frames, rows, cols, D]"
MAP_FAULTS = {
    "box_of_the_first_head": Fault(_MAP_RAGGED, _LOAD, "tl.cast(head, tl.int32)", "0"),
    "box_of_the_first_part": Fault(_MAP_BOX, _LOAD, "f += ...", ""),
    "map_starts_at_0": Fault(_MAP_TEXT, _MAP, "base + tl.cast(start, tl.int64) * stride_n", "base"),
    "map_of_the_first_batch": Fault(_MAP_TEXT, _FWD, "K + idx_b * stride_kb, kv_start", "K, kv_start"),
    "map_ends_a_frame_late": Fault(_MAP_RAGGED, _MAP, _SHAPE, "[heads, frames + 1, rows, cols, D]"),
    "map_ends_a_row_early": Fault(_MAP_RAGGED, _MAP, _SHAPE, "[heads, frames, rows - 1, cols, D]"),
    "map_is_as_wide_as_its_box": Fault(_MAP_WIDTH, _MAP, _SHAPE, "[heads, frames, rows, cols, D_PADDED]"),
    "frames_of_a_map_too_near": Fault(_MAP_RAGGED, _MAP, "rows * stride_r", "cols * stride_r"),
    "rows_and_cols_of_a_corner_swapped": Fault(
        _MAP_RAGGED, _LOAD, "[tl.cast(head, tl.int32), f, r, c, 0]", "[tl.cast(head, tl.int32), f, c, r, 0]"
    ),
    "scores_past_the_end_not_masked": Fault(_MAP_RAGGED, _STEP, "not ALL_REAL", "False"),
    "queries_of_the_key_head": Fault(_MAP_GROUPED, _DKDV, "q_boxes, q_head", "q_boxes, idx_h"),
    "gradients_of_the_key_head": Fault(_MAP_GROUPED, _DKDV, "grad_boxes, q_head", "grad_boxes, idx_h"),
    "gradients_of_the_first_batch": Fault(
        _MAP_GROUPED, _DKDV, "GRAD_OUT + idx_b * stride_gb, q_start", "GRAD_OUT, q_start"
    ),
}  # fmt: skip

PACKED_FAULTS = {
    "as_many_other_queries_as_keys": Fault(
        "packed_text_bf16", _FWD, "tl.cast(NQ, tl.int32) - q_video", "tl.cast(NQ, tl.int32) - video"
    ),
    "queries_in_tiles_of_keys": Fault(
        "packed_ragged", _FWD,
        "Q_TILE_F, Q_TILE_R, Q_TILE_C, HAS_OTHER_ROWS", "TILE_F, TILE_R, TILE_C, HAS_OTHER_ROWS",
    ),
    "queries_in_the_raster_of_keys": Fault(
        "packed_ragged", _FWD, "q_start, q_frames, q_rows, q_cols", "q_start, frames, rows, cols"
    ),
    "query_boxes_in_the_raster_of_keys": Fault(
        "backward_mapped_packed_text_bf16", _DKDV,
        "q_boxes, q_head, q_tile, part, q_rows, q_cols", "q_boxes, q_head, q_tile, part, rows, cols",
    ),
    "query_maps_of_the_raster_of_keys": Fault(
        "mapped_packed_ragged", _FWD, "HEADS, q_frames, q_rows, q_cols", "HEADS, frames, rows, cols"
    ),
    "columns_as_long_as_rows": Fault(
        "backward_packed_ragged", _TRANSPOSE, "head * MQ * KCAP", "head * M * KCAP"
    ),
    "other_queries_after_the_keys_video": Fault(
        "backward_packed_text_bf16", _DKDV,
        "skip_run(token, skip_from, q_video)", "skip_run(token, skip_from, video)",
    ),
    "starts_of_as_many_query_tiles_as_key_tiles": Fault(
        "backward_packed_text_bf16", _TRANSPOSE, "row < MQ", "row < M", nth=1
    ),
    "as_many_query_tiles_as_key_tiles": Fault(
        "backward_packed_text_bf16", _TRANSPOSE, "row < MQ", "row < M", nth=2
    ),
}  # fmt: skip

BACKWARD_FAULTS = {
    name: replace(fault, noticed_by=f"backward_{fault.noticed_by}") for name, fault in _BACKWARD.items()
}
CASE_FAULTS = {**FORWARD_FAULTS, **BACKWARD_FAULTS, **MAP_FAULTS, **PACKED_FAULTS}
FAULTS = {**CASE_FAULTS, **SELECT_FAULTS}
