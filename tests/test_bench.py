"""bench on CPU at a tiny shape: table, JSON, what is left out and why; the lists it measures."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from vsa_compile.__main__ import main
from vsa_compile.grid import Grid, TileGrid
from vsa_compile.ops import reference
from vsa_compile.tools.bench import clock, dense, flex, ours, roofline, session
from vsa_compile.tools.bench.lists import kept, make_lists, pairs
from vsa_compile.tools.bench.log import reason_of
from vsa_compile.tools.bench.plan import LISTS, PARTS, Plan
from vsa_compile.tools.bench.results import DENSE
from vsa_compile.tools.bench.work import Work, timed

CPU = torch.device("cpu")
TINY = ["bench", "--device", "cpu", "--quick", "--shapes", "3x5x6", "--heads", "2", "--widths", "16"]
ROW = {
    "grid": list, "tokens": int, "tiles": int, "fill": float, "width": int, "part": str, "contender": str,
    "density": float | None, "lists": str | None, "median_ms": float, "quartiles_ms": list, "min_ms": float,
    "max_ms": float, "samples": int, "flops": int, "least_bytes": int | None, "tflops": float,
    "best_dense": str | None, "speedup": float | None, "rate_ratio": float | None,
}  # fmt: skip


def plan(**given) -> Plan:
    asked: dict = dict.fromkeys(("dtype", "shapes", "widths", "heads", "densities", "lists", "parts"))
    asked |= dict.fromkeys(("contenders", "repeats"))
    asked |= {"device": "cpu", "quick": False, "autotune": False, "out": "."}
    return Plan.read(SimpleNamespace(**asked | given))


# --- The command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> SimpleNamespace:
    """One run of forward and backward: what was printed, and the JSON."""
    folder = tmp_path_factory.mktemp("bench")
    lines: list[str] = []
    asked = plan(quick=True, shapes="3x5x6", widths="16", heads=2, parts="forward,backward", out=str(folder))
    text = session.run(asked, lines.append)
    return SimpleNamespace(
        lines=lines, text=text, folder=folder, data=json.loads((folder / "bench_cpu.json").read_text())
    )


def test_the_table_has_a_line_for_every_row(quick):
    header, *lines = quick.lines
    assert len(lines) == len(quick.data["rows"]) == 4
    assert all(line.count("|") == header.splitlines()[0].count("|") for line in lines)
    for line, row in zip(lines, quick.data["rows"], strict=True):
        assert line.startswith(f"| 3x5x6 | 16 | {row['part']} | {row['contender']} |")


def test_the_json_says_where_how_and_what(quick):
    data = quick.data
    assert data["torch"] == torch.__version__
    for key in ("device", "capability", "threads", "date", "command"):
        assert data[key], key
    assert {"driver", "triton", "commit", "vsa_compile", "load_before"} <= data.keys()
    assert data["plan"]["shapes"] == ["3x5x6"]
    assert data["plan"]["repeats"] == 3
    assert data["roofs"]["matmul_tflops"] > 0 < data["roofs"]["copy_tb_per_s"]
    for row in data["rows"]:
        assert row.keys() == ROW.keys()
        assert all(isinstance(row[key], kind) for key, kind in ROW.items())
        low, high = row["quartiles_ms"]
        assert 0 < row["min_ms"] <= low <= row["median_ms"] <= high <= row["max_ms"]
        assert row["samples"] == 3
        assert row["tflops"] == pytest.approx(row["flops"] / row["median_ms"] / 1e9)


def test_ratios_are_to_the_fastest_dense_contender_of_the_part(quick):
    for part in ("forward", "backward"):
        rows = {row["contender"]: row for row in quick.data["rows"] if row["part"] == part}
        assert set(rows) == {"flash", "vsa"}
        assert rows["flash"]["speedup"] == rows["flash"]["rate_ratio"] == 1
        assert rows["vsa"]["best_dense"] == "flash"
        ratio = rows["flash"]["median_ms"] / rows["vsa"]["median_ms"]
        assert rows["vsa"]["speedup"] == pytest.approx(ratio)


def test_who_is_left_out_is_listed_with_the_reason(quick):
    reasons = {(item["contender"], item["part"]): item["reason"] for item in quick.data["left_out"]}
    names = ("cudnn", "flex", "tiled")
    assert set(reasons) == {(name, part) for name in names for part in ("forward", "backward")}
    assert "cudnn in forward, backward: cuDNN's attention needs --device cuda" in quick.text
    assert "flex in forward, backward: compiling it for CPU takes longer" in quick.text


def test_the_plot_is_drawn_where_matplotlib_is(quick):
    drawn = (quick.folder / "bench_cpu.png").exists()
    assert drawn == ("bench_cpu.png" in quick.text)
    assert drawn != ("it needs matplotlib (pip install" in quick.text)


def test_without_matplotlib_the_text_says_how_to_get_it(quick, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError):
        roofline.draw(tmp_path / "x.png", "x", quick.data["roofs"], quick.data["rows"])


def test_the_command_prints_the_table_and_what_it_wrote(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(session._Session, "_measure_part", lambda *_: None)
    assert main([*TINY, "--out", str(tmp_path / "new" / "folder")]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("| grid | D | part |")
    assert f"wrote {tmp_path}/new/folder/bench_cpu.json" in printed.out
    assert "no plot: neither forward nor backward was measured" in printed.out


WRONG = {
    "a shape of two": ("--shapes 32x32", "--shapes is '32x32', but it must be grids of tokens"),
    "a shape of words": ("--shapes axbxc", "--shapes is 'axbxc'"),
    "an empty shape": ("--shapes 0x4x4", "--shapes is '0x4x4'"),
    "a wide head": ("--widths 64,512", "--widths is '64,512', but it must be head widths from 1 to 256"),
    "all tiles": ("--densities 1", "--densities is '1', but it must be shares of tiles above 0 and below 1"),
    "lists": ("--lists rndom", "unknown kind of lists 'rndom'; did you mean 'random'?"),
    "parts": ("--parts froward", "unknown part 'froward'; did you mean 'forward'?"),
    "contenders": ("--contenders cudn", "unknown contender 'cudn'; did you mean 'cudnn'?"),
    "no sample": ("--repeats 0", "--repeats is 0, but it must be an integer >= 1"),
    "no head": ("--heads 0", "--heads is 0, but it must be an integer >= 1"),
    "a device": ("--device tpu", "--device is 'tpu', but it must be cuda or cpu"),
    "a folder": (
        "--out /dev/null/x",
        "--out is '/dev/null/x', where nothing can be written (Not a directory)",
    ),
}


@pytest.mark.quick
@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_and_status_2(case, capsys):
    arguments, text = WRONG[case]
    assert main([*TINY, *arguments.split()]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("python -m vsa_compile: ")
    assert text in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.quick
def test_without_a_gpu_the_error_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "--device", "cuda"]) == 2
    assert "--device cuda needs a GPU, and torch" in capsys.readouterr().err


@pytest.mark.quick
@pytest.mark.parametrize("arguments", [["--repeats", "many"], ["--dtype", "fp8"], ["--shape"]])
def test_a_wrong_command_line_is_one_line_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as exited:
        main(["bench", *arguments])
    assert exited.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- What is measured ---------------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("kind", LISTS)
def test_lists_are_ascending_and_of_the_density(kind):
    boxes = TileGrid(Grid(9, 15, 17), (4, 4, 4))
    made = make_lists(kind, 0.25, boxes, 3, CPU)
    assert made.counts.shape == (1, 3, boxes.tiles)
    assert made.counts.float().mean() == pytest.approx(kept(boxes, 0.25), rel=0.1)
    total = 0
    for head in range(3):
        for row in range(boxes.tiles):
            listed = made.tiles[0, head, row, : made.counts[0, head, row]].tolist()
            assert listed == sorted(set(listed))
            assert 0 <= listed[0] <= listed[-1] < boxes.tiles
            total += boxes.real_tokens(row) * sum(map(boxes.real_tokens, listed))
            if kind == "local":
                assert row in listed
    assert pairs(made, boxes) == total


def test_dense_flops_are_those_of_all_lists():
    work = Work.make(plan(heads=2), Grid(5, 6, 7), 16)
    assert work.flops("forward", None, None) == 4 * 2 * 16 * 210**2
    assert work.flops("backward", None, None) == 10 * 2 * 16 * 210**2
    nearly = make_lists("random", 0.9999, work.boxes, 2, CPU)
    assert work.flops("forward", 0.9999, nearly) == work.flops("forward", None, None)
    assert work.flops("whole", 0.5, None) == work.flops("forward", None, None) // 2


@pytest.mark.parametrize("part", [part for part in PARTS if part != "coarse"])
def test_at_nearly_full_density_every_contender_computes_dense_attention(part, monkeypatch):
    """Uncompiled: what is tested is which function of which inputs each part times."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    work = Work.make(plan(heads=2), Grid(3, 5, 6), 16)
    work.gate.zero_()
    given = make_lists("random", 0.9999, work.boxes, 2, CPU) if part in ("forward", "backward") else None
    mine, theirs = ours.task(part, work, 0.9999, given).once(), dense.task("flash", part, work).once()
    pair = zip(*(x if isinstance(x, tuple) else (x,) for x in (mine, theirs)), strict=False)
    for got, wanted in pair:
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_the_coarse_part_selects_what_the_operator_selects(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    work = Work.make(plan(heads=2), Grid(8, 9, 10), 16)
    tiles, counts, coarse = ours.task("coarse", work, 0.25, None).once()
    given = SimpleNamespace(tiles=tiles, counts=counts)
    wanted = ours._whole(work, 0.25)(*work.inputs, torch.zeros_like(work.gate))
    torch.testing.assert_close(ours.fine(work, given)(*work.inputs), wanted)
    assert coarse.shape == (1, 2, work.boxes.tiles, 16)


def test_tiled_is_the_same_attention_of_tokens_in_tile_order(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    work = Work.make(plan(heads=2), Grid(4, 8, 12), 16)
    given = make_lists("random", 0.5, work.boxes, 2, CPU)
    order = reference.tile_of_token(work.grid, (4, 4, 4)).argsort(stable=True)
    q, k, v = (x[:, :, order] for x in work.inputs)
    tiled = ours.tiled_task("forward", replace(work, q=q, k=k, v=v), given).once()
    torch.testing.assert_close(tiled, ours.fine(work, given)(*work.inputs)[:, :, order])


@pytest.mark.parametrize("kind", LISTS)
def test_flex_and_we_attend_to_the_same(kind, monkeypatch):
    """FlexAttention uncompiled, which writes all scores out: is its mask the lists?"""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(flex, "flex_attention", _masked)
    work = Work.make(plan(heads=2), Grid(5, 6, 7), 16)
    given = make_lists(kind, 0.5, work.boxes, 2, CPU)
    theirs = flex.in_raster(flex.Flex(clock.Clock(CPU)).task("forward", work, given).once(), work)
    torch.testing.assert_close(theirs, ours.fine(work, given)(*work.inputs), rtol=1e-4, atol=1e-5)


def _masked(q, k, v, *, block_mask, kernel_options):
    """Dense attention under a block mask, whose full blocks have no mask."""
    dense_blocks = block_mask.to_dense().bool()  # the partial ones and the full ones
    seen = dense_blocks.repeat_interleave(64, 2).repeat_interleave(64, 3)
    slots = torch.arange(k.shape[2])
    seen = seen & block_mask.mask_mod(0, 0, slots[:, None], slots[None])
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def test_flex_keeps_the_fastest_configuration_that_runs(monkeypatch):
    def task(part, work, lists, options):
        if options["fwd_num_stages"] > 3:
            raise RuntimeError("out of shared memory\nand much more")
        return clock.Task(lambda _: None)

    work = SimpleNamespace(width=64, plan=SimpleNamespace(device=torch.device("cuda"), quick=False))
    watch = clock.Clock(CPU)
    medians = iter(range(9, 0, -1))
    monkeypatch.setattr(flex, "_task", task)
    monkeypatch.setattr(
        watch, "measure", lambda tasks, _: {"forward": SimpleNamespace(median_ms=next(medians))}
    )
    tuned = flex.Flex(watch)
    tuned.task("forward", work, None)
    chosen = tuned.chosen["forward", 64]
    runs = [entry for entry in chosen["tried"] if "median_ms" in entry]
    assert chosen["options"] == runs[-1]["options"]
    assert [e["error"] for e in chosen["tried"] if "error" in e] == ["RuntimeError: out of shared memory"] * 2
    backward = tuned._options("backward", work, flex.CANDIDATES["backward"][0])
    assert backward["fwd_num_warps"] == chosen["options"]["num_warps"]
    assert backward["bwd_BLOCK_M1"] == 64


def test_samples_are_taken_in_turn():
    taken: list[str] = []
    tasks = {name: clock.Task(lambda _, name=name: taken.append(name)) for name in "abc"}
    spreads = clock.Clock(CPU).measure(tasks, 3)
    assert "".join(taken) == "abcbcacab"
    assert all(spread.samples == 3 for spread in spreads.values())


def test_the_backward_is_timed_without_its_forward():
    calls: list[str] = []

    def attention(x):
        calls.append("forward")
        return 2 * x

    x = torch.randn(2, 3)
    task = timed("backward", attention, (x,), torch.ones_like(x))
    out = task.prepare()
    assert calls == ["forward"]
    (grad,) = task.run(out)
    assert calls == ["forward"]
    assert grad.equal(torch.full_like(x, 2))


def test_a_contender_that_fails_is_left_out_and_ours_is_an_error(monkeypatch, tmp_path):
    def fails(*_):
        raise RuntimeError("no kernel for this\nin many lines")

    for module in (dense, ours):
        monkeypatch.setattr(module, "task", fails)
    asked = plan(quick=True, shapes="2x2x2", parts="forward", contenders="flash", out=str(tmp_path))
    assert "left out: flash in forward: RuntimeError: no kernel for this\n" in session.run(asked, print)
    asked = plan(quick=True, shapes="2x2x2", parts="forward", contenders="vsa", out=str(tmp_path))
    with pytest.raises(RuntimeError, match="no kernel for this"):
        session.run(asked, print)
    assert tuple(dense.BACKENDS) == DENSE


@pytest.mark.quick
def test_a_reason_is_a_line_that_names_the_error_behind():
    wrapped = RuntimeError("Observed exception\nand a long explanation")
    wrapped.__cause__ = NotImplementedError("no backward on CPU\nmore")
    assert reason_of(wrapped) == "RuntimeError: Observed exception: NotImplementedError: no backward on CPU"
    assert reason_of(ValueError()) == "ValueError:"
