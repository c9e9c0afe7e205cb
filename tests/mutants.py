"""Seeded faults: one to three wrong lines each, every one of which some test must notice.

    make mutants            runs them all, and prints which test noticed each; a survivor fails
    python tests/mutants.py F4 F21

A fault is put into a copy of the package, and the tests that should notice it run there. F1 to F30 are
what sparse attention kernels and their compilers were found to get wrong; the faults of the Triton template
are in gpu_offline/faults.py, and run on every test run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("vsa_compile", "templates", "tests", "examples", "docs", "pyproject.toml", "CONTRIBUTING.md")


@dataclass(frozen=True)
class Mutant:
    """`right` occurs once in `file` (from the root) and becomes `wrong`; `tests` are pytest's arguments."""

    name: str
    what: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]

    def put_into(self, root: Path) -> None:
        path = root / self.file
        text = path.read_text()
        if text.count(self.right) != 1:
            raise AssertionError(
                f"{self.name}: {self.file} says {self.right!r} {text.count(self.right)} times, not once; "
                "adapt this fault to it"
            )
        path.write_text(text.replace(self.right, self.wrong))


ATTEND = ("tests/test_attend.py", "tests/test_attend_relations.py")
CPP, CPP_FP32 = (*ATTEND, "-k", "cpp"), (*ATTEND, "-k", "cpp-float32")
ATEN = (*ATTEND, "-k", "aten and not cuda")
SELECT = ("tests/test_select.py", "-k", "not cuda")
FUNCTIONAL = ("tests/test_functional.py", "tests/test_aten.py")
SITES = ("tests/test_sites.py", "tests/test_rules.py", "tests/test_random_models.py")
CALL, FORWARD, BACKWARD, LANES, KERNEL = (
    f"vsa_compile/ops/cpu/{name}" for name in ("call.h", "forward.h", "backward.h", "lanes.h", "kernel.cpp")
)
PYTHON_CPU, PYTHON_ATEN, OPS = (
    "vsa_compile/ops/cpu/__init__.py",
    "vsa_compile/ops/aten.py",
    "vsa_compile/ops/schema.py",
)
METHOD, SITE, SITES_PY = (
    "vsa_compile/methods/method.py",
    "vsa_compile/methods/site.py",
    "vsa_compile/convert/judge.py",
)
PRUNE, RULES, DIGEST = (f"vsa_compile/methods/{name}.py" for name in ("prune", "select", "source_digest"))
EAGER, LAUNCH = "vsa_compile/ops/gpu/eager.py", "vsa_compile/ops/gpu/launch.py"
PLAIN = ("tests/test_plain_kernels.py", "-k", "not same_bits")
PLAIN_QUICK = ("tests/test_plain_kernels.py", "-m", "quick")
ARGS, CHECKS, TEST_ARGS = "vsa_compile/ops/args.py", "vsa_compile/ops/checks.py", ("tests/test_args.py",)
REWRITE, BACKEND = "vsa_compile/convert/rewrite.py", "vsa_compile/backend.py"

