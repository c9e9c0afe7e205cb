"""Seeded faults: one to three wrong lines each, every one of which some test must notice.

    make mutants            runs them all, and prints which test noticed each; a survivor fails
    python tests/mutants.py F4 F21

A fault names its place by syntax (mutation.py), and is put into a copy of the package to be run. F1 to F30 are
what sparse attention kernels and their compilers were found to get wrong; the faults of the Triton template
are in gpu_offline/faults.py, and run on every test run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import torch  # not vsa_compile: a process with a fault must import the copy that holds it
from mutation import Mutant, run_all

ATTEND = ("tests/test_attend.py", "tests/test_attend_relations.py")
CPP, CPP_FP32 = (*ATTEND, "-k", "cpp and not slower"), (*ATTEND, "-k", "cpp-float32 and not slower")
CPP_EACH, CPP_CALLS = (*ATTEND, "-k", "cpp-float32"), ("tests/test_cpu_kernel.py",)
ATEN = (*ATTEND, "-k", "aten and not cuda")
SELECT = ("tests/test_select.py", "-k", "not cuda")
FUNCTIONAL = ("tests/test_functional.py", "tests/test_aten.py")
TOKENS, VIDEO = ("tests/test_soundness_tokens.py",), ("tests/test_soundness_video.py",)
MASKS, FACTS = ("tests/test_soundness_masks.py",), "vsa_compile/analysis/facts.py"
SITES = ("tests/test_sites.py", "tests/test_rules.py", "tests/test_random_models.py")
CALL, FORWARD, BACKWARD, ROWS, PRODUCT, VECTORS, ARGUMENTS, KERNEL = (
    f"vsa_compile/ops/cpu/{name}"
    for name in (
        "call.h", "forward.h", "backward.h", "rows.h", "product.h", "vectors.h", "arguments.h", "kernel.cpp",
    )
)  # fmt: skip
PYTHON_CPU, PYTHON_ATEN = "vsa_compile/ops/cpu/__init__.py", "vsa_compile/ops/aten.py"
METHOD, SITE, SITES_PY = (
    "vsa_compile/methods/method.py",
    "vsa_compile/methods/site.py",
    "vsa_compile/convert/judge.py",
)
PRUNE, RULES, PATTERNS, DIGEST = (
    f"vsa_compile/methods/{name}.py" for name in ("prune", "select", "patterns", "source_digest")
)
EAGER, LAUNCH = "vsa_compile/ops/gpu/eager.py", "vsa_compile/ops/gpu/launch.py"
PLAIN = ("tests/test_plain_kernels.py", "-k", "not same_bits")
PLAIN_QUICK = ("tests/test_plain_kernels.py", "-m", "quick")
BREAK_EVEN = ("tests/test_break_even.py",)
ARGS, CHECKS, TEST_ARGS = "vsa_compile/ops/args.py", "vsa_compile/ops/checks.py", ("tests/test_args.py",)
REWRITE, BACKEND = "vsa_compile/convert/rewrite.py", "vsa_compile/backend.py"
EDITS, STRIDES = "vsa_compile/convert/edits.py", "vsa_compile/convert/strides.py"
ANNOUNCE, HINTED = "vsa_compile/report/announce.py", "vsa_compile/convert/hinted.py"
GATES = "vsa_compile/training/gates.py"
PATCH, EAGER_CALLS = "vsa_compile/patch.py", ("tests/test_patch.py",)
DYNAMO, REWRITING = "vsa_compile/torch_compat/dynamo.py", "tests/test_rewrite.py"

KERNEL_MUTANTS = (
    Mutant("F1", "pad off by one", FORWARD + "::ForwardGroup.step", "to + n * columns, columns, -kInfinity", "to + (n - 1) * columns, columns, -kInfinity", CPP),
    Mutant("F1 aten", "pad off by one", PYTHON_ATEN + "::members", "tokens >= 0", "tokens > 0", ATEN),
    Mutant("F2", "pad not masked in K", FORWARD + "::ForwardGroup.step", "if (keys.rows(g) > n) std::fill_n", "if (keys.rows(g) < n) std::fill_n", CPP),
    Mutant("F2 aten", "pad not masked in K", PYTHON_ATEN + "::_packed", "torch.arange(...) < length[:, None]", "torch.arange(longest, device=keys.device) <= length[:, None]", ATEN),
    Mutant("F2 blind", "pad not masked in K", PYTHON_ATEN + "::_logits", "seen is None", "True", ATEN),
    Mutant("F2 backward", "pad not masked in K", BACKWARD + "::BackwardGroup.add", "std::fill_n(scores.get() + n * columns, columns, -kInfinity);", "", CPP, needs="AVX512"),
    Mutant("F3", "V load unmasked", ROWS + "::gather", "std::fill(to + groups.size(g) * c.packed_width, to + rows * c.packed_width, 0.f);", "", CPP),
    Mutant("F3 aten", "V load unmasked", PYTHON_ATEN + "::_by_row", "rows.new_zeros", "rows.new_empty", ATEN),
    Mutant("F3 repeat", "a key that is not seen in an empty place", PYTHON_ATEN + "::_packed", "packed.where(filled, packed[:, :1])", "packed.where(filled, 0)", ATEN),
    Mutant("F4", "one wrong tile", CALL + "::list_keys", "clamp<int64_t>(ids[i], 0", "clamp<int64_t>(ids[i] + (i == 2), 0", CPP_FP32),
    Mutant("F4 aten", "one wrong tile", PYTHON_ATEN + "::ChunkedCall.__init__", "args.tiles.flatten(0, 2)", "args.tiles.flatten(0, 2).roll(1, 0)", ATEN),
    Mutant("F5", "last tile dropped", CALL + "::list_keys", "i < count; ++i) list.push_back", "i + 1 < std::max<int64_t>(count, 2); ++i) list.push_back", CPP_FP32),
    Mutant("F6", "tile counted twice", CALL + "::list_keys", "for (int64_t i = 0; i < count; ++i) list", "if (count > 1) list.push_back(ids[0]);\n    for (int64_t i = 0; i < count; ++i) list", CPP_FP32),
    Mutant("F7", "rescale missing", FORWARD + "::ForwardGroup.soften", "if (earlier && !same)", "if (false)", CPP_FP32),
    Mutant("F8", "scale +1 %", FORWARD + "::ForwardGroup.soften", "score_factor(c.scale)", "score_factor(c.scale * 1.01)", CPP_FP32),
    Mutant("F8 bf16", "scale +1 % in bf16 alone", FORWARD + "::ForwardGroup.soften", "score_factor(c.scale)", "score_factor(c.scale * (kConverts<T> ? 1.01 : 1.))", CPP, needs="AVX512"),
    Mutant("F8 backward", "scale +1 %", BACKWARD + "::BackwardKeys", "keys, at, g, slices, grad_k, static_cast<float>(c.scale)", "keys, at, g, slices, grad_k, static_cast<float>(c.scale * 1.01)", CPP_FP32),
    Mutant("F9", "bf16 accumulator", FORWARD + "::ForwardGroup.step", "      weights += n * columns;", "      weights += n * columns;\n      for (int64_t z = 0; z < c.packed_width * columns; ++z) out.get()[z] = BFloat16(out.get()[z]);", CPP),
    Mutant("F9 aten", "bf16 accumulator", PYTHON_ATEN + "::attend_backward", "lse_dtype(args.call.q.dtype)", "args.call.q.dtype", ATEN),
    Mutant("F10", "pooled mean / E", SITE + "::Site.tile_means", "sums / counts[:, None]", "sums / self.boxes.tile_tokens", SELECT),
    Mutant("F11", "one row zero", FORWARD + "::ForwardGroup.finish", "transpose(out.get(), c.packed_width, columns, rows.get(), c.packed_width);", "transpose(out.get(), c.packed_width, columns, rows.get(), c.packed_width);\n    if (g == 1) std::fill_n(rows.get(), c.packed_width, 0.f);", CPP_FP32),
    Mutant("F12", "one element", FORWARD + "::ForwardGroup.finish", "transpose(out.get(), c.packed_width, columns, rows.get(), c.packed_width);", "transpose(out.get(), c.packed_width, columns, rows.get(), c.packed_width);\n    if (g == 1) rows.get()[5] *= 1.25f;", CPP_FP32),
    Mutant("F13", "index of another head", CALL + "::list_keys", "int64_t row = (at.batch * c.heads + at.index) * query_tiles + g;", "int64_t row = (at.batch * c.heads) * query_tiles + g;", CPP_FP32),
    Mutant("F13 aten", "keys of another head", PYTHON_ATEN + "::ChunkedCall._chunk", "own // (self.heads // self.kv_heads)", "own % self.kv_heads", ATEN),
    Mutant("F14", "batch stride ignored", ROWS + "::with_head", "at.batch * view.batch + at.index", "at.index", CPP_FP32),
    Mutant("F14 padding", "key padding of the first batch", CALL + "::Plan.keys_of", "keys.size() == 1 ? 0 : b", "0 * b", CPP_FP32),
    Mutant("F15", "int32 offset", ROWS + "::with_head", "int64_t offset = at.batch", "int32_t offset = at.batch", ("tests/test_cpu_kernel.py", "-k", "offsets")),
    Mutant("F16", "LSE base 2 for e", FORWARD + "::ForwardGroup.finish", "kLn2 * highest[i]", "highest[i]", CPP_FP32),
    Mutant("F16 backward", "LSE base 2 for e", BACKWARD + "::BackwardGroup.pack", "static_cast<float>(value * kLog2e)", "value", CPP_FP32),
    Mutant("F17", "dK misses the last query of a partial tile", BACKWARD + "::BackwardGroup.add", "int64_t even = padded<T>(n), pairs = padded<T>(queries)", "int64_t even = padded<T>(n), pairs = queries / 2 * 2", CPP_FP32),
    Mutant("F18", "delta in bf16", BACKWARD + "::BackwardGroup.pack", "dot(rows.get() + i * c.packed_width, turned.get() + i * c.packed_width);", "BFloat16(dot(rows.get() + i * c.packed_width, turned.get() + i * c.packed_width));", CPP),
    Mutant("F18 sign", "delta added", BACKWARD + "::BackwardGroup.differentiate", "load_lanes(score_grads.get() + at) - mean", "load_lanes(score_grads.get() + at) + mean", CPP_FP32),
    Mutant("F20", "results to rows by position", PYTHON_ATEN + "::attend", "chunk.queries.flatten()", "chunk.queries.flatten().sort().values", ATEN),
    Mutant("F20 coarse", "coarse rows to tokens by position", SITE + "::spread", "boxed = boxed.expand(-1, -1, t_f, -1, t_r, -1, t_c, -1, -1)", "boxed = boxed.expand(-1, -1, t_f, -1, t_c, -1, t_r, -1, -1)", SELECT),
    Mutant("F21", "rows and cols swapped", CALL + "::add_tile", "(f * video.grid[1] + r) * video.grid[2] + x", "(f * video.grid[2] + r) * video.grid[1] + x", CPP_FP32),
    Mutant("F26", "a row that sees nothing is NaN", FORWARD + "::softmax_step", "only_where(now != V(-kInfinity), now)", "now", CPP_FP32),
    Mutant("F26 division", "a row that sees nothing is NaN", FORWARD + "::ForwardGroup.finish", "only_where(total != V(0.f), V(1.f) / total)", "V(1.f) / total", CPP_FP32),
    Mutant("F29", "ties to the highest id", KERNEL + "::Selection.operator()", "ties-- > 0", "std::count(&ranks[i], ranks.data() + tiles, limit) <= ties", SELECT),
    Mutant("last bit", "scores that differ in their last bit are ties", KERNEL + "::Selection.operator()", "bit && found < kept", "bit > 1 && found < kept", SELECT),
    Mutant("F29 aten", "ties in any order", PYTHON_ATEN + "::select", "torch.sort(scores, dim=-1, descending=True, stable=True)", "torch.sort(scores, dim=-1, descending=True, stable=False)", SELECT),
    Mutant("F30", "a padding row written over a neighbour", FORWARD + "::ForwardGroup.finish", "scatter(c, c.out, at, groups, g, rows.get());", "scatter(c, c.out, at, groups, g, rows.get());\n    if (groups.size(g) % 2 && g + 1 < groups.count()) with_head(c, c.out, at, [&](auto* to) { copy_row(rows.get(), c.width, to + groups.tokens(g + 1)[0] * c.out.token); });", CPP_FP32),
    Mutant("F30 backward", "scratch read before it is written", BACKWARD + "::BackwardGroup.operator()", "std::fill_n(grad_q.get(), c.packed_width * columns, 0.f);", "", CPP_FP32),
    Mutant("width", "packed rows not cleared behind the width", ROWS + "::gather", "std::fill(row + c.width, row + c.packed_width, 0.f);", ";", CPP_FP32),
    Mutant("last width", "the last places of a row not copied", ROWS + "::copy_row", "for (; d < width; ++d)", "for (; d + 1 < width; ++d)", CPP_FP32),
    Mutant("power", "2^x below the normal numbers", VECTORS + "::Power", "x = at::vec::clamp_min(x, V(-127.f));", "", CPP_EACH),
    Mutant("turned", "the last rows of a block not transposed", VECTORS + "::transpose", "std::min(kLanes, rows - r)", "std::min(kLanes, (rows - r) / 4 * 4)", CPP_FP32),
    Mutant("own rows", "the last rows of our own product", PRODUCT + "::multiply_columns", "for (; r < m; ++r)", "for (; r + 1 < m; ++r)", CPP_EACH),
    Mutant("own columns", "the last columns of our own product", PRODUCT + "::multiply_here", "for (; q < n; q += kLanes)", "for (; q + kLanes < n; q += kLanes)", CPP_EACH),
    Mutant("own sum", "our own product forgets what it adds to", PRODUCT + "::multiply_block", "add ? V::loadu(c + r * ldb + q * kLanes) : V(0.f)", "V(0.f)", CPP_EACH),
    Mutant("grad unchecked", "a gradient of another shape is read", KERNEL + "::attend_backward", 'query_rows("grad_out", c, q, grad_out)', 'View{grad_out.data_ptr(), c.q.batch, c.q.head, c.q.token}', CPP_CALLS),
    Mutant("start unchecked", "a video that begins behind its end", ARGUMENTS + "::check_raster", "start <= tokens - video.tokens()", "true", CPP_CALLS),
    Mutant("q_tile unchecked", "lists of other query tiles", ARGUMENTS + "::make_call", "video_queries(c).tiles()", "lists.tiles.size(2)", CPP_CALLS),
)  # fmt: skip

BSA, METHODS = ("tests/test_bsa.py", "-k", "not backend and not symbolic"), ("tests/test_methods.py",)
METHOD_MUTANTS = (
    Mutant("window", "rows and cols of windows swapped", PRUNE + "::Windows.of", "shape[axis], shape[3 + axis] = n, extent", "shape[(0, 2, 1)[axis]], shape[3 + axis] = n, extent", BSA),
    Mutant("centre", "the first token taken for the middle", PRUNE + "::Windows.of", 'centre == "middle"', 'centre == "first"', BSA),
    Mutant("most alike", "the most alike queries kept", PRUNE + "::WindowPruner._rank", "alike = (wide * wide.index_select(2, centres)).sum(-1)", "alike = -(wide * wide.index_select(2, centres)).sum(-1)", BSA),
    Mutant("length", "similarity not by angle", PRUNE + "::WindowPruner._rank", "alike / wide.norm(dim=-1).clamp(min=limit.tiny)", "alike", BSA),
    Mutant("fill", "a dropped query takes its neighbour's output", PRUNE + "::WindowPruner.restore", "centres = ...", "centres = video.unflatten(1, (windows.boxes.tiles, slots))[:, :, -1]", BSA),
    Mutant("axis", "an axis's border left out of a sum", SITE + "::_sums_by_axis", "border.sum(axis, keepdim=True)", "border.sum(axis, keepdim=True) * 0", SELECT),
    Mutant("axis traced", "a border decided for all sizes of a trace", SITE + "::box_sums", "traced = torch.compiler.is_compiling() or not all(isinstance(size, int) for size in grid)", "traced = torch.compiler.is_compiling()", ("tests/test_bsa.py", "-k", "symbolic_sizes")),
    Mutant("border", "repeated centres weigh in a border window's mean", PRUNE + "::Queries.means", "box_sums(packed * weight, self.raster) / box_sums(weight[None, None], self.raster)", "box_sums(packed, self.raster) / box_sums(torch.ones_like(weight)[None, None], self.raster)", BSA),
    Mutant("work", "the keys are as sparse as if no query were pruned", PRUNE + "::WindowPruner._left", "(1 - Fraction(str(site.sparsity))) / share", "1 - Fraction(str(site.sparsity))", BSA),
    Mutant("anneal", "the count does not know of dropped queries", PRUNE + "::WindowPruner._left", "part * share.denominator", "part * share.numerator", BSA),
    Mutant("packed lists", "lists of packed queries by the number of key tiles", CALL + "::list_keys", "* query_tiles + g;", "* tiles + g;", BSA),
    Mutant("packed aten", "packed queries cut by the keys' tiles", PYTHON_ATEN + "::ChunkedCall.__init__", "members(args.query_boxes, ...)", "members(args.boxes, args.q_start, device)", BSA),
    Mutant("quantile", "the sample's deviation for the population's", RULES + "::GaussQuantile._threshold", "torch.var_mean(scores, -1, correction=0)", "torch.var_mean(scores, -1, correction=1)", METHODS),
    Mutant("equal scores", "a row of equal scores below its own mean", RULES + "::GaussQuantile._threshold", "mean + ... - rounding", "mean + quantile.to(scores.dtype) * variance.sqrt() + rounding", BSA),
    Mutant("mass", "one tile too few", RULES + "::TopP._threshold", "best.where(before < self.mass, torch.inf)", "best.where(before + weights < self.mass, torch.inf)", METHODS),
    Mutant("slide", "boxes cut at the border, not pushed inside", PATTERNS + "::SlidingTiles.lists", "first = first.minimum(first * 0 + n - extent)", "", METHODS),
    Mutant("overlap", "a query tile's last key tile is not its own", PATTERNS + "::OwnTiles.mask", "(key < start + box) & (key + tile > start)", "(key < start + box - 1) & (key + tile > start)", METHODS),
    Mutant("closure", "closure values have no part in the digest", DIGEST + "::_collect_function", "_collect(cell.cell_contents, parts, seen)", "", METHODS),
    Mutant("helpers", "helpers have no part in the digest", DIGEST + "::_collect_function", "_collect_named(function.__globals__[name], names, parts, seen)", "", METHODS),
    Mutant("helpers elsewhere", "helpers in other modules have no part in the digest", DIGEST + "::_collect_named", "names & vars(thing).keys()", "()", METHODS),
    Mutant("helpers inside", "modules that a method imports itself have no part in the digest", DIGEST + "::_collect_function", "_imported(function)", "()", METHODS),
    Mutant("helpers installed", "another version of a package keeps the digest", DIGEST + "::_is_known_module", 'parts.append(str(getattr(sys.modules.get(top), "__version__", "")))', "", METHODS),
    Mutant("stale method", "no guard on what is registered", BACKEND + "::_decided", "methods.guard_version(settings.method)", "", METHODS),
    Mutant("replaced unsaid", "a method is replaced in silence", "vsa_compile/methods/registry.py::_register", "before not in (None, made_of)", "False", METHODS),
    Mutant("own replaced", "one of ours is replaced", "vsa_compile/methods/registry.py::register_method", "name in _OURS and method is not _METHODS[name]", "False", METHODS),
)  # fmt: skip

COMPILER_MUTANTS = (
    Mutant("F19", "gradient to the gate dropped", METHOD + "::GatedCoarse.__call__", "gate.transpose(1, 2)", "gate.detach().transpose(1, 2)", FUNCTIONAL),
    Mutant("F21 pass", "rows and cols swapped", REWRITE + "::_edit", "conversion.grid", "(conversion.grid[0], conversion.grid[2], conversion.grid[1])", SITES),
    Mutant("F21 stale", "the example's grid baked into the graph", SITES_PY + "::_judge", "Conversion(call, name, *video, ...)", "Conversion(call, name, *video._replace(grid=Grid(*map(analysis.hint, video.grid))), key_padding, call.padding_sees_nothing, scale)", ("tests/test_backend.py", "tests/test_compiler.py")),
    Mutant("F22", "node.meta not copied", EDITS + "::_insert", "node.meta = {name: known for name, known in value.meta.items() if name not in _OF_VALUES}", "node.meta = {}", ("tests/test_backend.py",)),
    Mutant("F23", "sources missing from the cache key", BACKEND + "::source_hash", "return digest.digest()", "return b'the same'", ("tests/test_cache.py", "tests/test_cache_sources.py")),
    Mutant("F23 pass", "no key of ours in Inductor's", BACKEND + "::_compiled", "patches[own] = ...", "torch_compat.keyed_pass(_cache_key(module), patches.get(own))", ("tests/test_cache.py", "tests/test_cache_sources.py")),
    Mutant("F24", "fake with wrong strides", ARGS + "::_by_token", "x.new_empty((batch, tokens, heads, width))", "x.new_empty((batch, heads, tokens, width)).transpose(1, 2)", ("tests/test_aten.py",)),
    Mutant("F25", "scores of the coarse part detached", METHOD + "::Method.__call__", "(q, k) if gate is not None else (q.detach(), k.detach())", "(q.detach(), k.detach())", FUNCTIONAL),
    Mutant("F27", "refusals counted as conversions", ANNOUNCE + "::count", 'table["refused"] += 1', 'table["converted"] += 1', ("tests/test_backend.py",)),
    Mutant("F28", "the grid of another video", SITES_PY + "::_video", "max(shared, ...)", "min(shared, key=lambda found: analysis.hint(found[0].tokens))", SITES),
    Mutant("cross", "cross-attention taken for self-attention", SITES_PY + "::_video", "same_tokens(q.axis, k.axis)", "True", SITES),
    Mutant("mask", "a mask on video keys ignored", SITES_PY + "::_key_padding", "not analysis.proofs.all_are(...)", "False", SITES),
    Mutant("raster", "axes in any order taken for a grid", "vsa_compile/analysis/tokens.py::is_raster", "p[0] < p[1] < p[2]", "len({*p}) == 3", SITES),
    Mutant("dropout", "dropout ignored", SITES_PY + "::_check_call", '_constant(arguments, "dropout_p")', "None", SITES),
    Mutant("causal", "causal ignored", SITES_PY + "::_check_call", '_constant(arguments, "is_causal")', "None", SITES),
    Mutant("scale", "the call's own scale ignored", SITES_PY + "::_judge", 'scale = _constant(arguments, "scale")', "scale = None", ("tests/test_backend.py", "tests/test_random_models.py")),
    Mutant("mask text", "the mask of the text dropped", REWRITE + "::_edit", "padding is not None", "(padding := None)", ("tests/test_backend.py", "tests/test_random_models.py")),
    Mutant("history", "a hint read from the wrong axis", "vsa_compile/analysis/optable/our_operators.py::_hint", "video = multiply([frames, rows, cols])", "video = multiply([frames, cols, rows])", ("tests/test_prepare.py",)),
    Mutant("stale hint", "no guard on the hinted grid", BACKEND + "::_decided", "state.guard_hint(which=most is Needs.THIS_HINT)", "", ("tests/test_prepare.py",)),
    Mutant("stale marker", "a call that is never over", "vsa_compile/grids/prepare.py::_end", "leave()", "", ("tests/test_calls.py", "-k", "replaced or error")),
    Mutant("threads", "calls of all threads in one place", "vsa_compile/runtime/calls.py::Running", "threading.local", "object", ("tests/test_calls.py", "-k", "threads")),
    Mutant("another's blocks", "blocks marked for any model's call", "vsa_compile/grids/prepare.py::_marking", "call.model == number", "True", ("tests/test_calls.py", "-k", "another_prepared")),
    Mutant("no resuming", "a backward without the grid of its call", "vsa_compile/grids/prepare.py::_end", "resume_in_backward(call, out)", "", ("tests/test_calls.py", "-k", "recomputes")),
    Mutant("failed backward", "a backward that fails leaves its grid", "vsa_compile/torch_compat/autograd.py::_Once", "__del__ = __call__", "", ("tests/test_calls.py", "-k", "fails_leaves")),
    Mutant("of the past", "features without the grid of their call", "vsa_compile/runtime/calls.py::Running.remember", "self.past.append(call)", "pass", ("tests/test_recomputes.py", "-k", "features")),
    Mutant("upstream", "what ran before a call has its grid", "vsa_compile/runtime/calls.py::Running.of_node", "return _latest(calls)", "return _latest(calls) or self.now", ("tests/test_recomputes.py", "-k", "ran_before")),
    Mutant("calls within", "a recompute within a recompute has no grid", "vsa_compile/runtime/calls.py::Running.of_node", "return around.value", "return None", ("tests/test_recomputes.py", "-k", "checkpoints_within")),
    Mutant("turns", "backwards that take turns are taken for one within the other", "vsa_compile/runtime/calls.py::Running._has_turns", "return thread_of_autograd() and len({call.thread for call in self.past} - {thread_number()}) > 1", "return False", ("tests/test_recomputes.py", "-k", "turns")),
    Mutant("turns within", "every backward of a thread of autograd is within the one before", "vsa_compile/torch_compat/autograd.py::may_be_within_another", "return frame is not None", "return True", ("tests/test_recomputes.py", "-k", "started_backward")),
    Mutant("foreign call", "a number tells a call of another thread", "vsa_compile/runtime/calls.py::Running.of_node", "bool(calls) and not resumed and not thread_of_autograd()", "False", ("tests/test_recomputes.py", "-k", "another_thread")),
    Mutant("autograd's thread", "features are lost on a GPU", "vsa_compile/torch_compat/autograd.py::thread_of_autograd", "type(threading.current_thread()).__name__ == '_DummyThread'", "False", ("tests/test_recomputes.py", "-k", "another_thread")),
    Mutant("threads apart", "forwards of threads taken for each other", "vsa_compile/runtime/calls.py::_apart", "len({call.thread for call in calls}) > 1 and len({call.grid for call in calls}) > 1", "False", ("tests/test_recomputes.py", "-k", "forwards_of_threads or two_threads")),
    Mutant("threads recycled", "a thread taken for one that is over", "vsa_compile/runtime/requests.py::thread_number", "_here.number", "threading.get_ident()", ("tests/test_recomputes.py", "-k", "is_over")),
    Mutant("leaf hooks", "hooks heap up on a parameter", "vsa_compile/grids/recompute.py::resume_in_backward", "tensor.requires_grad and not tensor.is_leaf", "tensor.requires_grad", ("tests/test_recomputes.py", "-k", "gets_no_hooks")),
    Mutant("within", "a recompute within a recompute sees what holds now", "vsa_compile/plan/history.py::History._in_force", "if around is not None:\n    ...\nelse:\n    ...", "with self._lock:\n    backward.value = self._then(number)", ("tests/test_recomputes.py", "-k", "within_a_recompute")),
    Mutant("own record", "a thread takes every node for its own", "vsa_compile/plan/history.py::History._then", "number < position()", "True", ("tests/test_recomputes.py", "-k", "record_of_its_own")),
    Mutant("noted", "a context of an inner recompute is not seen", "vsa_compile/plan/history.py::History.note", "self._backwards.note(value)", "pass", ("tests/test_recomputes.py", "-k", "within_a_recompute")),
    Mutant("own token", "a loop in another thread is refused", "vsa_compile/runtime/requests.py::Requests._check", "other is not request", "True", ("tests/test_recomputes.py", "-k", "another_thread_than")),
    Mutant("tasks", "tasks of one thread overrule each other", "vsa_compile/runtime/requests.py::Owner.apart", "len(tasks) > 1", "False", ("tests/test_recomputes.py", "-k", "tasks")),
    Mutant("cut short", "a step that ran otherwise than asked is silent", "vsa_compile/runtime/denoising.py::_Loop.on_step_end", "self.ran_otherwise |= self.request.value != self._dense(step)", "pass", ("tests/test_recomputes.py", "-k", "ended_early")),
    Mutant("led again", "frames compiled before a failure lead to it again", "vsa_compile/grids/prepare.py::_whole", "forget_compiled()", "pass", ("tests/test_calls.py", "-k", "lead_to_it")),
    Mutant("assigned", "a forward assigned to the class hides ours", "vsa_compile/grids/interception.py::intercept", "not _passes(cls, role, prepared)", "prepared_as(module, role) is not prepared", ("tests/test_calls.py", "-k", "assigned")),
    Mutant("registered", "registries of classes hear of ours", "vsa_compile/grids/interception.py::Prepared.subclass", "(*quiet, base)", "(base,)", ("tests/test_calls.py", "-k", "hear_of_nothing")),
    Mutant("unknown block", "caches do not find prepared blocks", "vsa_compile/grids/interception.py::Prepared.subclass", "know_as(made, base)", "pass", ("tests/test_calls.py", "-k", "know_prepared")),
    Mutant("above 0", "huge scores that are rounded up overflow", VECTORS + "::below_highest", "at::vec::clamp_max(x, V(0.f))", "x", (*CPP_EACH[:2], "-k", "cpp-float32 and huge")),
    Mutant("inside hooks", "our forward around hooks that are removed", "vsa_compile/grids/interception.py::intercept", "not _replace_own(...)", "True", ("tests/test_calls.py", "-k", "come_and_go")),
    Mutant("unwrapped", "Accelerator.unwrap_model takes our forward away", "vsa_compile/grids/interception.py::Prepared.forward", "del wrapped.__wrapped__", "pass", ("tests/test_calls.py", "-k", "regions")),
    Mutant("shared copy", "a copy shares what the model is told", "vsa_compile/grids/interception.py::Prepared.__deepcopy__", "copy = memo[id(self)] = Prepared(self.watches, deepcopy(self.attention, memo))", "copy = self", ("tests/test_calls.py", "-k", "apart")),
    Mutant("no retreat", "a model fails where Dynamo cannot capture", "vsa_compile/torch_compat/dynamo.py::capture_failures", "(exc.TorchDynamoException,)", "()", ("tests/test_calls.py", "-k", "capturing")),
    Mutant("today's state", "a recompute sees what holds now", "vsa_compile/plan/history.py::History._in_force", "position_of_forward()", "None", ("tests/test_state.py", "-k", "recompute and not bit")),
    Mutant("today's share", "a recompute reads the step of now", "vsa_compile/plan/schedule.py::SparsitySchedule.share_in_force", "sparsity == self._sparsity.now", "True", ("tests/test_state.py", "-k", "step_of_the_schedule")),
    Mutant("sure of it", "a change by another thread is dated by the look", "vsa_compile/plan/history.py::History._look", "at if certain else mine.looked", "at", ("tests/test_state.py", "-k", "no_telling")),
    Mutant("saved copies", "the last to leave a context leaves its value", "vsa_compile/runtime/requests.py::Requests.leave", "self._requests.remove(request)", "self._requests.pop()", ("tests/test_state.py", "-k", "any_order")),
    Mutant("conflict", "threads overrule each other", "vsa_compile/runtime/requests.py::Requests._check", "other.value != value", "False", ("tests/test_state.py", "-k", "told")),
    Mutant("aot", "conversions without the guards that they need", BACKEND + "::_decided", "torch_compat.guards_hold()", "True", ("tests/test_state.py", "-k", "guards")),
    Mutant("sparse for good", "what aot_compile makes stays sparse, unsaid", BACKEND + "::_decided", "warnings.warn(sparse_for_good(), stacklevel=2)", "", ("tests/test_state.py", "-k", "guards")),
    Mutant("own options", "explain forgets what the model was compiled with", "vsa_compile/report/explain.py::options_of", "compiled_with(model) if options is None else None", "None", ("tests/test_main.py", "-k", "own_options")),
    Mutant("price", "every method is priced as VSA", "vsa_compile/report/cost.py::_cost", "methods.get(method)", "methods.vsa", ("tests/test_main.py", "-k", "costs")),
    Mutant("gate inside", "a gate that reaches no call is forgotten", "vsa_compile/convert/gate_matching.py::gates_of", "times[marker] == 0", "False", ("tests/test_gates.py", "-k", "inside")),
    Mutant("counted alike", "sizes that count one mask are two", "vsa_compile/analysis/facts.py::Proofs.at_least", "self.respelled(a - b)", "a - b", ("tests/test_hidden.py", "-m", "slow", "-k", "prepared_model_converts and hunyuan_video15")),
    Mutant("floors", "n // (n // d) is d", "vsa_compile/analysis/sizes.py::_exact", "numerator if denominator == 1 else x", "numerator / denominator", ("tests/test_axes.py", "-k", "floor")),
    Mutant("second loop", "the first step of a second loop is dense", "vsa_compile/runtime/denoising.py::_Loop.on_step_end", "0 if step == last else step + 1", "step + 1", ("tests/test_schedule.py", "-k", "anew")),
    Mutant("meta gates", "absent gates stay on meta", "vsa_compile/training/loading.py::GateLoader._zeros", "not parameter.is_meta", "True", ("tests/test_gates.py", "-k", "meta")),
    Mutant("gate names", "gates beside the projection are dropped", "vsa_compile/training/loading.py::GateLoader.__call__", "key not in state_dict and beside in state_dict", "False", ("tests/test_gates.py", "-k", "beside")),
    Mutant("gates stay", "removed gates still mark", GATES + "::_unmark", "del module._forward_hooks[key]", "pass", ("tests/test_gates.py", "-k", "removed")),
    Mutant("gate anew", "a marker that must be told of keywords", GATES + "::GateMarker.__call__", "*named, output = rest", "kwargs, output = rest\nnamed = [kwargs]", ("tests/test_gates.py", "-k", "anew")),
    Mutant("gate orphaned", "the gate of a projection that is replaced stays", GATES + "::remove_gates", "_drop(module)", "", ("tests/test_gates.py", "-k", "replaced")),
    Mutant("gate unlearned", "a projection that is replaced loses what its gate has learned", GATES + "::_place", "_loads_for(owner) is projection", "False", ("tests/test_gates.py", "-k", "replaced")),
    Mutant("gate beside", "a second gate beside that of a projection that is gone", GATES + "::_place", "owner in orphaned or not hasattr(owner, NAME)", "not hasattr(owner, NAME)", ("tests/test_gates.py", "-k", "another_place")),
    Mutant("gate of a copy", "a projection that is copied alone marks with a copy of its gate", GATES + "::_is_gated", "not owners or hook.owner in owners", "True", ("tests/test_gates.py", "-k", "replaced")),
    Mutant("gate run", "a container runs the gate that it is given", GATES + "::_place", "not isinstance(owner, _CONTAINERS)", "True", ("tests/test_gates.py", "-k", "containers")),
    Mutant("gate uncalled", "a gate for what makes the attention call itself", "vsa_compile/training/projections.py::_caller", "calls[-1] in _called(attention)", "False", ("tests/test_gates.py", "-k", "not_called")),
    Mutant("gate computed", "no gate beside a weight that is computed", "vsa_compile/training/projections.py::_projection", "isinstance(weight, Tensor)", "linear.args[1].op == 'placeholder'", ("tests/test_gates.py", "-k", "computed")),
    Mutant("gate of the first", "a gate multiplies whatever a projection is passed first", GATES + "::GateMarker.__call__", "hidden_states(given, output, gate.in_features)", "given[0]", ("tests/test_gates.py", "-k", "wherever")),
    Mutant("gate of two", "a gate multiplies one of two that fit", "vsa_compile/training/projections.py::hidden_states", "len(found) == 1", "found", ("tests/test_gates.py", "-k", "cannot_follow")),
    Mutant("gate unfollowed", "a gate for what its hook cannot follow", "vsa_compile/training/projections.py::_misfits", "misfits.add(module)", "pass", ("tests/test_gates.py", "-k", "cannot_follow")),
    Mutant("gates left out", "calls without a gate that nobody hears of", GATES + "::add_gates", "warnings.warn(...)", "pass", ("tests/test_gates.py", "-k", "not_called")),
    Mutant("rule unchecked", "a user's rule may put the video where it does not fit", "vsa_compile/options.py::read_hint", "start + grid.tokens > length", "False", ("tests/test_bad_inputs.py", "-k", "rule")),
    Mutant("rule start", "a user's rule may begin the video anywhere", "vsa_compile/options.py::read_hint", "not is_int(start) or start < 0", "False", ("tests/test_bad_inputs.py", "-k", "rule")),
    Mutant("program unchecked", "anything is taken for an exported program", BACKEND + "::convert_exported", "not isinstance(program, ExportedProgram)", "False", ("tests/test_bad_inputs.py", "-k", "convert_exported")),
    Mutant("model unchecked", "anything is explained", "vsa_compile/report/explain.py::explain", "not callable(model)", "False", ("tests/test_bad_inputs.py", "-k", "explain")),
    Mutant("layers", "a number for the first of several", SITES_PY + "::check_layer", "len(indices) > 1", "False", ("tests/test_sites.py", "-k", "several_lists")),
    Mutant("slower", "a kernel that never wins runs", SITES_PY + "::_check_tokens", "raise Refused(refusals.slower(kernel.name, kernel.faster))", "least = 0", BREAK_EVEN),
    Mutant("never measured", "another kernel's break-even for one that was not measured", "vsa_compile/ops/break_even.py::_least", "CPU.get(kernel, {})", "CPU.get(kernel, {torch.float32: 0})", BREAK_EVEN),
    Mutant("in silence", "dense for speed without a word", ANNOUNCE + "::announce", "_say_once(decision)", "pass", BREAK_EVEN),
    Mutant("unread in silence", "what cannot be read stays dense without a word", ANNOUNCE + "::_say_once", "reason.asked and tokens >= _LONG", "False", (*BREAK_EVEN, "-k", "cannot_be_read")),
    Mutant("short ones said", "what is too short to be sparse is spoken of", ANNOUNCE + "::_say_once", "tokens >= _LONG", "True", (*BREAK_EVEN, "-k", "cannot_be_read")),
    Mutant("said again", "the same reason again and again", ANNOUNCE + "::_say_once", "_said.add(what)", "", BREAK_EVEN),
    Mutant("autocast's type", "the break-even of the type before autocast", SITES_PY + "::kernel_of", "out.dtype", "torch.float32", BREAK_EVEN),
    Mutant("two tables", "a table makes two videos one", "vsa_compile/analysis/algebra.py::same", "a is b", "form_of(a) is form_of(b)", ("tests/test_axes.py",)),
    Mutant("reordering", "shuffled tokens learn from what they are added to", "vsa_compile/analysis/unify.py::_unify", "a.rigid or b.rigid", "False", ("tests/test_axes.py",)),
    Mutant("orders", "two orders of equal sizes teach each other", "vsa_compile/analysis/unify.py::meet", "not _in_one_order(...)", "False", ("tests/test_axes.py",)),
    Mutant("3D windows", "windows taken for the video", "vsa_compile/analysis/tokens.py::_is_window", "return True", "return False", ("tests/test_axes.py",)),
    Mutant("later write", "a write into a mask or into tokens is not seen", "vsa_compile/analysis/walk.py::_Walk.write", "self.memory.write(...)", "pass", TOKENS),
    Mutant("alias", "a write is not seen through an alias", "vsa_compile/analysis/effects.py::Memory.write", "for other in ...:\n    ...", "pass", TOKENS),
    Mutant("positions", "a write to one position is not placed", "vsa_compile/analysis/overwriting.py::Write.placed", "not self.tokens", "True", TOKENS),
    Mutant("single runs", "two different positions taken for the same", "vsa_compile/analysis/overwriting.py::Write.held", "return old if old.cut is None else new if self.blank or all_of_it else unit()", "return old", TOKENS),
    Mutant("apart", "views at two positions taken for one memory", "vsa_compile/analysis/effects.py::_apart", "a != b", "False", MASKS),
    Mutant("runs swapped", "a hint overrides the order of swapped runs", "vsa_compile/analysis/pieces.py::order", "turned(axis)", "False", TOKENS),
    Mutant("inner order", "a reordered run of an axis that is a factor is not seen", "vsa_compile/analysis/algebra.py::leaves", "len(segments(factor)) == 1", "True", TOKENS),
    Mutant("erased", "what is multiplied by 0 still counts", "vsa_compile/analysis/optable/masks.py::_multiplied", "return nobodys(call, constant(0))", "pass", TOKENS),
    Mutant("no weight", "what is added 0 times counts", "vsa_compile/analysis/optable/masks.py::_added", "call.literal(call.node.kwargs.get('alpha', 1)) == 0", "False", TOKENS),
    Mutant("reason", "tokens in another order called one axis", "vsa_compile/convert/no_video.py::why_no_video", "longest.order == REORDERED", "False", TOKENS),
    Mutant("marked text", "text as long as the video is marked as the video", "vsa_compile/grids/prepare.py::_mark_first", "any(...)", "False", ("tests/test_prepare.py", "-k", "marked")),
    Mutant("marked start", "a part of a sequence is marked as all of it", "vsa_compile/grids/prepare.py::_mark_first", "None if call.length is None else call.start", "None", ("tests/test_prepare.py", "-k", "marked")),
    Mutant("marked length", "any tokens are marked", "vsa_compile/grids/prepare.py::_grid_of", "known_equal(value.shape[-2], length)", "True", ("tests/test_prepare.py", "-k", "marked")),
    Mutant("marked images", "pictures of a batch are counted as frames of one video", "vsa_compile/grids/prepare.py::_grid_of", "images // value.shape[0]", "images", ("tests/test_prepare.py", "-k", "marked")),
    Mutant("cut by data", "tokens cut at a length that is data called cross-attention", "vsa_compile/convert/no_video.py::_told_apart_by_data", "return cut and alike and all(same_tokens(q.axis, k.axis) for q, k in zip(*known, strict=True))", "return False", ("tests/test_hidden.py", "-m", "slow", "-k", "framepack")),
    Mutant("dots", "the dots of einsum aligned from the left", "vsa_compile/analysis/optable/compute.py::_spelled_out", "digits[len(digits) - n:]", "digits[:n]", ("tests/test_rules.py", "-k", "einsum")),
    Mutant("no dots", "dots in einsum are unknown", "vsa_compile/analysis/optable/compute.py::_einsum", "'->' not in equation", "'.' in equation", ("tests/test_rules.py", "-k", "einsum")),
    Mutant("split by a stranger", "tokens split by frames of another input called others than the keys", "vsa_compile/convert/no_video.py::why_no_video", "as_long and longest.factors == 2 and longest.order and _split_by_stranger(longest.axis)", "False", ("tests/test_hidden.py", "-k", "split_by_frames")),
    Mutant("thinned", "every second of an axis is no part of it", "vsa_compile/analysis/pieces.py::replaced", "old.thinned is not None and same(old.thinned, axis)", "False", ("tests/test_exported.py", "-k", "wan and not slow")),
    Mutant("functional", "copies of a functional graph are unknown", "vsa_compile/analysis/optable/writes.py", "op('copy')(_copied_from)", "", ("tests/test_exported.py", "-k", "wan-functional")),
    Mutant("foreign", "a function is told by its name", "vsa_compile/analysis/optable/table.py::_entry", "any(...)", "True", ("tests/test_soundness_operators.py", "-k", "name")),
    Mutant("size less itself", "a size is taken for a tensor", "vsa_compile/analysis/optable/masks.py::_added", "isinstance(call.example, torch.Tensor)", "True", ("tests/test_rules.py", "-k", "size_less")),
    Mutant("parts of a video", "a video that was cut and swapped is none beside a hint", HINTED + "::_lengths", "sum(analysis.hint(one.size) for one in video if one.order == REORDERED)", "0", ("tests/test_adversary.py", "-k", "hint")),
    Mutant("crossed", "(cols, rows, frames) are no video beside a hint", "vsa_compile/analysis/tokens.py::Segment.shows_video", "self.crossed", "False", ("tests/test_adversary.py", "-k", "hint")),
    Mutant("long text", "a hint speaks of a text as long as the video", HINTED + "::fills", "whole in analysis.inputs and analysis.hint(whole.size) in lengths", "False", ("tests/test_adversary.py", "-k", "hint")),
    Mutant("copied keys", "tokens taken out of (q, k, v) first are not placed", "vsa_compile/analysis/overwriting.py::_sources", "[one[0] for one in alike if len(one) == 1]", "[]", ("tests/test_adversary.py", "-k", "spelling")),
    Mutant("askew", "a run of two copies learns the grid of a sum", "vsa_compile/analysis/pieces.py::_of_askew", "node.cut is not None and _amid(*node.cut)", "False", (*TOKENS, "-k", "run_of")),
    Mutant("askew inside", "rows that were repeated and cut are rows", "vsa_compile/analysis/pieces.py::_askew", "leaves(axis)", "segments(axis)", (*TOKENS, "-k", "reshaped")),
    Mutant("askew split", "what a run amid frames is split into is whole frames", "vsa_compile/analysis/pieces.py::_of_askew", "node.whole is not None and _of_askew(node.whole)", "False", (*TOKENS, "-k", "amid_frames")),
    Mutant("askew joined", "two runs amid frames are whole frames together", "vsa_compile/analysis/pieces.py::_of_askew", "all(map(_of_askew, node.members))", "False", (*TOKENS, "-k", "amid_frames")),
    Mutant("askew pieces", "pieces of a run are from nowhere", "vsa_compile/analysis/algebra.py::pieces", "axis.cut is not None", "False", (*TOKENS, "-k", "amid_frames")),
    Mutant("single samples", "samples of a batch of two are one", "vsa_compile/analysis/algebra.py::_single_of_others", "bool(x.cut) != bool(y.cut)", "False", (*TOKENS, "-k", "single_samples")),
    Mutant("taken samples", "x[0] and x[1] are one sample", "vsa_compile/convert/no_video.py::same_samples", "taken[axis] != at", "False", (*TOKENS, "-k", "single_samples")),
    Mutant("given samples", "halves of an input are one sample", "vsa_compile/convert/no_video.py::are_inputs", "rigid(axis) or taken_out(axis)", "False", (*TOKENS, "-k", "two_inputs")),
    Mutant("side by side", "what is beside tokens in another order counts as added to them", "vsa_compile/analysis/values.py::in_order_of_all", "own is not now and order(own) and not same(own, now)", "False", (*TOKENS, "-k", "beside_others")),
    Mutant("accumulated", "what is added to a mask replaces it", "vsa_compile/analysis/optable/writes.py::_accumulates", "'add' in call.name or 'reduce' in call.name or (asked is not None and bool(call.arg(*asked)))", "False", (*MASKS, "-k", "counted")),
    Mutant("end", "arange(8, end=20) begins at 0", "vsa_compile/analysis/optable/factories.py::_positions", "len(args) > 1 or ('end' in kwargs and args)", "len(args) > 1", (*MASKS, "-k", "eight_on")),
    Mutant("twice itself", "a value less twice itself is 0", "vsa_compile/analysis/optable/masks.py::_added", "itself and call.literal(call.node.kwargs.get('alpha', 1)) == 1", "itself", (*MASKS, "-k", "twice_itself")),
    Mutant("cast mask", "a key mask that is cast is the one before", "vsa_compile/analysis/optable/carry.py::copied", "before.rows if before is not None else None", "rows_of(call, call.self_)", (*MASKS, "-k", "four_dimensions")),
    Mutant("swapped joined", "swapped runs to which others are added are in order", "vsa_compile/analysis/pieces.py::turned", "segment.members", "[segment]", (*TOKENS, "-k", "swapped_stay_so")),
    Mutant("astride", "what was reshaped across axes may be in any order", "vsa_compile/analysis/regroup.py::_lost", "REORDERED", "'unknown'", (*TOKENS, "-k", "reshaped")),
    Mutant("reunited", "what was reshaped across axes and back is another", "vsa_compile/analysis/algebra.py::_reunited", "tuple(result[-len(parts):]) == parts", "False", (*TOKENS, "-k", "reshaped")),
    Mutant("reunited moved", "pieces astride axes are these in any order", "vsa_compile/analysis/algebra.py::_reunited", "tuple(result[-len(parts):]) == parts", "set(result[-len(parts):]) == set(parts)", (*TOKENS, "-k", "reshaped")),
    Mutant("run of unknown", "a run of tokens in an unknown order learns", "vsa_compile/analysis/algebra.py::run", "rigid(base)", "''", (*TOKENS, "-k", "run_of")),
    Mutant("filled by its size", "new_full reads the size as the number", "vsa_compile/analysis/optable/factories.py", "op('new_full', fact=_filled_by(2, 'fill_value'), table=True)", "op('new_full', fact=_filled(True), table=True)", MASKS),
    Mutant("mask by index", "a mask in another order is the mask itself", "vsa_compile/analysis/optable/indexing.py::_fact_at", "if any(is_tensor(item) for item in items):\n    return everywhere", "if any(is_tensor(item) for item in items):\n    return fact", MASKS),
    Mutant("other", "a comparison with other= is not read", "vsa_compile/analysis/values.py::OpCall.other", "name in self.node.kwargs", "False", MASKS),
    Mutant("any order", "positions are these in any order and shape", FACTS + "::Fact.everywhere", "replace(claim, kind='at least') if claim.kind == 'position' else claim", "claim", (*MASKS, "-k", "positions or each_sample")),
    Mutant("names of NumPy", "axis= is not read", "vsa_compile/analysis/graph_facts.py::argument", "(name, _NUMPY.get(name))", "(name,)", (*MASKS, "-k", "axis")),
    Mutant("below zero", "a number below what a type can hold", FACTS + "::_cast", "limits.min <= value <= limits.max", "value <= limits.max", (*MASKS, "-k", "below_zero")),
    Mutant("rounded", "a number that its type rounds is kept as it was", FACTS + "::_cast", "_representable(float(value), torch.finfo(dtype))", "True", (*MASKS, "-k", "rounded")),
    Mutant("rounded bound", "a comparison is exact where torch rounds", "vsa_compile/analysis/optable/masks.py::_computed", "claim in claims", "True", (*MASKS, "-k", "rounded")),
    Mutant("clamped", "an upper clamp leaves every lower bound", "vsa_compile/analysis/optable/masks.py::_bounded", "not call.proofs.at_least(high, least)", "False", ("tests/test_rules.py", "-k", "masks and clamped")),
    Mutant("copied run", "what is copied into a run of a mask hides all of it", "vsa_compile/analysis/effects.py::Memory._fact_through", "start is not None", "False", ("tests/test_rules.py", "-k", "masks and copied")),
    Mutant("repeated mask", "a key mask that is repeated is one between tokens", "vsa_compile/analysis/walk.py::_Walk.padding", "rows.how == 'columns'", "rows.how != 'both'", (*MASKS, "-k", "repeated")),
    Mutant("repeated samples", "a mask of other samples is that of these", "vsa_compile/analysis/optable/carry.py::_padding_rows", "alike or equal(sizes[0][0], 1)", "True", (*MASKS, "-k", "more_samples")),
    Mutant("samples", "samples of a batch are each other's tokens", "vsa_compile/convert/no_video.py::_one_sample", "shares(a, b)", "True", (*TOKENS, "-k", "samples")),
    Mutant("copied over", "what is copied over a video learns its grid", "vsa_compile/analysis/optable/writes.py::_copied_from", "_spread(source.axes, [axis.size for axis in target.axes])", "(meet(target.axes, source.axes), _spread(source.axes, [axis.size for axis in target.axes]))[1]", (*TOKENS, "-k", "written_over")),
    Mutant("assigned over", "what is assigned to all of a video learns its grid", "vsa_compile/analysis/optable/writes.py::assigned", "all(whole) and not taken and len(region) == len(axes)", "False", (*TOKENS, "-k", "written_over")),
    Mutant("blank over", "what is written into blank memory learns what it is as large as", "vsa_compile/analysis/optable/writes.py::assigned", "written.table or not known.table", "True", (*TOKENS, "-k", "written_over")),
    Mutant("filled", "tokens that a number was assigned to are still there", "vsa_compile/analysis/optable/writes.py::assigned", "known.table or (all(whole) and not taken)", "known.table", (*TOKENS, "-k", "nobodys")),
    Mutant("rows looked up", "tokens that were looked up in another order are unknown", "vsa_compile/analysis/optable/compute.py::_embedding", "not looked_up.table", "False", (*TOKENS, "-k", "looked_up")),
    Mutant("frames joined", "frames one after the other are no video", "vsa_compile/analysis/optable/parts.py::_cat", "_in_turn(tensors, dim)", "None", ("tests/test_rules.py", "-k", "in_order and frame")),
    Mutant("no grad", "what runs without gradients in an exported program is enclosed", "vsa_compile/analysis/walk.py", "'higher_order::wrap_with_set_grad_enabled'", "''", ("tests/test_exported.py", "-k", "region")),
    Mutant("autocast region", "what runs under autocast in an exported program is enclosed", "vsa_compile/analysis/walk.py", "'higher_order::wrap_with_autocast'", "''", ("tests/test_exported.py", "-k", "region")),
    Mutant("wraps", "a number in a type that cannot hold it", FACTS + "::_cast", "limits.min <= value <= limits.max", "limits.min <= value", MASKS),
    Mutant("cut off", "what a cast to integers cuts off is kept", FACTS + "::_cast", "return int(value)", "return value", MASKS),
    Mutant("bounds wrap", "bounds hold in every type", FACTS + "::fitting", "dtype in (torch.int32, torch.int64)", "dtype != torch.bool", MASKS),
    Mutant("bound of 0", "a count that may be none is True", FACTS + "::fitting", "_positive(claim.value)", "True", MASKS),
    Mutant("three ways", "any three axes of bare tokens are a video", "vsa_compile/analysis/optable/views.py::_show_video", "first < 2", "False", ("tests/test_soundness_video.py", "-k", "audio")),
    Mutant("no channels", "a dimension of size 1 taken for channels", "vsa_compile/analysis/optable/views.py::_show_video", "equal(layout[first - 1].size, 1)", "False", ("tests/test_soundness_video.py", "-k", "audio")),
    Mutant("unpatchify", "an unpatchify shows nothing of its tokens", "vsa_compile/analysis/optable/views.py::_show_video", "mark_origins(axes, Volume(('unpatchify', whole[0])))", "", ("tests/test_random_models.py", "-k", "bare_tokens")),
    Mutant("blank memory", "the adversary judges by memory that nobody wrote to", "tests/adversary/truth.py::reads_blank_memory", "a.isfinite().all() and torch.equal(a, b)", "True", ("tests/test_adversary.py", "-k", "nobody_wrote")),
    Mutant("negative sum", "any sum of integers counts a mask", "vsa_compile/analysis/optable/masks.py::_counted", "known.given or source.dtype == torch.bool or nonnegative", "True", MASKS),
    Mutant("method's order", "x.where(condition, y) is read as torch.where(x, condition, y)", "vsa_compile/analysis/optable/choices.py::_choices", "call.node.op == 'call_method' or call.node.target is torch.Tensor.where", "False", (*MASKS, "-k", "chosen_by")),
    Mutant("old alpha", "torch.add(x, alpha, y) is read as x + alpha", "vsa_compile/analysis/optable/masks.py::_entrywise", "len(call.node.args) > 2", "False", (*MASKS, "-k", "old_spelling")),
    Mutant("a number's type", "a number beside a tensor keeps its type", "vsa_compile/analysis/optable/masks.py::_computed", "torch.result_type(*map(_typed, (call.self_, call.other)))", "torch.int64", (*MASKS, "-k", "byte")),
    Mutant("negative end", "a symbol counts from the start", "vsa_compile/analysis/optable/indexing.py::_position", "call.proofs.at_least(value, 0)", "True", (*MASKS, "-k", "slice_ends")),
    Mutant("overlapping windows", "what is as large as a memory covers it", "vsa_compile/analysis/effects.py::Memory.write", "equal(own, whole) and _is_dense(example_of(written))", "equal(own, whole)", (*MASKS, "-k", "overlap")),
    Mutant("expanded", "positions of an expanded dimension are apart", "vsa_compile/analysis/effects.py::Memory._seen_through", "_apart(known.taken, before.taken) and not _may_overlap(example, written)", "_apart(known.taken, before.taken)", (*MASKS, "-k", "expanded_dimension")),
    Mutant("no dimensions", "a view without dimensions fails", "vsa_compile/analysis/effects.py::_run_within", "len(known.axes) == len(written.axes) > 0", "len(known.axes) == len(written.axes)", (*MASKS, "-k", "without_dimensions")),
    Mutant("beside rigid", "what is written beside reordered tokens orders them", "vsa_compile/analysis/overwriting.py::Write.held", "not all_of_it and rigid(old)", "False", (*TOKENS, "-k", "beside_others")),
    Mutant("assigned beside", "an index names places of one dimension, and nothing is known of others", "vsa_compile/analysis/optable/writes.py::_scattered", "_beside(axis, written, known.table)", "axis", (*TOKENS, "-k", "beside_others")),
    Mutant("copied beside", "index_copy changes one dimension", "vsa_compile/analysis/optable/writes.py::_by_index", "_beside(axis, source, known.table)", "axis", (*TOKENS, "-k", "beside_others")),
    Mutant("unfollowed write", "a hint orders what was written somewhere", "vsa_compile/analysis/effects.py::Memory._seen_through", "REORDERED if write.tokens else UNKNOWN", "UNKNOWN", (*TOKENS, "-k", "written_somewhere")),
    Mutant("interleaved", "every second col and then the others, before a convolution", "vsa_compile/analysis/pieces.py::derived", "_interleaved(axis)", "False", (*VIDEO, "-k", "before_a_convolution")),
    Mutant("turned pixels", "rows that were swapped before a convolution", "vsa_compile/analysis/pieces.py::_order_of_run", "order(axis)", "rigid(axis)", (*VIDEO, "-k", "before_a_convolution")),
    Mutant("new clip", "reference frames may not be put first", "vsa_compile/analysis/pieces.py::derived", "segments(axis) if frames else [own]", "[own]", (*VIDEO, "-k", "cut_together")),
    Mutant("convolved window", "a convolution inside of windows makes them videos", "vsa_compile/analysis/tokens.py::_is_window", "piece.source is not None and _is_window(piece.source, apart)", "False", (*VIDEO, "-k", "windows_with")),
    Mutant("window and more", "windows to which something is added are videos", "vsa_compile/analysis/tokens.py::_is_window", "len(atom.members) > 1", "False", (*VIDEO, "-k", "windows_with")),
    Mutant("windows as heads", "what stands where heads do is no window", SITES_PY + "::_read", "call.known[name].axes[:-2]", "call.known[name].axes[:-3]", (*VIDEO, "-k", "where_heads")),
    Mutant("each frame", "channels, rows and cols of each frame are a video", "vsa_compile/analysis/tokens.py::is_raster", "not _of_each_frame(value, p, elsewhere)", "True", (*VIDEO, "-k", "each_frame")),
    Mutant("frames in front", "channels, rows and cols behind frames are a video", "vsa_compile/analysis/tokens.py::_of_each_frame", "{first - 1} - {0}", "set()", (*VIDEO, "-k", "each_frame")),
    Mutant("torn", "rows, cols and another axis taken for a grid by a table", "vsa_compile/analysis/tokens.py::is_raster", "not _is_torn(atoms)", "True", (*TOKENS, "-k", "table_of_positions")),
    Mutant("torn latents", "the same, of a linear patch embedding", "vsa_compile/analysis/tokens.py::_is_torn", "isinstance(value, Volume) or _is_5d(value)", "isinstance(value, Volume)", (*TOKENS, "-k", "table_of_positions")),
    Mutant("filled to the end", "the last single position hides that the others were reordered", "vsa_compile/analysis/overwriting.py::Write.placed", "REORDERED in (rigid(now), rigid(axis))", "rigid(now) == REORDERED", (*TOKENS, "-k", "last_position")),
    Mutant("heads back", "heads that were swapped and back taken for a picture of channels", "vsa_compile/analysis/optable/views.py::_show_video", "before.index(layout[first - 1]) < max((before.index(axis) for _, axis in three))", "False", ("tests/test_adversary.py", "-k", "spelling")),
    Mutant("eager mask", "any mask of an eager call counts as open over the video", PATCH + "::EagerAttention._open_run", "_all(mask[..., slice(*run)])", "True", (*EAGER_CALLS, "-k", "written_to")),
    Mutant("eager writes", "a mask is not read again after it was written to", PATCH + "::EagerAttention._open_run", "(version, run)", "run", (*EAGER_CALLS, "-k", "written_to")),
    Mutant("eager lengths", "eager cross-attention gets a graph of its own", PATCH + "::EagerAttention._stays_dense", "len(lengths) > 1", "False", (*EAGER_CALLS, "-k", "other_lengths")),
    Mutant("eager layers", "dense layers of eager calls become sparse", PATCH + "::EagerAttention._stays_dense", "self.options.dense_layers", "()", (*EAGER_CALLS, "-k", "gradients")),
    Mutant("eager recompute", "a recompute does not know the path of its layer", PATCH + "::EagerAttention._path", "self._paths.update({module: path for path, module in model.named_modules()})", "return next(path for path, module in model.named_modules() if module is modules[0])", (*EAGER_CALLS, "-k", "gradients")),
    Mutant("eager frames", "what compiles eager calls is traced by the frame around", PATCH + "::EagerAttention.__init__", "disable(self._attend)", "self._attend", (*EAGER_CALLS, "-k", "breaks_graphs")),
    Mutant("eager copies", "copies of a patched model are not patched", "vsa_compile/grids/interception.py::Prepared.__deepcopy__", "Prepared(self.watches, deepcopy(self.attention, memo))", "Prepared(self.watches)", (*EAGER_CALLS, "-k", "copies")),
    Mutant("eager scripts", "torch.jit.script does not know the function any more", "vsa_compile/runtime/eager_calls.py::install", "scripts_as(_routed, original)", "", (*EAGER_CALLS, "-k", "what_it_was")),
    Mutant("eager where", "explain names the first break for every call", "vsa_compile/report/explain.py::_Census._where", "(one, name) == (file, function)", "True", (*EAGER_CALLS, "-k", "where_the_graph_breaks")),
    Mutant("heads in front", "heads that are moved in front are channels of a picture", "vsa_compile/analysis/optable/views.py::_show_video", "third - second != len(layout) - third", "False", (*VIDEO, "-k", "audio")),
    Mutant("views", "views are each other's tokens", "vsa_compile/convert/no_video.py::same_samples", "not views or _one_sample(*heads)", "True", (*TOKENS, "-k", "views")),
    Mutant("halves of frames", "even frames are the odd ones", "vsa_compile/convert/no_video.py::_of_tokens", "origins(node)", "False", (*TOKENS, "-k", "even_frames")),
    Mutant("taken samples by index", "x[:1] and x[[1]] are one sample", "vsa_compile/convert/no_video.py::_one_sample", "taken_out(a) == taken_out(b)", "True", (*TOKENS, "-k", "single_samples")),
    Mutant("every second sample", "x[::2] and x[1::2] are one sample", "vsa_compile/analysis/algebra.py::same", "not (taken_out(a) and taken_out(b))", "a.cut is None or b.cut is None", (*TOKENS, "-k", "single_samples")),
    Mutant("parts of inputs", "parts of an input may be one video", "vsa_compile/convert/no_video.py::are_inputs", "node in analysis.inputs", "True", (*TOKENS, "-k", "parts_of_one_input")),
    Mutant("any length", "a place applies to sequences of any length", HINTED + "::_candidates", "sum(sizes) != hint.length", "sum(sizes) < hint.tokens + hint.start", ("tests/test_prepare.py", "-k", "another_length")),
    Mutant("length unguarded", "a graph with a named place serves other lengths", HINTED + "::hinted_video", "guard_equal(size, tokens, analysis.environment)", "pass", ("tests/test_prepare.py", "-k", "later_lengths")),
    Mutant("first hint", "a graph without a hint serves for good", SITES_PY + "::needs", "Needs.ANY_HINT if slug in refusals.OTHER_TOKENS else Needs.THIS_HINT", "Needs.THIS_HINT if slug == 'unknown-grid' else Needs.NO_HINT", ("tests/test_prepare.py", "-k", "hears_of_it_later")),
    Mutant("place of a call", "a prepared model's start and length are lost behind a break", "vsa_compile/runtime/state.py::State.hint", "Hint(call.grid, call.start, call.length)", "Hint(call.grid)", ("tests/test_calls.py", "-k", "behind_a_break")),
    Mutant("open claim", "what holds of a run that is written holds beyond it", FACTS + "::patched", "shifted(inside, start, stop - start, proofs)", "[Claim(one.kind, one.value, start + one.start, one.stop and start + one.stop) for one in (inside.claims if inside else ())]", (*MASKS, "-k", "run_of_positions")),
    Mutant("infinite", "infinity times 0 is 0", "vsa_compile/analysis/optable/masks.py::nobodys", "call.example.dtype.is_floating_point", "False", (*MASKS, "-k", "infinity")),
    Mutant("bits", "a number written through another type is that number", "vsa_compile/analysis/effects.py::Memory._seen_through", "isinstance(example, torch.Tensor) and example.dtype == written.dtype", "True", (*MASKS, "-k", "bits_of")),
    Mutant("sums wrap", "bounds near the end of a type hold of sums", FACTS + "::_far_from_wrapping", "2 * abs(value) <= torch.iinfo(dtype).max", "True", (*MASKS, "-k", "beyond_its_type")),
    Mutant("windows apart", "windows that overlap are apart", "vsa_compile/analysis/effects.py::_reaches", "any(_reaches(distance + taken * step, finer) for taken in range(first, last + 1))", "False", (*MASKS, "-k", "window_that")),
    Mutant("loaded program", "values of a loaded program share no memory", BACKEND + "::convert_exported", "torch_compat.restore_aliases(program.graph_module)", "pass", ("tests/test_exported.py", "-k", "from_a_file")),
    Mutant("loaded body", "values of a loaded program's bodies are its own", "vsa_compile/torch_compat/exported.py::_restore", "node.op == 'placeholder' and arguments is not None", "False", ("tests/test_exported.py", "-k", "from_a_file")),
    Mutant("some of a kind", "every hinted run of as many tokens is the named one", HINTED + "::_candidates", "_is_named(analysis, one, hint)", "True", ("tests/test_prepare.py", "-k", "speaks_of_its_sequence")),
    Mutant("shown otherwise", "a named place overrides a grid that the graph shows", HINTED + "::fills", "segment.grid is not None and tuple(map(analysis.hint, segment.grid)) != hint.grid", "False", ("tests/test_prepare.py", "-k", "forgotten_outside")),
    Mutant("unguarded place", "a hinted run that the graph shows to be a video needs no hint", SITES_PY + "::needs", "Needs.THIS_HINT if decision.hinted else Needs.NO_HINT", "Needs.NO_HINT if any(one.grid for one in decision.segments) else Needs.THIS_HINT", ("tests/test_prepare.py", "-k", "forgotten_outside")),
    Mutant("pinned values", "the number of values becomes a number of the graph", HINTED + "::hinted_video", "not same_tokens(values, of_keys)", "True", ("tests/test_prepare.py", "-k", "text_of_any_length")),
    Mutant("pinned symbols", "a symbol that became a number is spelled as a symbol", HINTED + "::_as_numbers", "size.subs(numbers)", "size", ("tests/test_prepare.py", "-k", "text_of_any_length")),
    Mutant("length of data", "a length that is data counts as 0", HINTED + "::_candidates", "any(depends_on_data(one.size) for one in segments)", "False", ("tests/test_prepare.py", "-k", "length_is_data")),
    Mutant("parts anew", "parts of tensor_split follow each other", "vsa_compile/analysis/optable/parts.py::_split", "equal(start, layout[dim].size)", "True", (*MASKS, "-k", "begins_anew")),
    Mutant("somewhere", "two positions that are unknown are one", "vsa_compile/analysis/values.py::taken_at", "index if isinstance(index, int) and index >= 0 else Somewhere()", "None", (*TOKENS, "-k", "symbolic_batch")),
    Mutant("single by index", "x[[0]] and x[[1]] are one sample", "vsa_compile/analysis/pieces.py::single_of", "several[0] if several else None", "None", (*TOKENS, "-k", "single_samples")),
    Mutant("number of a tensor", "a tensor without dimensions takes no position", "vsa_compile/analysis/optable/indexing.py::taken_by", "_is_number(item)", "False", (*TOKENS, "-k", "single_samples")),
    Mutant("views of the batch", "views that were split from the batch are heads", "vsa_compile/convert/no_video.py::same_samples", "_beside(one, q.axes[0])", "False", (*TOKENS, "-k", "split_from_the_batch")),
    Mutant("stacked videos", "two videos that were stacked are one", "vsa_compile/analysis/optable/parts.py::_stack", "[(call.node, 0)] if _of_several(tensors) else []", "[]", (*TOKENS, "-k", "stacked_and_taken")),
    Mutant("blocks swapped", "parts of rows and cols in each other's place are rows and cols", "vsa_compile/analysis/pieces.py::_misplaced", "place > 0 and _is_of_tokens(whole)", "False", (*VIDEO, "-k", "before_a_convolution")),
    Mutant("counted truth", "numbers of truth values may be below 0", "vsa_compile/analysis/optable/carry.py::cast", "source.dtype == torch.bool", "False", (*MASKS, "-k", "count_of_numbers")),
    Mutant("halo", "circular padding by hand is another order", "vsa_compile/analysis/pieces.py::derived", "len(inside) == 1 and _is_halo(axis, inside[0])", "False", (*VIDEO, "-k", "cut_together")),
    Mutant("lifted numbers", "a number that export made an input is unknown", BACKEND + "::convert_exported", "torch_compat.note_numbers(program)", "pass", ("tests/test_exported.py", "-k", "from_a_file")),
    Mutant("channels unsure", "any dimension of a volume may be its channels", "vsa_compile/grids/volumes.py::of_volume", "len(found) != 1", "not found", ("tests/test_positions.py",)),
    Mutant("cut patches", "what is left of a volume beside patches is cut off", "vsa_compile/grids/volumes.py::of_volume", "any(size % extent for size, extent in sizes)", "False", ("tests/test_positions.py",)),
    Mutant("one sample's positions", "positions of the first sample are those of all", "vsa_compile/grids/positions.py::_of_any", "(places == places[:1]).all()", "True", ("tests/test_positions.py",)),
    Mutant("several positions", "of several grids the first is the video", "vsa_compile/grids/positions.py::_of_any", "any(video != largest for video in others)", "False", ("tests/test_positions.py",)),
    Mutant("repeated in steps", "a key mask that is repeated twice is one between tokens", "vsa_compile/analysis/optable/carry.py::_padding_rows", "fact is not None and fact.rows is not None and fact.rows.how == 'rows'", "False", (*MASKS, "-k", "however")),
    Mutant("upsampled", "a run of frames and pixels is askew", "vsa_compile/analysis/pieces.py::_order_of_run", "inner and _is_of_tokens(outer) and not any(map(_is_of_tokens, inner))", "False", (*VIDEO, "-k", "cut_together")),
    Mutant("copies of rows", "a run of two copies of rows is in order before a convolution", "vsa_compile/analysis/pieces.py::_order_of_run", "inner and _is_of_tokens(outer) and not any(map(_is_of_tokens, inner))", "True", (*VIDEO, "-k", "before_a_convolution")),
    Mutant("no samples", "positions of no samples are read", "vsa_compile/grids/positions.py::_may_be_positions", "x.numel() > 0", "True", ("tests/test_positions.py", "-k", "any_argument")),
    Mutant("their attributes", "a model whose attributes fail stops", "vsa_compile/grids/volumes.py::_attribute", "except Exception:", "except AttributeError:", ("tests/test_positions.py", "-k", "any_argument")),
    Mutant("hint over proof", "a hint overrides a reordering", HINTED + "::fills", "segment.order == REORDERED", "False", ("tests/test_soundness_tokens.py", "-k", "hint")),
    Mutant("witness", "a recompute under another hinted grid", ARGS + "::AttendArgs.new_witness", "self.q.new_empty((*self.grid, 0))", "self.q.new_empty(0)", ("tests/test_state.py", "-k", "another_hinted")),
    Mutant("padding rows", "queries that are padding left as they are", REWRITE + "::_edit", "conversion.query_padding", "False", ("tests/test_hidden.py", "-k", "padding")),
    Mutant("counts", "text of one mask counted twice", "vsa_compile/analysis/walk.py::_Walk.count", "self.analysis.equal_counts[size] = known", "", ("tests/test_hidden.py", "-m", "slow", "-k", "prepared_model_converts and hunyuan_video15")),
    Mutant("respelled", "all but the last n: another axis", "vsa_compile/analysis/optable/indexing.py::sliced", "return respelled(taken, real)", "return Axis(real)", ("tests/test_hidden.py", "-m", "slow", "-k", "framepack and prepared_model_converts")),
    Mutant("quotient", "cols = tokens // (frames * rows) not seen", "vsa_compile/analysis/regroup.py::_pieces", "return factor.cut(sizes[:stop])", "return []", ("tests/test_random_models.py", "-k", "bare_tokens")),
    Mutant("stale dense", "no guard on dense()", BACKEND + "::_decided", "state.guard_sparsity(settings)", "", ("tests/test_schedule.py", "-k", "dense")),
    Mutant("stale step", "the backward of another step of the schedule", "vsa_compile/methods/site.py::Site.count", "self.share is None", "True", ("tests/test_schedule.py", "-k", "every_step")),
    Mutant("gate dropped", "the gate of a call not used", REWRITE + "::_edit", "None if conversion.gate is None else _gate(...)", "None", ("tests/test_gates.py", "-k", "by_hand")),
    Mutant("gate rows", "a gate of the video put before the text", REWRITE + "::_gate", "[0, 0, *around]", "[0, 0, *around[::-1]]", ("tests/test_gates.py", "-k", "by_hand")),
    Mutant("gate of another", "a gate that two calls could take", "vsa_compile/convert/gate_matching.py::_the_one", "len(found) > 1 or times[found[0]] > 1", "False", ("tests/test_gates.py", "-k", "fit")),
    Mutant("strides kept", "SDPA's strides forgotten", STRIDES + "::changed_by", "changed.intersection(inputs)", "False", (REWRITING, "-k", "copied or tell")),
    Mutant("strides viewed", "a view that fails taken for one that does not matter", STRIDES + "::changed_by", "name_of(user) in _CONTIGUOUS", "True", (REWRITING, "-k", "copied or tell")),
    Mutant("strides needless", "a copy wherever strides change", STRIDES + "::changed_by", "changed.add(user)", "return None", (REWRITING, "-k", "merge")),
    Mutant("strides aliased", "writes through what is a view in one layout alone", STRIDES + "::changed_by", "any(_shares(before, example_of(x)) or _shares(after, now[x]) for x in inputs)", "False", (REWRITING, "-k", "tell or writes")),
    Mutant("strides raw", "memory that is read as it lies", STRIDES + "::changed_by", "name_of(user) in _RAW", "False", (REWRITING, "-k", "tell or writes")),
    Mutant("strides stale", "example values that still have SDPA's strides", EDITS + "::apply", "node.meta[_key(node)] = example", "", (REWRITING, "-k", "merge")),
    Mutant("plan guards", "planning makes guards of sizes", DYNAMO + "::on_examples", "environment.suppress_guards()", "nullcontext()", ("tests/test_compiler.py", "-k", "any_sequence")),
    Mutant("half done", "an edit that fails leaves what it did", EDITS + "::apply", "undo()", "", (REWRITING, "-k", "undone")),
    Mutant("swap left", "the swap of nodes not undone", EDITS + "::apply", "done.append(partial(replacement.replace_all_uses_with, edit.node))", "", (REWRITING, "-k", "undone")),
    Mutant("failure raised", "a failure of ours ends the model", BACKEND + "::_harmless", "if settings.fallback == 'error':\n    ...", "raise", ("tests/test_backend.py", "-k", "failure")),
    Mutant("refused late", "fallback=error does not see what the rewrite refuses", BACKEND + "::convert", "_refuse_if_asked(...)", "", (REWRITING, "-k", "asked")),
    Mutant("gate outside", "a gate of another graph", REWRITE + "::_gate", "gate.graph is not conversion.call.node.graph", "False", (REWRITING, "-k", "asked")),
    Mutant("signature", "an exported program's outputs under old names", BACKEND + "::convert_exported", "_name_outputs(program)", "", (REWRITING, "-k", "another_process")),
    Mutant("schedule out", "a schedule in a program for other processes", BACKEND + "::convert_exported", "isinstance(settings.sparsity, SparsitySchedule)", "False", (REWRITING, "-k", "bad_options")),
    Mutant("wrapped", "errors of ours wrapped by Dynamo", DYNAMO + "::unwrapped", "raise _passing(error) from error.__cause__", "raise", ("tests/test_backend.py", "-k", "as_it_is or fallback")),
    Mutant("checked late", "options checked when the model first runs", BACKEND, "torch_compat.check_in_compile(...)", "", ("tests/test_backend.py", "-k", "itself")),
    Mutant("half a size", "a symbol of which an exported input has a multiple", REWRITE + "::_Sizes._symbol", "slope != 1", "False", ("tests/test_backend.py", "-k", "symbolic")),
    Mutant("start", "video among keys starts at 0", REWRITE + "::_edit", "conversion.kv_start", "0", ("tests/test_backend.py", "tests/test_random_models.py")),
)  # fmt: skip

PLAIN_MUTANTS = (
    Mutant("plain grid", "last programs not launched", LAUNCH + "::prepared", "(a + b - 1) // b", "a // b", PLAIN),
    Mutant("plain width", "32-bit offsets past 2^31", LAUNCH, "_FARTHEST = 2**31 - 1", "_FARTHEST = 2**31", PLAIN_QUICK),
    Mutant("plain numbers", "sizes for strides", LAUNCH + "::_measure", 'number.what == "size"', "number.what", PLAIN),
    Mutant("plain cache", "constants not in the key", LAUNCH + "::prepared", "tuple(constants.items())", "tuple(dict.fromkeys(constants, False).items())", PLAIN),
    Mutant("args unchecked", "a wrong shape reaches the kernel", ARGS + "::takes", "call.check()", "", TEST_ARGS),
    Mutant("args devices", "another device reaches the kernel", CHECKS + "::check_devices", "len(set(devices.values())) > 1", "len(set(devices.values())) > 2", PLAIN_QUICK),
    Mutant("args packed", "a grid of the queries without their tile", ARGS + "::AttendArgs.check", "(self.q_grid is None) != (self.q_tile is None)", "False", TEST_ARGS),
    Mutant("args start", "a video that ends behind its tokens", ARGS + "::AttendArgs._check_start", "surely_true(start + video > tokens)", "surely_true(start > tokens)", TEST_ARGS),
    Mutant("args backward", "a gradient of another shape is read", ARGS + "::BackwardArgs.check", "check_shape(name, x, (batch, tokens, heads, width))", "", TEST_ARGS),
    Mutant("args lse", "log-sum-exps of another type are read", ARGS + "::BackwardArgs.check", 'check_type("lse", self.lse, lse_dtype(q.dtype))', "", TEST_ARGS),
    Mutant("lists unchecked", "lists are not looked at", ARGS + "::takes", "call.check_values()", "", TEST_ARGS),
    Mutant("lists repeated", "an id twice is taken", ARGS + "::AttendArgs.check_values", "tiles[..., 1:] > tiles[..., :-1]", "tiles[..., 1:] >= tiles[..., :-1]", TEST_ARGS),
    Mutant("lists range", "an id beyond all tiles is taken", ARGS + "::AttendArgs.check_values", "tiles < total", "tiles <= total", TEST_ARGS),
    Mutant("lists width", "a count beyond the width is taken", ARGS + "::AttendArgs.check_values", "counts <= width", "counts > -9", TEST_ARGS),
    Mutant("lists junk", "what follows the count is looked at", ARGS + "::AttendArgs.check_values", "good | (place >= counts[..., None])", "good", TEST_ARGS),
    Mutant("lists shared", "shared lists are looked at once a head", ARGS + "::AttendArgs.check_values", "_shared(self.tiles)", "self.tiles", TEST_ARGS),
    Mutant("eager threads", "an operator defined by two threads", EAGER + "::operator", "with _making:\n    return _operator(name)", "return _operator(name)", PLAIN_QUICK),
    Mutant("two builds", "two threads build one library", "vsa_compile/ops/cpu/loader.py::_build", "with _building:\n    torch_compat.load_cpp(...)", "torch_compat.load_cpp(source(variant), flags(variant))", (*CPP_CALLS, "-k", "at_once")),
    Mutant("no triton", "who has no triton is asked for a trace", EAGER + "::_warn", 'error.name == "triton"', 'error.name == "triton" and False', PLAIN_QUICK),
    Mutant("doctor without triton", "triton is missed where there is no GPU", "vsa_compile/tools/doctor.py::_versions", "triton is None and has_gpu", "triton is None", ("tests/test_doctor.py", "-k", "missed")),
    Mutant("eager failure", "kernels that fail are tried again", EAGER + "::_run", "_broken.add(name)", "", PLAIN_QUICK),
    Mutant("eager memory", "a lack of memory becomes ATen", EAGER + "::_run", "torch.OutOfMemoryError", "ZeroDivisionError", PLAIN_QUICK),
    Mutant("eager silence", "ATen runs unsaid", EAGER + "::_run", "_say_once(name, reason)", "", PLAIN_QUICK),
)  # fmt: skip

GRAPHS = ("tests/test_gpu_graphs.py",)
GRAPH_MUTANTS = (
    Mutant("epilogue", "gate and coarse added head by head, which takes a copy", METHOD + "::_add_gated", "return fine + gate * coarse", "return (fine.transpose(1, 2) + gate.transpose(1, 2) * coarse.transpose(1, 2)).transpose(1, 2)", GRAPHS),
    Mutant("strides", "the keys copied to be contiguous", "vsa_compile/ops/gpu/attend.py::lower", "[q, args.k, args.v, lse, ...]", "[q, target.contiguous(args.k), args.v, lse, args.tiles, args.counts, *call.trailing_inputs()]", GRAPHS),
    Mutant("counts of tiles", "the gradient of a mean in a pass of its own", SITE + "::Site.tile_means", "counts = counts.as_strided(counts.shape, counts.stride())", "", GRAPHS),
    Mutant("epilogue last", "the gradient of v's means in another kernel", BACKEND + "::_compiled", "patches.setdefault(...)", "", GRAPHS),
    Mutant("share on host", "the share of a schedule read on the CPU", SITE + "::Site.count", "self.share.unbind()", "self.share.cpu().to(self.share.device).unbind()", GRAPHS),
    Mutant("share late", "the share of a schedule allocated by a run", BACKEND + "::_decided", "state.place_share(...)", "", (*GRAPHS, "-k", "share")),
    Mutant("grid of programs", "how many programs a kernel has is known to Python alone", "vsa_compile/torch_compat/inductor.py::triton_template", "SymbolicGridFn(launch_grid)", "launch_grid", GRAPHS),
    Mutant("docstrings", "quotes that end what cpp_wrapper writes kernels into", "vsa_compile/ops/gpu/templates.py::Template.source", "re.sub(...)", "text", GRAPHS),
)  # fmt: skip

MUTANTS = KERNEL_MUTANTS + METHOD_MUTANTS + COMPILER_MUTANTS + PLAIN_MUTANTS + GRAPH_MUTANTS


def main() -> int:
    parser = argparse.ArgumentParser(description="Put faults into the sources; tests must notice each.")
    parser.add_argument("names", nargs="*", help="faults to run, such as F4; all if none is named")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    for mutant in [
        mutant for mutant in chosen if mutant.needs not in torch.backends.cpu.get_cpu_capability()
    ]:
        print(f"{mutant.name:18} {mutant.what:52}    -   not compiled here: needs {mutant.needs}")
        chosen.remove(mutant)
    started, survivors = time.monotonic(), []
    for mutant, noticed, seconds in run_all(chosen, arguments.jobs):
        if noticed is None:
            survivors.append(mutant.name)
        print(f"{mutant.name:18} {mutant.what:52} {seconds:4.0f} s  {noticed or 'SURVIVED'}", flush=True)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} faults noticed in {minutes:.0f} minutes")
    if survivors:
        print(f"not noticed: {', '.join(survivors)}")
    return len(survivors)


if __name__ == "__main__":
    sys.exit(main())
