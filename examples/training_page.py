"""What examples/train_tiny_dit.py found, for people: docs/training.md, the plot and the animation.

Every number on the page is computed here from the JSON of the run; nothing on it is typed by hand.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsa_compile.grid import kept_tiles

Results = Mapping[str, Any]
INK = {
    "dense": "#222222",
    "annealed": "#d55e00",
    "bsa": "#009e73",
    "vsa": "#0072b2",
    "vsa_no_coarse": "#56b4e9",
}


# --- Numbers -----------------------------------------------------------------------------------------


def curves(results: Results, setup: str) -> list[list[dict[str, Any]]]:
    """One for every seed, in order."""
    return [run["curve"] for run in results["runs"] if run["setup"] == setup]


def crossing(curve: list[dict[str, Any]], key: str, at: float, wanted: str) -> float | None:
    """`wanted` where `key` first passes `at`, between two evaluations in a straight line; None if never."""
    for before, after in itertools.pairwise(curve):
        if min(before[key], after[key]) <= at <= max(before[key], after[key]):
            share = (at - before[key]) / ((after[key] - before[key]) or 1)
            return before[wanted] + share * (after[wanted] - before[wanted])
    return None


def final(curve: list[dict[str, Any]]) -> float:
    return curve[-1]["validation_loss"]


def budget(results: Results) -> int:
    """The FLOPs that every run has spent: those of the cheapest."""
    return min(run["curve"][-1]["flops"] for run in results["runs"])


def at_budget(results: Results, setup: str) -> list[float]:
    flops = budget(results)
    found = [crossing(curve, "flops", flops, "validation_loss") for curve in curves(results, setup)]
    return [loss for loss in found if loss is not None]


def reached(results: Results) -> str:
    """The sparsities of the annealed runs when they have spent the budget."""
    flops, found = budget(results), set()
    for curve in curves(results, "annealed"):
        found.add(max(entry["sparsity"] for entry in curve if entry["flops"] <= flops))
    return " or ".join(f"{sparsity:g}" for sparsity in sorted(found))


def share(results: Results, setup: str) -> str:
    """Of dense's attention FLOPs, in all."""
    ours, dense = (
        sum(curve[-1]["attention_flops"] for curve in curves(results, each)) for each in (setup, "dense")
    )
    return f"{100 * ours / dense:.0f} %"


def spread(values: list[float], digits: int = 4) -> str:
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def compare(ours: list[float], theirs: list[float]) -> str:
    """The mean difference in %, seed by seed, and whether the seeds agree on its sign."""
    parts = [100 * (a - b) / b for a, b in zip(ours, theirs, strict=True)]
    text = f"{statistics.mean(parts):+.1f} %"
    if len(parts) > 1:
        text += f" ± {statistics.stdev(parts):.1f}"
        if min(parts) < 0 < max(parts):
            text += ", seeds disagree"
    return text


def cheaper(results: Results, setup: str, key: str) -> str:
    """How many times fewer FLOPs than dense it takes to the lowest loss that both reach, for every seed."""
    ratios = []
    for curve, dense in zip(curves(results, setup), curves(results, "dense"), strict=True):
        loss = max(final(curve), final(dense))
        ours, theirs = (crossing(each, "validation_loss", loss, key) for each in (curve, dense))
        ratios.append(f"{theirs / ours:.1f}" if ours and theirs else "-")
    return ", ".join(ratios)


# --- The page ----------------------------------------------------------------------------------------


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def result_table(results: Results) -> str:
    dense_steps = [final(curve) for curve in curves(results, "dense")]
    dense_flops = at_budget(results, "dense")
    rows = []
    for setup, title in results["titles"].items():
        ends = [final(curve) for curve in curves(results, setup)]
        same = at_budget(results, setup)
        last = [curve[-1] for curve in curves(results, setup)]
        cpu = [run["cpu_seconds"] for run in results["runs"] if run["setup"] == setup]
        rows.append([
            title, spread(ends), "" if setup == "dense" else compare(ends, dense_steps),
            spread(same), "" if setup == "dense" else compare(same, dense_flops),
            f"{statistics.mean(e['attention_flops'] for e in last) / 1e12:.2f}",
            f"{statistics.mean(e['flops'] for e in last) / 1e12:.2f}", f"{statistics.median(cpu):.0f}",
        ])  # fmt: skip
    header = ["", f"loss after {results['size']['steps']} steps", "to dense",
              f"loss after {budget(results) / 1e12:.2f} TFLOP", "to dense",
              "attention TFLOP", "all TFLOP", "CPU seconds"]  # fmt: skip
    return table(header, rows)