KERNEL_MUTANTS = (
    Mutant("F1", "pad off by one", FORWARD, "to + n * columns, columns, -kInf", "to + (n - 1) * columns, columns, -kInf", CPP),
    Mutant("F1 aten", "pad off by one", PYTHON_ATEN, "real[slot] = True", "real[slot[:-1]] = True", ATEN),
    Mutant("F2", "pad not masked in K", FORWARD, "if (keys.rows(g) > n) std::fill_n", "if (keys.rows(g) < n) std::fill_n", CPP),
    Mutant("F2 aten", "pad not masked in K", PYTHON_ATEN, "self.tiling.real[ids].flatten(1)", "self.tiling.real[ids].flatten(1) | listed.repeat_interleave(self.tiling.real.shape[1], 1)", ATEN),
    Mutant("F2 backward", "pad not masked in K", BACKWARD, "std::fill_n(scores.get() + n * columns, columns, -kInfinity);", "", CPP),
    Mutant("F3", "V load unmasked", LANES, "std::fill(to + groups.size(g) * c.width, to + padded * c.width, 0.f);", "", CPP),
    Mutant("F3 aten", "V load unmasked", PYTHON_ATEN, "video.new_zeros(batch", "video.new_empty(batch", ATEN),
    Mutant("F4", "one wrong tile", CALL, "clamp<int64_t>(ids[i], 0", "clamp<int64_t>(ids[i] + (i == 2), 0", CPP_FP32),
    Mutant("F4 aten", "one wrong tile", PYTHON_ATEN, "[units].long().clamp(0, empty - 1)", "[units].long().clamp(0, empty - 1).roll(1, 0)", ATEN),
    Mutant("F5", "last tile dropped", CALL, "i < count; ++i) list.push_back", "i + 1 < std::max<int64_t>(count, 2); ++i) list.push_back", CPP_FP32),
    Mutant("F6", "tile counted twice", CALL, "for (int64_t i = 0; i < count; ++i) list", "if (count > 1) list.push_back(ids[0]);\n    for (int64_t i = 0; i < count; ++i) list", CPP_FP32),
    Mutant("F7", "rescale missing", FORWARD, "if (earlier && !same)", "if (false)", CPP_FP32),
    Mutant("F8", "scale +1 %", FORWARD, "score_factor(c.scale)", "score_factor(c.scale * 1.01)", CPP_FP32),
    Mutant("F8 bf16", "scale +1 % in bf16 alone", FORWARD, "score_factor(c.scale)", "score_factor(c.scale * (kConverts<T> ? 1.01 : 1.))", CPP),
    Mutant("F8 backward", "scale +1 %", BACKWARD, "keys, at, g, slices, grad_k, static_cast<float>(c.scale)", "keys, at, g, slices, grad_k, static_cast<float>(c.scale * 1.01)", CPP_FP32),
    Mutant("F9", "bf16 accumulator", FORWARD, "      weights += n * columns;", "      weights += n * columns;\n      for (int64_t z = 0; z < c.width * columns; ++z) out.get()[z] = BFloat16(out.get()[z]);", CPP),
    Mutant("F9 aten", "bf16 accumulator", PYTHON_ATEN, "self.wide = lse_dtype(k.dtype)", "self.wide = k.dtype", ATEN),
    Mutant("F10", "pooled mean / E", SITE, "sums / counts[:, None]", "sums / self.tiles.tile_tokens", SELECT),
    Mutant("F11", "one row zero", FORWARD, "transpose(out.get(), c.width, columns, rows.get(), c.width);", "transpose(out.get(), c.width, columns, rows.get(), c.width);\n    if (g == 1) std::fill_n(rows.get(), c.width, 0.f);", CPP_FP32),
    Mutant("F12", "one element", FORWARD, "transpose(out.get(), c.width, columns, rows.get(), c.width);", "transpose(out.get(), c.width, columns, rows.get(), c.width);\n    if (g == 1) rows.get()[5] *= 1.25f;", CPP_FP32),
    Mutant("F13", "index of another head", CALL, "int64_t row = (at.batch * c.heads + at.index) * query_tiles + g;", "int64_t row = (at.batch * c.heads) * query_tiles + g;", CPP_FP32),
    Mutant("F13 aten", "keys of another head", PYTHON_ATEN, "head % heads // (heads // self.kv_heads)", "head % self.kv_heads", ATEN),
    Mutant("F14", "batch stride ignored", LANES, "at.batch * view.batch + at.index", "at.index", CPP_FP32),
    Mutant("F14 padding", "key padding of the first batch", CALL, "keys.size() == 1 ? 0 : b", "0 * b", CPP_FP32),
    Mutant("F15", "int32 offset", LANES, "int64_t offset = at.batch", "int32_t offset = at.batch", ("tests/test_cpu_kernel.py", "-k", "offsets")),
    Mutant("F16", "LSE base 2 for e", FORWARD, "kLn2 * highest[i]", "highest[i]", CPP_FP32),
    Mutant("F16 backward", "LSE base 2 for e", BACKWARD, "static_cast<float>(value * kLog2e)", "value", CPP_FP32),
    Mutant("F17", "dK misses the last query of a partial tile", BACKWARD, "int64_t even = round_up(n, 2), pairs = round_up(queries, 2)", "int64_t even = round_up(n, 2), pairs = queries / 2 * 2", CPP_FP32),
    Mutant("F18", "delta in bf16", BACKWARD, "dot(rows.get() + i * c.width, turned.get() + i * c.width);", "BFloat16(dot(rows.get() + i * c.width, turned.get() + i * c.width));", CPP),
    Mutant("F18 sign", "delta added", BACKWARD, "_mm512_sub_ps(grad, mean)", "_mm512_add_ps(grad, mean)", CPP_FP32),
    Mutant("F20", "tiles to tokens by position, not by the inverse", PYTHON_ATEN, "boxes.flatten(2, 3).index_select(2, self.slot)", "boxes.flatten(2, 3)[:, :, : self.slot.numel()].clone()", ATEN),
    Mutant("F20 coarse", "coarse rows to tokens by position", SITE, "boxed = boxed.expand(-1, -1, t_f, -1, t_r, -1, t_c, -1, -1)", "boxed = boxed.expand(-1, -1, t_f, -1, t_c, -1, t_r, -1, -1)", SELECT),
    Mutant("F21", "rows and cols swapped", CALL, "(f * video.grid[1] + r) * video.grid[2] + x", "(f * video.grid[2] + r) * video.grid[1] + x", CPP_FP32),
    Mutant("F26", "a row that sees nothing is NaN", FORWARD, "__m512 reference = _mm512_maskz_mov_ps(any, now);", "__m512 reference = now;", CPP_FP32),
    Mutant("F26 division", "a row that sees nothing is NaN", FORWARD, "_mm512_maskz_div_ps(any, ", "_mm512_div_ps(", CPP_FP32),
    Mutant("F29", "ties to the highest id", KERNEL, "<< 32 | i;", "<< 32 | (tiles - 1 - i);", SELECT),
    Mutant("F29 aten", "ties in any order", PYTHON_ATEN, "descending=True, stable=True", "descending=True, stable=False", SELECT),
    Mutant("F30", "a padding row written over a neighbour", FORWARD, "scatter(c, c.out, at, groups, g, rows.get());", "scatter(c, c.out, at, groups, g, rows.get());\n    if (groups.size(g) % 2 && g + 1 < groups.count()) with_head(c, c.out, at, [&](auto* to) { copy_row(rows.get(), c.width, to + groups.tokens(g + 1)[0] * c.out.token); });", CPP_FP32),
    Mutant("F30 backward", "scratch read before it is written", BACKWARD, "std::fill_n(grad_q.get(), c.width * columns, 0.f);", "", CPP_FP32),
)  # fmt: skip

