"""How long the analysis of a whole model's graph takes, and with it the decisions and the rewrite.

    python benchmarks/analysis_time.py [--repeats 5] [--json PATH]

HunyuanVideo with its real depth, 20 blocks of two streams and 40 of one, and narrow layers with random
weights: the number of nodes is that of the real model. Once with constant sizes, once with symbolic ones.
Dynamo's capture is not counted.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from attention_cpu import RESULTS

import vsa_compile
from vsa_compile.analysis import analyse
from vsa_compile.convert.judge import Conversion
from vsa_compile.tools.bench.setting import setting


def transformer() -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.HunyuanVideoTransformer3DModel(
        num_layers=20, num_single_layers=40, num_refiner_layers=2, num_attention_heads=2,
        attention_head_dim=16, in_channels=4, out_channels=4, mlp_ratio=2.0, text_embed_dim=24,
        pooled_projection_dim=20, rope_axes_dim=(4, 6, 6), guidance_embeds=True,
    )  # fmt: skip


def inputs(frames: int, rows: int, cols: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, frames, 2 * rows, 2 * cols),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 8, 24),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "pooled_projections": torch.randn(1, 20),
        "guidance": torch.tensor([6.0]),
        "return_dict": False,
    }


def captured(model: torch.nn.Module, dynamic: bool) -> torch.fx.GraphModule:
    """The one graph that Dynamo hands to a backend."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(module: torch.fx.GraphModule, _: list) -> Callable:
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=keep, dynamic=dynamic)(**inputs(3, 4, 5))
    (graph,) = graphs
    return graph


def measure(graph: torch.fx.GraphModule, repeats: int) -> dict[str, Any]:
    """The first and the median of each; the very first starts with empty caches, as a user's does."""
    settings, decided = vsa_compile.Options.read({"min_tokens": 0, "sparsity": 0.5}), []

    def everything(fresh: torch.fx.GraphModule) -> None:
        decided[:] = vsa_compile.backend.convert(fresh, settings)

    row: dict[str, Any] = {"nodes": len(graph.graph.nodes)}
    for name, run in (("all", everything), ("analysis", analyse)):
        times = [seconds(run, copy.deepcopy(graph)) for _ in range(repeats)]
        row |= {f"{name}_first_s": times[0], f"{name}_median_s": statistics.median(times)}
    return row | {"sites": sum(isinstance(decision, Conversion) for decision in decided)}


def seconds(run: Callable[[torch.fx.GraphModule], object], graph: torch.fx.GraphModule) -> float:
    """Of the processor. Garbage that others left is collected before, not within."""
    gc.collect()
    start = time.process_time()
    run(graph)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS / "analysis_time.json")
    options = parser.parse_args()

    model, rows = transformer(), []
    print("| sizes | nodes | sparse | analysis, s | with decisions and rewrite, s |")
    print("|---|--:|--:|--:|--:|")
    for sizes in ("constant", "symbolic"):
        row = measure(captured(model, sizes == "symbolic"), options.repeats)
        rows.append({"sizes": sizes, **row})
        times = f"{row['analysis_median_s']:.2f} | {row['all_median_s']:.2f}"
        print(f"| {sizes} | {row['nodes']:,} | {row['sites']} | {times} |", flush=True)
    options.json.write_text(
        json.dumps({**setting(), "repeats": options.repeats, "rows": rows}, indent=2) + "\n"
    )
    print(f"wrote {options.json}")


if __name__ == "__main__":
    main()