def findings(results: Results) -> str:
    """How many setups are on which side of dense, in words."""
    sparse = [setup for setup in results["titles"] if setup != "dense"]

    def side(losses: Mapping[str, list[float]]) -> str:
        pairs = {setup: list(zip(losses[setup], losses["dense"], strict=True)) for setup in sparse}
        below = [f"*{results['titles'][setup]}*" for setup in sparse if all(a < b for a, b in pairs[setup])]
        above = [f"*{results['titles'][setup]}*" for setup in sparse if all(a > b for a, b in pairs[setup])]
        words = ((below, "below"), (above, "above"))
        return "; ".join(f"{where} dense in every seed: {', '.join(some) or 'none'}" for some, where in words)

    steps = {setup: [final(curve) for curve in curves(results, setup)] for setup in results["titles"]}
    flops = {setup: at_budget(results, setup) for setup in results["titles"]}
    return f"- After equal steps, {side(steps)}.\n- After equal FLOPs, {side(flops)}."


def claims(results: Results) -> str:
    steps = {setup: [final(curve) for curve in curves(results, setup)] for setup in results["titles"]}
    flops = {setup: at_budget(results, setup) for setup in results["titles"]}
    rows = [
        ["VSA against dense, equal FLOPs", "-5.2 % (0.13162, 0.13877) at 4.5e20; -0.1 % at 4e21",
         compare(flops["vsa"], flops["dense"])],
        ["VSA with its coarse branch against without", "-1.0 % (0.13162, 0.13296)",
         f"equal steps: {compare(steps['vsa'], steps['vsa_no_coarse'])}"],
        ["Training FLOPs to the same loss: how many times fewer than dense VSA takes", "2.53",
         cheaper(results, "vsa", "flops")],
        ["The same of attention alone", "8", cheaper(results, "vsa", "attention_flops")],
        ["Dense, then annealed, against dense, equal steps",
         "VBench 82.77 against 83.63 (a pretrained 1.3B model, fine-tuned)",
         compare(steps["annealed"], steps["dense"])],
        ["BSA against dense, equal steps", "four scores no lower at sparsity 0.93 (pretrained 1.3B)",
         compare(steps["bsa"], steps["dense"])],
    ]  # fmt: skip
    return table(["", "papers", "here"], rows)


PAGE = """\
# Training

[`examples/train_tiny_dit.py`](../examples/train_tiny_dit.py) trains a small video transformer by rectified
flow, {seeds} seeds of each setup, all through `torch.compile(model, backend="vsa")`. The model is plain
PyTorch: {layers} blocks of width {width}, {heads} heads, {grid} = {tokens:,} video tokens. Tiles of {tile}
do not divide them: there are {tiles}, and sparsity {sparsity} keeps {kept}. The data are three shapes that
fly over stripes, rendered anew for every step. Within a seed all setups have the same first weights, clips,
noise and times. The loss is that of {held} held-out clips with fixed noise and times, by the running average
of the weights.

{results}

{findings}

Mean and standard deviation over the seeds; "to dense" is the mean of the differences seed by seed.
{budget:.2f} TFLOP is what the cheapest run spent in all; other runs are read off their curves there, where
the annealed ones have reached sparsity {annealed}. FLOPs are those of training steps, forward and
backward, counted on the graph that the backend has rewritten; attention's include the scoring of tiles and
the coarse output. CPU seconds are those of one run on one core, the median over the seeds, evaluation and
counting included.

![Loss on held-out clips, against steps and against FLOPs](train_tiny_dit.png)

Line: mean; band: lowest to highest seed.

## Beside the papers

{claims}

The papers' figures are theirs, from models of 60M to 14B parameters on 8 to 150 thousand tokens
([VSA](https://arxiv.org/abs/2505.13389), [BSA](https://arxiv.org/abs/2509.01085)); where three figures stand,
there is one for every seed. This is a model of {parameters} thousand parameters on {tokens:,} tokens, {steps}
steps in. It shows that gradients, gates and schedules work, and how the setups rank on this task at this
size. It says nothing of a large model.

- dense: sparsity 0, which is `scaled_dot_product_attention` itself.
- VSA: sparsity {sparsity} from the first step, gates by `add_gates`. They start at zero; the sum of the norms
  of their parameters was {gates} at the end.
- Dense, then annealed to VSA: dense for two fifths of the steps, then an eighth sparser at a time, and
  at {sparsity} in the last three tenths, by `SparsitySchedule.stairs`; gates from the first step.
- BSA: sparsity {sparsity} from the first step, half of the queries on a quarter of the tiles, without the
  paper's stairs, which take 3 % of its training. Windows that the border cuts keep as many queries as whole
  ones, so here it computes {bsa} of dense attention. It has no coarse output, and a query that is dropped
  takes the output of its window's centre.

![A rendered clip, and one that each setup made from the same noise](train_tiny_dit.gif)

From left to right: {panels}; each from the same noise in 40 steps of Euler's rule.
{steps} steps of so small a model do not make clean clips.

## The run

`{command}`: {minutes:.1f} minutes, compilation included, in {processes} processes,
threads in each: {threads}, on {device}. The load of the machine was {before:.1f} before and {after:.1f} at
the end, this program's {processes} included: {loaded}. It took at least {every} CPU seconds, compilation
included, {cores} of them training: {ideal:.1f} minutes of {processes} cores that do nothing else.
torch {torch}, commit {commit}, {date}.
All curves: [`train_tiny_dit.json`](../benchmarks/results/train_tiny_dit.json).
"""