BSA, METHODS = ("tests/test_bsa.py", "-k", "not backend and not symbolic"), ("tests/test_methods.py",)
METHOD_MUTANTS = (
    Mutant("window", "rows and cols of windows swapped", PRUNE, "shape[axis], shape[3 + axis] = n, extent\n            token", "shape[(0, 2, 1)[axis]], shape[3 + axis] = n, extent\n            token", BSA),
    Mutant("centre", "the first token taken for the middle", PRUNE, 'if centre == "middle" else', 'if centre == "first" else', BSA),
    Mutant("most alike", "the most alike queries kept", PRUNE, "alike = (wide * wide.index_select(2, centres)).sum(-1)", "alike = -(wide * wide.index_select(2, centres)).sum(-1)", BSA),
    Mutant("length", "similarity not by angle", PRUNE, "alike / wide.norm(dim=-1).clamp(min=limit.tiny)", "alike", BSA),
    Mutant("fill", "a dropped query takes its neighbour's output", PRUNE, "slots))[:, :, 0]", "slots))[:, :, -1]", BSA),
    Mutant("border", "repeated centres weigh in a border window's mean", PRUNE, "box_sums(packed * weight, self.raster) / box_sums(weight[None, None], self.raster)", "box_sums(packed, self.raster) / box_sums(torch.ones_like(weight)[None, None], self.raster)", BSA),
    Mutant("work", "the keys are as sparse as if no query were pruned", PRUNE, "(1 - Fraction(str(site.sparsity))) / share)", "(1 - Fraction(str(site.sparsity))))", BSA),
    Mutant("anneal", "the count does not know of dropped queries", PRUNE, "part * share.denominator", "part * share.numerator", BSA),
    Mutant("packed lists", "lists of packed queries by the number of key tiles", CALL, "* query_tiles + g;", "* tiles + g;", BSA),
    Mutant("packed aten", "packed queries cut by the keys' tiles", PYTHON_ATEN, "boxes = keys.query_tiling.to_tiles(q)", "boxes = keys.tiling.to_tiles(q)", BSA),
    Mutant("quantile", "the sample's deviation for the population's", RULES, "torch.var_mean(scores, -1, correction=0)", "torch.var_mean(scores, -1, correction=1)", METHODS),
    Mutant("equal scores", "a row of equal scores below its own mean", RULES, "* variance.sqrt() - rounding", "* variance.sqrt() + rounding", BSA),
    Mutant("mass", "one tile too few", RULES, "best.where(before < self.mass, torch.inf)", "best.where(before + weights < self.mass, torch.inf)", METHODS),
    Mutant("slide", "boxes cut at the border, not pushed inside", RULES, "first = first.minimum(first * 0 + n - extent)", "", METHODS),
    Mutant("overlap", "a query tile's last key tile is not its own", RULES, "(key < start + box) & (key + tile > start)", "(key < start + box - 1) & (key + tile > start)", METHODS),
    Mutant("closure", "closure values have no part in the digest", DIGEST, "_collect(cell.cell_contents, parts, seen)", "pass", METHODS),
    Mutant("helpers", "helpers have no part in the digest", DIGEST, "        _collect(function.__globals__[name], parts, seen)", "        pass", METHODS),
)  # fmt: skip

