"""What limits the forward kernel: it is timed beside versions of itself that lack a part of its work.

    python benchmarks/ceilings.py [--quick] [--repeats N] [--device cuda:0] [--json PATH]

    full        the kernel as it is, without what Inductor would fuse into it
    loads only  no matrix product: keys and values are loaded, and added up
    dots only   no load in the loop: every step multiplies with the first listed tile
    no exp      the kernel with a line in the place of the exponential

They alternate with each other and with plain reads of what the L2 cache holds, so that the clock rate falls
on all alike. 32x32x32 tokens, 16 heads, tiles of 4x4x4, bf16, density 12.5 %, random data. Needs a GPU:
without one the exit status is 2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from attention_cpu import RESULTS
from torch import Tensor

from vsa_compile.grid import Grid, TileGrid
from vsa_compile.ops.args import AttendArgs
from vsa_compile.ops.gpu import attend, launch, render
from vsa_compile.ops.gpu.configs import has_tma
from vsa_compile.tools.bench.clock import Clock, Spread, Task
from vsa_compile.tools.bench.lists import Lists, make_lists, pairs
from vsa_compile.tools.bench.setting import setting

GRID, TILE, HEADS, DENSITY = Grid(32, 32, 32), (4, 4, 4), 16, 0.125
WIDTHS, KINDS = (64, 128), ("random", "local", "same")
READS = ("tensor maps", "pointers")
SHAPES = {"grid": GRID, "tile": TILE, "heads": HEADS, "density": DENSITY, "dtype": "bfloat16"}


# --- The variants ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """The kernel with some of its text exchanged: (right, wrong), each of which it says once."""

    edits: tuple[tuple[str, str], ...] = ()

    def of(self, source: render.Source) -> render.Source:
        """Raises ValueError where the kernel no longer says what is to be exchanged."""
        text = source.text
        for right, wrong in self.edits:
            if text.count(right) != 1:
                raise ValueError(
                    f"the kernel says {text.count(right)} times {right!r}: adapt this edit to it"
                )
            text = text.replace(right, wrong)
        return source._replace(text=text)


_LOOP = "    for step in range(0, count * (SLOTS // BLOCK_K)):\n"
_TILE = "        tile = tl.load(listed + step // (SLOTS // BLOCK_K) * stride_tk)\n"
_LOADS = """        if TMA:
            part = step % (SLOTS // BLOCK_K)
            k = load_box(k_boxes, kv_head, tile, part, rows, cols, D_PADDED, BLOCK_K, TILE_F, TILE_R, TILE_C)
            v = load_box(v_boxes, kv_head, tile, part, rows, cols, D_PADDED, BLOCK_K, TILE_F, TILE_R, TILE_C)
        else:
            k = load_rows(keys, key, key_real, stride_kn, stride_kd, D, D_PADDED, ALL_REAL)
            v = load_rows(values, key, key_real, stride_vn, stride_vd, D, D_PADDED, ALL_REAL)
"""
_STEP = """        acc, row_max, row_sum = softmax_step(
            q, k, v, masked, key_real[None, :], acc, row_max, row_sum, SCALE, PRECISION, ALL_REAL
        )
"""
_FIRST_TILE = f"""    step = 0
    tile = tl.load(listed)
    key, key_real = box_tokens(tile, column, frames, rows, cols, TILE_F, TILE_R, TILE_C)
    key = (key + kv_start).to(INDEX_DTYPE)
    masked = False
{textwrap.indent(textwrap.dedent(_LOADS), "    ")}"""
_SCORES = "scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)\n    if not ALL_REAL:\n"

# Added in their own type, one instruction for each, where fp32 would need a conversion besides. Where no
# product waits for a load, it is pipelined only on request.
_LOADS_ONLY = (
    (
        _LOOP,
        "    kept = tl.zeros([BLOCK_K, D_PADDED], dtype=K.dtype.element_ty)\n"
        "    for step in tl.range(0, count * (SLOTS // BLOCK_K), num_stages=2):\n",
    ),
    (_LOADS + _STEP, _LOADS + "        kept += k + v\n    acc += kept\n"),
)
# The scores start from a 0 that depends on the step, or the compiler would compute them once.
_DOTS_ONLY = (
    (_LOOP + _TILE, _FIRST_TILE + _LOOP + "        zero = tl.minimum(step, 0).to(tl.float32)\n"),
    (_LOADS + _STEP, _STEP.replace("q, k, v,", "q, k, v, zero,")),
    ("def softmax_step(\n    q, k, v,", "def softmax_step(\n    q, k, v, zero,"),
    (
        _SCORES,
        "scores = tl.zeros([q.shape[0], k.shape[0]], dtype=tl.float32) + zero\n    "
        + _SCORES.replace("tl.trans(k),", "tl.trans(k), scores,"),
    ),
)
_NO_EXP = (
    ("tl.exp2(row_max - anchor)", "tl.maximum(1.0 + (row_max - anchor) * 0.015625, 0.0)"),
    ("tl.exp2(scores * SCALE - anchor[:, None])", "1.0 + (scores * SCALE - anchor[:, None]) * 0.015625"),
)
VARIANTS = {
    "full": Variant(),
    "loads only": Variant(_LOADS_ONLY),
    "dots only": Variant(_DOTS_ONLY),
    "no exp": Variant(_NO_EXP),
}


def forward(
    q: Tensor, k: Tensor, v: Tensor, lists: Lists, grid: Grid = GRID, maps: bool = False
) -> launch.Launch:
    """The launch of vsa_compile::attend's kernel on q, k and v (1, H, N, D); nothing runs.

    maps: it reads tiles through tensor maps, if the GPU can.
    """
    launches: list[launch.Launch] = []

    def keep(*arguments: Any, **facts: Any) -> launch.TensorIR:
        launches.append(launch.prepared(*arguments, **facts))
        return launch.TensorIR(launches[-1].arguments[render.OUTPUT])

    ir = SimpleNamespace(**{**vars(launch), "template_buffer": keep, "has_tensor_map": lambda _: maps})
    args = AttendArgs(q, k, v, lists.tiles, lists.counts, grid, TILE, 0, 0, None, q.shape[-1] ** -0.5)
    attend.lower(ir, launch.as_ir(args))
    return launches[0]


# --- The L2 cache ---------------------------------------------------------------------------------

_READ = '''import triton
import triton.language as tl


@triton.jit
def vsa_l2_read(X, OUTPUT, blocks, rounds, BLOCK: tl.constexpr):
    """X [blocks * BLOCK] int32: every program reads it from a block of its own on, past the L1 cache."""
    within = tl.arange(0, BLOCK)
    kept = tl.zeros([BLOCK], dtype=tl.int32)
    for step in range(0, rounds):
        block = (tl.program_id(0) + step) % blocks
        kept ^= tl.load(X + block * BLOCK + within, cache_modifier=".cg")
    tl.store(OUTPUT + tl.program_id(0) * BLOCK + within, kept)
'''
L2_READ = render.Source("vsa_l2_read", _READ, inputs=("X",), numbers=(), constants=("BLOCK",))
BLOCK, ROUNDS = 4096, 512  # int32 numbers of a step, steps of a program


def l2_read(device: torch.device) -> tuple[Task, int]:
    """Reads of a quarter of the L2 cache, over and over; how many bytes they are."""
    facts = torch.cuda.get_device_properties(device)
    blocks, programs = facts.L2_cache_size // 4 // (4 * BLOCK), 8 * facts.multi_processor_count
    x = torch.randint(2**31 - 1, (blocks * BLOCK,), dtype=torch.int32, device=device)
    out = torch.empty(programs * BLOCK, dtype=torch.int32, device=device)
    kernel: Any = render.load(L2_READ)
    task = Task(lambda _: kernel[(programs,)](x, out, blocks, ROUNDS, BLOCK=BLOCK, num_warps=8))
    return task, 4 * BLOCK * ROUNDS * programs


# --- Measuring ------------------------------------------------------------------------------------


def tasks(ready: launch.Launch) -> dict[str, Task]:
    """Every variant of a launch."""

    def task(kernel: Any) -> Task:
        return Task(lambda _: kernel[ready.grid](**ready.arguments))

    return {name: task(render.load(variant.of(ready.source))) for name, variant in VARIANTS.items()}


def measure(clock: Clock, width: int, kind: str, reads: str, repeats: int) -> list[dict[str, Any]]:
    """A row for every variant, and one for reads of the L2 cache. reads: of READS, how tiles are read."""
    boxes, device = TileGrid(GRID, TILE), clock.device
    source = torch.Generator(device).manual_seed(0)
    shape = (3, 1, GRID.tokens, HEADS, width)
    made = torch.randn(shape, generator=source, device=device, dtype=torch.bfloat16)
    lists = make_lists(kind, DENSITY, boxes, HEADS, device)
    q, k, v = made.transpose(2, 3).unbind(0)
    timed = tasks(forward(q, k, v, lists, maps=reads == READS[0]))
    timed["L2 read"], read = l2_read(device)
    for task in timed.values():
        clock.warm_up(task)
    attended = pairs(lists, boxes)
    # A tile of queries loads each of its keys, and its value: 2 bytes a number.
    loaded = 2 * 2 * width * attended // boxes.tile_tokens

    def row(name: str, spread: Spread) -> dict[str, Any]:
        multiplies, loads = name not in ("loads only", "L2 read"), name != "dots only"
        moved = read if name == "L2 read" else loaded
        return {
            "width": width,
            "lists": kind,
            "tiles": reads,
            "variant": name,
            **asdict(spread),
            "tflops": 4 * width * attended / spread.median_ms / 1e9 if multiplies else None,
            "tb_per_s": moved / spread.median_ms / 1e9 if loads else None,
        }

    return [row(name, spread) for name, spread in clock.measure(timed, repeats).items()]


HEADER = "| D | lists | tiles by | variant | ms | TFLOP/s | TB/s loaded |\n|--:|---|---|---|--:|--:|--:|"


def line(row: dict[str, Any]) -> str:
    """A row of the table under HEADER."""
    rates = ("" if row[rate] is None else f"{row[rate]:.4g}" for rate in ("tflops", "tb_per_s"))
    cells = (row["width"], row["lists"], row["tiles"], row["variant"], f"{row['median_ms']:.4g}", *rates)
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="D 64, random lists, 3 repeats")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda", 0))
    parser.add_argument("--json", type=Path, default=RESULTS / "ceilings_cuda.json")
    options = parser.parse_args()
    if options.device.type != "cuda" or not torch.cuda.is_available():
        print("benchmarks/ceilings.py needs a CUDA GPU, and torch finds none here.", file=sys.stderr)
        return 2
    torch.cuda.set_device(options.device)
    import triton

    # Tensor maps need memory of the launch. This process is ours; that of a user is not.
    triton.set_allocator(
        lambda size, _align, _stream: torch.empty(size, dtype=torch.int8, device=options.device)
    )
    every = list(itertools.product(WIDTHS, KINDS, READS if has_tma(options.device) else READS[1:]))
    facts, clock, rows = setting(options.device), Clock(options.device), []
    repeats = 3 if options.quick else options.repeats
    print(HEADER)
    for width, kind, reads in every[:1] if options.quick else every:
        found = measure(clock, width, kind, reads, repeats)
        print(*map(line, found), sep="\n", flush=True)
        rows += found
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps({**facts, "shapes": SHAPES, "repeats": repeats, "rows": rows}, indent=2) + "\n"
    )
    print(f"wrote {options.json}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