def page(results: Results) -> str:
    """docs/training.md; of a run of some setups alone, the table."""
    if set(INK) - set(results["titles"]):
        return result_table(results) if "dense" in results["titles"] else "Dense did not run: no table.\n"
    size = results["size"]
    ceiling = [-(-n // t) for n, t in zip(size["grid"], size["tile"], strict=True)]
    tiles = ceiling[0] * ceiling[1] * ceiling[2]
    before, after = results["load_before"][0], results["load_after"][0]
    gates = [run["gate_norm"] for run in results["runs"] if run["setup"] == "vsa"]
    return PAGE.format(
        **{name: size[name] for name in ("layers", "width", "heads", "steps")},
        **{name: results[name] for name in ("seeds", "command", "device", "torch", "commit", "sparsity")},
        grid="x".join(map(str, size["grid"])), tile="x".join(map(str, size["tile"])),
        tokens=size["grid"][0] * size["grid"][1] * size["grid"][2], tiles=tiles,
        kept=kept_tiles(tiles, results["sparsity"]), held=size["batch"] * size["validation_batches"],
        results=result_table(results), claims=claims(results), findings=findings(results),
        budget=budget(results) / 1e12,
        gates=spread(gates, 1), parameters=results["parameters"] // 1000, date=results["date"][:10],
        panels=" | ".join(["a rendered clip", *results["titles"].values()]), minutes=results["seconds"] / 60,
        processes=results["processes"], threads=results["threads_each"],
        cores=round(sum(run["cpu_seconds"] for run in results["runs"])), before=before, after=after,
        annealed=reached(results), bsa=share(results, "bsa"), every=round(results["cpu_seconds"]),
        ideal=results["cpu_seconds"] / results["processes"] / 60,
        loaded="other programs wanted the cores too" if max(before, after - results["processes"]) > 0.5
        else "an idle machine",
    )  # fmt: skip


def write_page(results: Results, folder: Path) -> str:
    """training.md and train_tiny_dit.png into `folder`; returns the table."""
    (folder / "training.md").write_text(page(results))
    plot(results, folder / "train_tiny_dit.png")
    return result_table(results) if "dense" in results["titles"] else ""


# --- Pictures ----------------------------------------------------------------------------------------


def plot(results: Results, path: Path) -> None:
    """Held-out loss against steps, attention FLOPs and all FLOPs: mean line, band from lowest to highest."""
    try:
        import matplotlib
    except ImportError:
        print("No plot: pip install matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), sharey=True, layout="constrained")
    for ax, key, unit in zip(axes, ("step", "attention_flops", "flops"), (1, 1e12, 1e12), strict=True):
        for setup, title in results["titles"].items():
            seeds = curves(results, setup)
            x = [
                statistics.mean(entry[key] for entry in entries) / unit
                for entries in zip(*seeds, strict=True)
            ]
            losses = [[entry["validation_loss"] for entry in entries] for entries in zip(*seeds, strict=True)]
            ax.plot(x, [statistics.mean(each) for each in losses], color=INK[setup], label=title, lw=1.4)
            ax.fill_between(x, [*map(min, losses)], [*map(max, losses)], color=INK[setup], alpha=0.2, lw=0)
        ax.set_yscale("log")
        ax.set_xlabel({"step": "steps", "flops": "training TFLOP", "attention_flops": "attention TFLOP"}[key])
        ax.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("loss on held-out clips")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def write_gif(clips: Mapping[str, Tensor], path: Path, zoom: int = 4) -> None:
    """(3, frames, rows, cols) clips side by side, as an endless animation."""
    try:
        from PIL import Image
    except ImportError:
        print("No animation: pip install pillow")
        return
    panels = [torch.nn.functional.pad(clip, (1, 1, 1, 1), value=2.0) for clip in clips.values()]
    film = torch.cat(panels, dim=-1).div(4).add(0.5).clamp(0, 1).mul(255).byte()
    film = film.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3).permute(1, 2, 3, 0).contiguous()
    frames = [Image.fromarray(frame.numpy()) for frame in film]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=200, loop=0, optimize=True)