COMPILER_MUTANTS = (
    Mutant("F19", "gradient to the gate dropped", METHOD, "_add_gated(fine, gate.transpose(1, 2)", "_add_gated(fine, gate.detach().transpose(1, 2)", FUNCTIONAL),
    Mutant("F21 pass", "rows and cols swapped", REWRITE, "for size in site.grid]", "for size in (site.grid[0], site.grid[2], site.grid[1])]", SITES),
    Mutant("F21 stale", "the example's grid baked into the graph", SITES_PY, "return Site(call, name, segments, grid, q_start,", "return Site(call, name, segments, Grid(*map(analysis.hint, grid)), q_start,", ("tests/test_backend.py", "tests/test_compiler.py")),
    Mutant("F22", "node.meta not copied", REWRITE, "    new.meta = dict(node.meta)\n    example", "    new.meta = {}\n    example", ("tests/test_backend.py",)),
    Mutant("F23", "sources missing from the cache key", BACKEND, "    return digest.digest()", "    return b'the same'", ("tests/test_cache.py", "tests/test_cache_sources.py")),
    Mutant("F23 pass", "no key of ours in Inductor's", BACKEND, "patches[own] = torch_compat.keyed_pass", "patches or torch_compat.keyed_pass", ("tests/test_cache.py", "tests/test_cache_sources.py")),
    Mutant("F24", "fake with wrong strides", ARGS, "    return x.new_empty((batch, tokens, heads, width))", "    return x.new_empty((batch, heads, tokens, width)).transpose(1, 2)", ("tests/test_aten.py",)),
    Mutant("F25", "scores of the coarse part detached", METHOD, "(q, k) if gate is not None else (q.detach(), k.detach())", "(q.detach(), k.detach())", FUNCTIONAL),
    Mutant("F27", "refusals counted as conversions", BACKEND, 'table["refused"] += 1', 'table["converted"] += 1', ("tests/test_backend.py",)),
    Mutant("F28", "the grid of another video", SITES_PY, "return max(shared, key", "return min(shared, key", SITES),
    Mutant("cross", "cross-attention taken for self-attention", SITES_PY, "if q.grid and k.grid and same_tokens(q.axis, k.axis)", "if q.grid and k.grid", SITES),
    Mutant("mask", "a mask on video keys ignored", SITES_PY, "if not all_true(analysis, mask, start, stop):", "if False:", SITES),
    Mutant("raster", "axes in any order taken for a grid", "vsa_compile/analysis/tokens.py", "p[0] < p[1] < p[2]", "len({*p}) == 3", SITES),
    Mutant("dropout", "dropout ignored", SITES_PY, 'if _constant(arguments, "dropout_p"):', "if False:", SITES),
    Mutant("causal", "causal ignored", SITES_PY, 'if _constant(arguments, "is_causal"):', "if False:", SITES),
    Mutant("scale", "the call's own scale ignored", SITES_PY, 'scale = _constant(arguments, "scale")', "scale = None", ("tests/test_backend.py", "tests/test_random_models.py")),
    Mutant("mask text", "the mask of the text dropped", REWRITE, "    if mask is None:\n        return None\n    index", "    return None\n    index", ("tests/test_backend.py", "tests/test_random_models.py")),
    Mutant("history", "a hint read from the wrong axis", "vsa_compile/analysis/optable/views.py", "video = multiply([frames, rows, cols])", "video = multiply([frames, cols, rows])", ("tests/test_prepare.py",)),
    Mutant("stale hint", "no guard on the hinted grid", BACKEND, "        state.guard_grid()", "        pass", ("tests/test_prepare.py",)),
    Mutant("stale marker", "the grid of the call before", "vsa_compile/grids/prepare.py", "    learned.forget()\n", "", ("tests/test_prepare.py",)),
    Mutant("two tables", "a table makes two videos one", "vsa_compile/analysis/graph_facts.py", "else agree", "else unify", ("tests/test_rules.py",)),
    Mutant("witness", "a recompute under another hinted grid", ARGS, "q.new_empty((*self.grid, 0))", "q.new_empty(0)", ("tests/test_state.py", "-k", "another_hinted")),
    Mutant("padding rows", "queries that are padding left as they are", REWRITE, "    if site.query_padding:", "    if False:", ("tests/test_hidden.py", "-k", "padding")),
    Mutant("counts", "text of one mask counted twice", "vsa_compile/analysis/equal_data_sizes.py", "    return same", "    return {}", ("tests/test_hidden.py", "tests/test_rules.py")),
    Mutant("respelled", "all but the last n: another axis", "vsa_compile/analysis/optable/indexing.py", "return respelled(taken, real)", "return Axis(real)", ("tests/test_hidden.py", "tests/test_rules.py")),
    Mutant("quotient", "cols = tokens // (frames * rows) not seen", "vsa_compile/analysis/regroup.py", "return split(atom, sizes[:stop])", "return ()", ("tests/test_random_models.py", "-k", "bare_tokens")),
    Mutant("sizes proved", "sizes equal by the op, not by algebra", "vsa_compile/analysis/algebra.py", "copy.size, copy.parts = size, tuple(atoms)", "pass", ("tests/test_pipelines.py", "-k", "portrait")),
    Mutant("stale dense", "no guard on dense()", BACKEND, "        state.guard_sparsity(settings)", "        pass", ("tests/test_schedule.py", "-k", "dense")),
    Mutant("stale step", "the backward of another step of the schedule", "vsa_compile/methods/site.py", "if self.share is None:", "if True:", ("tests/test_schedule.py", "-k", "every_step")),
    Mutant("gate dropped", "the gate of a call not used", REWRITE, "(q, k, v, gate, grid,", "(q, k, v, None, grid,", ("tests/test_gates.py", "-k", "by_hand")),
    Mutant("gate rows", "a gate of the video put before the text", REWRITE, "(0, 0, *around))", "(0, 0, *around[::-1]))", ("tests/test_gates.py", "-k", "by_hand")),
    Mutant("gate of another", "a gate that two calls could take", "vsa_compile/convert/markers.py", "if len(found) > 1 or times[found[0]] > 1:", "if False:", ("tests/test_gates.py", "-k", "fit")),
    Mutant("start", "video among keys starts at 0", REWRITE, "for size in (site.q_start, site.kv_start)]", "for size in (site.q_start, 0)]", ("tests/test_backend.py", "tests/test_random_models.py")),
)  # fmt: skip

PLAIN_MUTANTS = (
    Mutant("plain grid", "last programs not launched", LAUNCH, "(a + b - 1) // b", "a // b", PLAIN),
    Mutant("plain width", "32-bit offsets past 2^31", LAUNCH, "_FARTHEST = 2**31 - 1", "_FARTHEST = 2**31", PLAIN_QUICK),
    Mutant("plain numbers", "sizes for strides", LAUNCH, 'if number.what == "size" else', 'if number.what else', PLAIN),
    Mutant("plain cache", "constants not in the key", LAUNCH, "tuple(constants.items())", "tuple(dict.fromkeys(constants, False).items())", PLAIN),
    Mutant("args unchecked", "a wrong shape reaches the kernel", ARGS, "        call.check()\n", "", TEST_ARGS),
    Mutant("args devices", "another device reaches the kernel", CHECKS, "> 1:", "> 2:", PLAIN_QUICK),
    Mutant("args packed", "a grid of the queries without their tile", ARGS, "(self.q_grid is None) != (self.q_tile is None)", "False", TEST_ARGS),
    Mutant("args start", "a video that ends behind its tokens", ARGS, "surely(start + video > tokens)", "surely(start > tokens)", TEST_ARGS),
    Mutant("args backward", "a gradient of another shape is read", ARGS, "check_shape(name, x, (batch, tokens, heads, width))", "None", TEST_ARGS),
    Mutant("args lse", "log-sum-exps of another type are read", ARGS, 'check_type("lse", self.lse, lse_dtype(q.dtype))', "None", TEST_ARGS),
    Mutant("lists unchecked", "lists are not looked at", ARGS, "        call.check_values()\n", "", TEST_ARGS),
    Mutant("lists repeated", "an id twice is taken", ARGS, "tiles[..., 1:] > tiles[..., :-1]", "tiles[..., 1:] >= tiles[..., :-1]", TEST_ARGS),
    Mutant("lists range", "an id beyond all tiles is taken", ARGS, "(tiles < total)", "(tiles <= total)", TEST_ARGS),
    Mutant("lists width", "a count beyond the width is taken", ARGS, " & (counts <= width)", "", TEST_ARGS),
    Mutant("lists junk", "what follows the count is looked at", ARGS, "good | (place >= counts[..., None])", "good", TEST_ARGS),
    Mutant("lists shared", "shared lists are looked at once a head", ARGS, "_shared(self.tiles), _shared(self.counts)", "self.tiles, self.counts", TEST_ARGS),
    Mutant("eager threads", "an operator defined by two threads", EAGER, "    with _making:\n        return", "    if True:\n        return", PLAIN_QUICK),
    Mutant("eager failure", "kernels that fail are tried again", EAGER, "            _broken.add(name)\n", "", PLAIN_QUICK),
    Mutant("eager memory", "a lack of memory becomes ATen", EAGER, "        except torch.OutOfMemoryError:\n            raise\n", "", PLAIN_QUICK),
    Mutant("eager silence", "ATen runs unsaid", EAGER, "        _say_once(name, reason)\n", "        pass\n", PLAIN_QUICK),
)  # fmt: skip

GRAPHS = ("tests/test_gpu_graphs.py",)
GRAPH_MUTANTS = (
    Mutant("epilogue", "gate and coarse added head by head, which takes a copy", METHOD, "        return fine + gate * coarse\n", "        return (fine.transpose(1, 2) + gate.transpose(1, 2) * coarse.transpose(1, 2)).transpose(1, 2)\n", GRAPHS),
    Mutant("strides", "the keys copied to be contiguous", "vsa_compile/ops/gpu/attend.py", "inputs = [q, args.k,", "inputs = [q, ir.contiguous(args.k),", GRAPHS),
    Mutant("counts of tiles", "the gradient of a mean in a pass of its own", SITE, "        counts = counts.as_strided(counts.shape, counts.stride())\n", "", GRAPHS),
    Mutant("epilogue last", "the gradient of v's means in another kernel", BACKEND, 'patches.setdefault("epilogue_fusion_first", True)', "pass", GRAPHS),
    Mutant("share on host", "the share of a schedule read on the CPU", SITE, "        part, whole = self.share.unbind()\n        return", "        part, whole = self.share.cpu().to(self.share.device).unbind()\n        return", GRAPHS),
    Mutant("share late", "the share of a schedule allocated by a run", REWRITE, "    state.place_share(options, example_of(q).device)\n", "", (*GRAPHS, "-k", "share")),
    Mutant("grid of programs", "how many programs a kernel has is known to Python alone", "vsa_compile/torch_compat/inductor.py", "grid=SymbolicGridFn(launch_grid)", "grid=launch_grid", GRAPHS),
    Mutant("docstrings", "quotes that end what cpp_wrapper writes kernels into", "vsa_compile/ops/gpu/templates.py", "return re.sub(r'^ *\"\"\".*?\"\"\"\\n', \"\", text", "return re.sub(r'^$^', \"\", text", GRAPHS),
)  # fmt: skip

MUTANTS = KERNEL_MUTANTS + METHOD_MUTANTS + COMPILER_MUTANTS + PLAIN_MUTANTS + GRAPH_MUTANTS


def run(mutant: Mutant) -> tuple[str | None, float]:
    """(the test that noticed it or None, seconds)."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, root / name)
        mutant.put_into(root)
        environment = os.environ | {"HYPOTHESIS_PROFILE": "mutants", "PYTHONPATH": folder}
        command = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests)
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode < 0:  # a wrong address may end the process before a test can fail
        return f"crash of {mutant.tests[0]}: signal {-done.returncode}", time.monotonic() - started
    if done.returncode not in (0, 1):
        raise AssertionError(
            f"{mutant.name}: pytest could not run:\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
        )
    noticed = re.search(r"^(?:FAILED|ERROR) (\S+(?: \S+)*?)(?: - |$)", done.stdout, re.M)
    if done.returncode == 1 and noticed is None:
        raise AssertionError(f"{mutant.name}: pytest failed without a failed test:\n{done.stdout[-3000:]}")
    return noticed and noticed[1], time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description="Put faults into the sources; tests must notice each.")
    parser.add_argument("names", nargs="*", help="faults to run, such as F4; all if none is named")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    survivors = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for mutant, (noticed, seconds) in zip(chosen, pool.map(run, chosen), strict=True):
            survivors += noticed is None
            print(f"{mutant.name:14} {mutant.what:48} {seconds:4.0f} s  {noticed or 'SURVIVED'}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} faults noticed")
    return survivors


if __name__ == "__main__":
    sys.exit(main())
