"""Grids that graphs hide: prepare(model), video_grid(...), and what must never go wrong with them."""

import copy
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from compare import assert_same_gradients, assert_same_output, output_and_gradients
from converting import OPTIONS, RESOLUTIONS, by_hand, heads, latents
from torch import Tensor, nn
from toy import Habits, ToyDiT, inputs

import vsa_compile
from vsa_compile.convert.judge import Conversion
from vsa_compile.grid import Grid, Hint
from vsa_compile.grids import prepare
from vsa_compile.ops import reference
from vsa_compile.runtime.calls import ModelCall, running
from vsa_compile.runtime.state import now

pytestmark = pytest.mark.quick

# The first three have as many tokens.
GRIDS = [(3, 6, 10), (3, 10, 6), (6, 3, 10), (2, 6, 10), (5, 4, 8), (7, 4, 8), (5, 8, 4), (4, 9, 11)]
TWO = Habits(blocks=2)
EXACT = {"min_tokens": 0, "sparsity": 0.5}
EVERY = {"min_tokens": 0, "sparsity": 1e-6}


class Spy:
    """A backend that converts and runs the converted graph as it is; `fates` has one list for each graph."""

    def __init__(self, **options) -> None:
        self.settings = vsa_compile.Options.read(EXACT | options)
        self.fates: list[list[str]] = []
        self.places: list[tuple[int, int]] = []  # where the videos start in queries and keys

    def __call__(self, module, example_inputs):
        found = vsa_compile.backend.convert(module, self.settings)
        if found:
            self.fates.append(["sparse" if isinstance(one, Conversion) else one.reason.slug for one in found])
        self.places += [(one.q_start, one.kv_start) for one in found if isinstance(one, Conversion)]
        return module.forward


def by_blocks(model: nn.Module, backend: Spy) -> nn.Module:
    for block in model.blocks:
        block.compile(backend=backend)
    return model


def outputs(model: nn.Module, grids=GRIDS, habits: Habits = TWO) -> list[Tensor]:
    with torch.no_grad():
        return [model(*inputs(habits, grid)) for grid in grids]


@pytest.fixture(scope="module")
def wanted() -> list[Tensor]:
    """What the whole model gives, whose graph shows the grid."""
    torch._dynamo.reset()
    spy = Spy()
    result = outputs(torch.compile(ToyDiT(TWO), backend=spy, dynamic=True))
    assert spy.fates == [["sparse", "sparse"]]
    return result


def same(got: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert_same_output(one, other)


# --- prepare --------------------------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.seconds
@pytest.mark.parametrize("first", ["prepare", pytest.param("compile", marks=pytest.mark.slow)])
def test_blocks_compiled_alone_convert_at_every_grid(first: str, wanted: list[Tensor]):
    model, spy = ToyDiT(TWO), Spy()
    if first == "prepare":
        by_blocks(vsa_compile.prepare(model), spy)
    else:
        vsa_compile.prepare(by_blocks(model, spy))
    same(outputs(model), wanted)
    assert {fate for graph in spy.fates for fate in graph} == {"sparse"}
    assert len(spy.fates) <= 8  # four for each of the blocks, whose inputs differ in being views


@pytest.mark.no_cover
@pytest.mark.seconds
@pytest.mark.parametrize("fullgraph", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_whole_prepared_model_needs_no_more_graphs(fullgraph: bool, wanted: list[Tensor]):
    spy = Spy()
    model = vsa_compile.prepare(ToyDiT(TWO))
    same(outputs(torch.compile(model, backend=spy, fullgraph=fullgraph)), wanted)
    assert spy.fates == 3 * [["sparse", "sparse"]]


@pytest.mark.seconds
def test_without_prepare_blocks_stay_dense_and_say_so():
    spy = Spy()
    model = by_blocks(ToyDiT(TWO), spy)
    same(outputs(model), outputs(ToyDiT(TWO)))
    assert {fate for graph in spy.fates for fate in graph} == {"unknown-grid"}


def test_a_prepared_model_computes_what_it_did():
    plain, model = ToyDiT(TWO), vsa_compile.prepare(ToyDiT(TWO))
    assert vsa_compile.prepare(model) is model
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
    assert model.state_dict().keys() == plain.state_dict().keys()
    args = inputs(TWO)
    assert torch.equal(model(*args), plain(*args))
    assert now.hint is None


# Dynamo traces the next lines of prepare without running them; here they run.


@pytest.fixture
def hints(monkeypatch):
    """What is marked: (tokens, grid, start) of every hint."""
    noted = []

    def hint(x: Tensor, grid: list[int], start: int | None) -> Tensor:
        noted.append((x.shape[-2], tuple(grid), start))
        return x.clone()

    monkeypatch.setattr(torch.ops.vsa_compile, "hint", hint)
    return noted


def test_what_is_traced_of_a_prepared_model_marks_every_block(hints):
    plain, model = ToyDiT(TWO), vsa_compile.prepare(ToyDiT(TWO))
    args = inputs(TWO, (3, 6, 10))
    with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        got = model(*args)
    assert torch.equal(got, plain(*args))
    assert hints == 2 * [(180, (3, 6, 10), None)]
    assert running.now is None


VIDEO, TEXT, LONG_TEXT = torch.ones(2, 24, 8), torch.ones(2, 5, 8), torch.zeros(2, 24, 8)


@pytest.mark.parametrize(
    ("call", "args", "kwargs", "marked"),
    [
        ({"grid": (2, 3, 4)}, (TEXT,), {"x": VIDEO}, [(24, (2, 3, 4), None)]),
        ({"grid": (2, 3, 4)}, (VIDEO[0],), {}, [(24, (2, 3, 4), None)]),
        ({"grid": (2, 3, 4)}, (VIDEO, VIDEO), {}, [(24, (2, 3, 4), None)]),
        ({"grid": (2, 3, 4)}, (VIDEO, LONG_TEXT), {}, []),
        ({"grid": (2, 3, 4)}, (TEXT, None), {"mask": VIDEO[0, 0]}, []),
        ({"images": (4, 3, 4)}, (VIDEO,), {}, [(24, (2, 3, 4), None)]),
        ({}, (VIDEO,), {}, []),
        ({"grid": (1, 3, 4), "start": 12, "length": 24}, (VIDEO,), {}, [(24, (1, 3, 4), 12)]),
        ({"grid": (2, 3, 4), "start": 5, "length": 29}, (VIDEO,), {}, []),
    ],
    ids=[
        "by name",
        "no batch",
        "twice",
        "text as long",
        "others",
        "images",
        "unknown",
        "part",
        "not the part",
    ],
)
def test_the_first_tensor_as_long_as_the_video_is_marked(call, args, kwargs, marked, hints):
    given, named = prepare._mark_first(args, kwargs, ModelCall(0, **call))
    assert hints == marked
    assert [type(one) for one in given] == [type(one) for one in args]
    assert named.keys() == kwargs.keys()


@pytest.mark.slow
def test_a_copy_of_a_prepared_model_is_its_own(wanted: list[Tensor]):
    model = vsa_compile.prepare(ToyDiT(TWO))
    twin = copy.deepcopy(model)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    same(outputs(by_blocks(twin, Spy())), wanted)


def test_an_error_inside_leaves_no_hint_behind():
    model = vsa_compile.prepare(ToyDiT(TWO))
    with pytest.raises(TypeError):
        model(*inputs(TWO), None, None, "one too many")
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 5, 4, 4, 4))
    assert now.hint is None


@pytest.mark.no_cover
@pytest.mark.seconds
def test_two_prepared_models_do_not_disturb_each_other(wanted: list[Tensor]):
    first, second = (by_blocks(vsa_compile.prepare(ToyDiT(TWO)), Spy()) for _ in range(2))
    with torch.no_grad():
        for index, grid in enumerate(GRIDS):
            other = GRIDS[-1 - index]
            assert_same_output(first(*inputs(TWO, grid)), wanted[index])
            assert_same_output(second(*inputs(TWO, other)), wanted[-1 - index])


def test_only_modules_can_be_prepared():
    with pytest.raises(
        vsa_compile.ArgumentError, match=r"model is 'function', but it must be a torch.nn.Module"
    ):
        vsa_compile.prepare(lambda x: x)


class ByImages(nn.Module):
    """Patches of each frame by a two-dimensional convolution; blocks take their tokens by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(4, 64, 2, stride=2)
        self.blocks = ToyDiT(TWO).blocks

    def forward(self, latents: Tensor) -> Tensor:
        batch, frames = latents.shape[:2]
        x = self.patch(latents.flatten(0, 1)).flatten(2).transpose(1, 2).reshape(batch, -1, 64)
        assert x.shape[1] % frames == 0
        for block in self.blocks:
            x = block(x=x, mask=None)
        return x


class WithAConfig(nn.Module):
    """Patches by a reshape, which nobody can watch; its configuration says how large they are."""

    def __init__(self, **config: object) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.patch = nn.Linear(16, 64)
        self.blocks = ToyDiT(TWO).blocks

    def forward(self, hidden_states: Tensor, **sizes: int) -> Tensor:
        x = hidden_states
        if x.dim() == 5:
            x = (
                x.unflatten(3, (-1, 2))
                .unflatten(5, (-1, 2))
                .permute(0, 2, 3, 5, 1, 4, 6)
                .flatten(4)
                .flatten(1, 3)
            )
        x = self.patch(x)
        for block in self.blocks:
            x = block(x, None)
        return x


def packed(grid: tuple[int, int, int]) -> dict:
    frames, rows, cols = grid
    tokens = torch.randn(2, frames * rows * cols, 16, generator=torch.Generator().manual_seed(0))
    return {"hidden_states": tokens, "num_frames": frames, "height": rows, "width": cols}


def video(grid: tuple[int, int, int]) -> dict:
    frames, rows, cols = grid
    shape = (2, 4, frames, 2 * rows, 2 * cols)
    return {"hidden_states": torch.randn(shape, generator=torch.Generator().manual_seed(0))}


def images(grid: tuple[int, int, int]) -> dict:
    return {"latents": video(grid)["hidden_states"].transpose(1, 2)}


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (ByImages, images),
        (lambda: WithAConfig(patch_size=2), video),
        (lambda: WithAConfig(patch_size=(1, 2, 2)), video),
        (lambda: WithAConfig(patch_size=2, patch_size_t=1), video),
        (WithAConfig, packed),
    ],
    ids=["images", "patch_size", "patch_sizes", "patch_size_t", "packed"],
)
def test_every_way_to_learn_the_grid(build, arguments):
    spy, seen = Spy(), []
    model = by_blocks(vsa_compile.prepare(build()), spy)
    plain = build()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        for grid in GRIDS[:3]:
            seen.append(model(**arguments(grid)))
            with mock.patch.object(F, "scaled_dot_product_attention", by_reference(grid)):
                assert_same_output(seen[-1], plain(**arguments(grid)))
    assert {fate for graph in spy.fates for fate in graph} == {"sparse"}


def by_reference(grid: tuple[int, int, int]):
    def attention(query, key, value, **_) -> Tensor:
        return reference.attention(query, key, value, grid=Grid(*grid), sparsity=0.5)

    return attention


class OnlyAttentionIsLeft(nn.Module):
    """Breaks its graph before and after attention, so that a graph holds nothing but q, k and v."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv3d(4, 64, 1)
        self.last: tuple = ()

    def forward(self, latents: Tensor) -> Tensor:
        x = self.patch(latents).flatten(2).transpose(1, 2)
        q = k = v = x.unflatten(-1, (4, 16)).transpose(1, 2)
        torch._dynamo.graph_break()
        out = F.scaled_dot_product_attention(q, k + 0, v * 1)
        torch._dynamo.graph_break()
        self.last = (q, k, v)
        return out.transpose(1, 2).flatten(2)


@pytest.mark.no_cover
@pytest.mark.seconds
def test_a_graph_of_q_k_and_v_alone_converts_at_the_grid_of_the_call():
    model, spy = OnlyAttentionIsLeft(), Spy()
    compiled = torch.compile(vsa_compile.prepare(model), backend=spy)
    with torch.no_grad():
        for grid in GRIDS[:3]:
            got = compiled(torch.randn(1, 4, *grid))
            q, k, v = model.last
            exact = reference.attention(q, k, v, grid=Grid(*grid), sparsity=0.5)
            assert_same_output(got, exact.transpose(1, 2).flatten(2))
    assert spy.fates == 3 * [["sparse"]]


class ReadsItsText(nn.Module):
    """Picks text tokens by a mask, which Dynamo captures only if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.toy = ToyDiT(Habits(text="after"))

    def forward(self, latents: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        text = text + 0
        return self.toy(latents, text[:, torch.nonzero(mask).flatten()])


@pytest.mark.seconds
def test_data_dependent_text_lengths_stay_in_one_graph():
    args = (*inputs(Habits(text="after")), torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 1]))
    plain, model = ReadsItsText(), vsa_compile.prepare(ReadsItsText())
    for subject, graphs in ((plain, 2), (model, 1)):
        count = []

        def keep(module, example_inputs, count=count):
            count.append(module)
            return module.forward

        torch._dynamo.reset()
        with torch.no_grad():
            assert_same_output(torch.compile(subject, backend=keep)(*args), plain(*args))
        assert len(count) == graphs
    assert not torch._dynamo.config.capture_dynamic_output_shape_ops
    spy = Spy(sparsity=1e-6)
    torch._dynamo.reset()
    with torch.no_grad():
        assert_same_output(torch.compile(model, backend=spy)(*args), plain(*args))
    assert spy.fates == [["sparse"]]


# --- video_grid -----------------------------------------------------------------------------------


@pytest.mark.seconds
def test_video_grid_gives_each_grid_its_own_code(wanted: list[Tensor]):
    model, spy = by_blocks(ToyDiT(TWO), Spy()), Spy()
    model = by_blocks(ToyDiT(TWO), spy)
    with torch.no_grad():
        for _ in range(2):
            for grid, one in zip(GRIDS[:3], wanted[:3], strict=True):
                with vsa_compile.video_grid(*grid):
                    assert_same_output(model(*inputs(TWO, grid)), one)
    assert {fate for graph in spy.fates for fate in graph} == {"sparse"}


def attend(tokens: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(tokens, tokens * 0.5, tokens)


@pytest.mark.no_cover
@pytest.mark.seconds
def test_a_dozen_grids_of_a_prepared_model_are_a_few_graphs():
    """Dynamo stops at eight, and every block is the same code."""
    assert len(set(RESOLUTIONS)) > torch._dynamo.config.recompile_limit
    spy = Spy(sparsity=1e-6)
    model, plain = by_blocks(vsa_compile.prepare(ToyDiT(TWO)), spy), ToyDiT(TWO)
    with torch.no_grad():
        for grid in RESOLUTIONS:
            assert_same_output(model(*inputs(TWO, grid)), plain(*inputs(TWO, grid)))
    assert {fate for graph in spy.fates for fate in graph} == {"sparse"}
    assert len(spy.fates) < torch._dynamo.config.recompile_limit


@pytest.mark.seconds
def test_more_hinted_grids_than_dynamo_compiles_are_announced():
    spy = Spy(**OPTIONS)
    compiled = torch.compile(attend, backend=spy)
    limit = torch._dynamo.config.recompile_limit

    def run(grid: tuple[int, int, int]) -> Tensor:
        with vsa_compile.video_grid(*grid):
            return compiled(heads(latents(grid)))

    for grid in RESOLUTIONS[: limit - 1]:
        assert_same_output(run(grid), by_hand(latents(grid), grid))
    with pytest.warns(UserWarning, match=f"recompile_limit = {limit} allows no further .* Set torch._dynamo"):
        run(RESOLUTIONS[limit - 1])
    assert_same_output(run(RESOLUTIONS[limit]), attend(heads(latents(RESOLUTIONS[limit]))))  # as announced
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2 * len(RESOLUTIONS)):
        for grid in RESOLUTIONS:
            assert_same_output(run(grid), by_hand(latents(grid), grid))


@pytest.mark.seconds
def test_leaving_video_grid_leaves_calls_dense_again():
    model, spy = by_blocks(ToyDiT(TWO), Spy()), Spy()
    args = inputs(TWO)
    with torch.no_grad():
        dense = ToyDiT(TWO)(*args)
        with vsa_compile.video_grid(5, 6, 7):
            sparse = model(*args)
        again = model(*args)
    assert_same_output(again, dense)
    assert (sparse - dense).norm() > 0.01 * dense.norm()
    del spy


def joint(video: Tensor, others: Tensor) -> Tensor:
    """Eight other tokens in front, in one piece with a video, as behind a break: (B, 8 + N, 32)."""
    return torch.cat([others, video.flatten(2).transpose(1, 2)], 1)


def attend_jointly(x: Tensor, mask: Tensor | None = None) -> Tensor:
    q = x.unflatten(-1, (2, 16)).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q * 0.5, q, attn_mask=mask)


def sparse(tokens: Tensor, grid: tuple[int, int, int], start: int) -> Tensor:
    """What `attend_jointly` has to give when it is sparse."""
    return vsa_compile.attention(
        tokens,
        tokens * 0.5,
        tokens,
        grid=grid,
        tile=(2, 2, 2),
        sparsity=0.5,
        video_start=start,
        key_padding_mask=torch.ones(1, tokens.shape[2], dtype=torch.bool),
    )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("start", [0, 8])
def test_video_grid_says_where_in_a_sequence_the_video_is(start: int, dynamic: bool):
    spy, grid = Spy(**OPTIONS), (3, 4, 5)
    others = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(7))
    x = joint(latents(grid), others)
    x = x if start else x.roll(-8, 1)
    tokens = x.unflatten(-1, (2, 16)).transpose(1, 2)
    compiled = torch.compile(attend_jointly, backend=spy, dynamic=dynamic)
    with vsa_compile.video_grid(*grid, start=start, tokens=68):
        got = compiled(x)
    wanted = sparse(tokens, grid, start)
    assert_same_output(got, wanted)
    with vsa_compile.video_grid(3, 5, 4, start=start, tokens=68):
        assert not torch.allclose(compiled(x), wanted)
    assert_same_output(compiled(x), attend_jointly(x))  # outside, dense again
    assert spy.fates == [["sparse"], ["sparse"], ["unknown-grid"]]


def test_a_graph_with_a_named_place_does_not_serve_later_lengths():
    spy, grid = Spy(**OPTIONS), (3, 4, 5)
    compiled = torch.compile(attend_jointly, backend=spy, dynamic=True)
    with vsa_compile.video_grid(*grid, start=8, tokens=68):
        compiled(joint(latents(grid), torch.randn(1, 8, 32)))
        longer = joint(latents(grid), torch.randn(1, 9, 32))
        assert_same_output(compiled(longer), attend_jointly(longer))
    assert spy.fates == [["sparse"], ["unknown-grid"]]


@pytest.mark.parametrize("tokens", [60, 67, 69])
def test_a_sequence_of_another_length_is_not_the_named_one(tokens: int):
    spy = Spy(**OPTIONS)
    x = joint(latents((3, 4, 5)), torch.randn(1, 8, 32))
    with vsa_compile.video_grid(3, 4, 5, tokens=tokens):
        assert_same_output(torch.compile(attend_jointly, backend=spy)(x), attend_jointly(x))
    assert spy.fates == [["unknown-grid"]]


def test_of_two_runs_of_equal_length_the_named_one_is_the_video():
    def attend_both(video: Tensor, others: Tensor) -> Tensor:
        return attend_jointly(torch.cat([others.relu(), video.relu()], 1))

    spy, grid = Spy(**OPTIONS), (3, 4, 5)
    video, others = torch.randn(1, 60, 32), torch.randn(1, 60, 32)
    tokens = torch.cat([others, video], 1).relu().unflatten(-1, (2, 16)).transpose(1, 2)
    compiled = torch.compile(attend_both, backend=spy)
    with vsa_compile.video_grid(*grid, start=60, tokens=120):
        got = compiled(video, others)
    wanted = sparse(tokens, grid, 60)
    assert_same_output(got, wanted)
    with vsa_compile.video_grid(*grid):
        compiled(video, others)
    assert spy.fates == [["sparse"], ["unknown-grid"]]


def test_keys_that_hold_more_than_the_queries_begin_where_the_hint_says():
    def attend_to_more(x: Tensor, text: Tensor) -> Tensor:
        q = x.unflatten(-1, (2, 16)).transpose(1, 2)
        k = torch.cat([text, x], 1).unflatten(-1, (2, 16)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, k)

    spy = Spy(**OPTIONS | {"sparsity": 1e-6})
    x, text = joint(latents((3, 4, 5)), torch.randn(1, 8, 32)), torch.randn(1, 5, 32)
    with vsa_compile.video_grid(3, 4, 5, start=8, tokens=68):
        got = torch.compile(attend_to_more, backend=spy)(x, text)
    assert_same_output(got, attend_to_more(x, text))
    assert spy.places == [(8, 13)]


def test_a_named_place_speaks_of_its_sequence_alone():
    """A run of as many tokens in front of it, or another sequence of that length, is something else."""

    def attend_apart(x: Tensor, text: Tensor) -> Tensor:
        z = x.relu()
        first, second = attend_jointly(z[:, :60]), attend_jointly(z[:, 60:])
        return torch.cat([first, second, attend_jointly(text.relu())], 2)

    spy = Spy(**OPTIONS)
    args = torch.randn(1, 120, 32), torch.randn(1, 60, 32)
    with vsa_compile.video_grid(3, 4, 5, start=60, tokens=120):
        torch.compile(attend_apart, backend=spy)(*args)
    assert spy.fates == [["unknown-grid", "sparse", "unknown-grid"]]


def test_a_named_place_that_the_graph_shows_to_be_a_video_is_forgotten_outside():
    def attend_and_unpatchify(x: Tensor) -> Tensor:
        z = x.relu()
        volume = z[:, 8:].view(1, 3, 4, 5, 8, 2, 2).permute(0, 4, 1, 2, 5, 3, 6)
        return attend_jointly(z) + volume.mean()

    spy, x = Spy(**OPTIONS), torch.randn(1, 68, 32)
    compiled = torch.compile(attend_and_unpatchify, backend=spy)
    with vsa_compile.video_grid(3, 4, 5, start=8, tokens=68):
        compiled(x)
    with vsa_compile.video_grid(3, 5, 4, start=8, tokens=68):  # the graph shows 3 x 4 x 5
        compiled(x)
    assert_same_output(compiled(x), attend_and_unpatchify(x))
    assert [fate for graph in spy.fates for fate in graph][:2] == ["sparse", "unknown-grid"]
    assert spy.fates[-1] == ["unknown-grid"]


def test_text_of_any_length_in_front_of_a_hinted_video():
    """Pinning the number of values made a number of the text's length, which the graph spells as a symbol."""

    def attend_to_text(text: Tensor, x: Tensor) -> Tensor:
        return attend_jointly(torch.cat([text, x.relu()], 1))

    spy, x = Spy(**OPTIONS | {"sparsity": 1e-6}), torch.randn(1, 60, 32)
    compiled = torch.compile(attend_to_text, backend=spy, dynamic=True)
    with vsa_compile.video_grid(3, 4, 5):
        for length in (5, 6):
            text = torch.randn(1, length, 32)
            assert_same_output(compiled(text, x), attend_to_text(text, x))
    assert spy.fates == [["sparse"]]
    torch._dynamo.reset()
    compiled = torch.compile(attend_to_text, backend=spy, dynamic=True)
    for length in (5, 6):
        with vsa_compile.video_grid(3, 4, 5, start=length, tokens=60 + length):
            text = torch.randn(1, length, 32)
            assert_same_output(compiled(text, x), attend_to_text(text, x))
    assert spy.fates == [["sparse"]] * 3


def test_text_whose_length_is_data_is_no_part_of_a_named_sequence():
    def attend_to_some(text: Tensor, seen: Tensor, x: Tensor) -> Tensor:
        return attend_jointly(torch.cat([text[:, seen], x.relu()], 1))

    spy = Spy(**OPTIONS)
    args = torch.randn(1, 5, 32), torch.arange(5) < 3, torch.randn(1, 68, 32)
    capture = torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
    with capture, vsa_compile.video_grid(3, 4, 5, start=8, tokens=68):
        assert_same_output(torch.compile(attend_to_some, backend=spy)(*args), attend_to_some(*args))
    assert spy.fates == [["unknown-grid"]]


def test_reordered_sequences_are_not_the_named_one():
    spy, order = Spy(**OPTIONS), torch.randperm(68)
    x = joint(latents((3, 4, 5)), torch.randn(1, 8, 32))
    with vsa_compile.video_grid(3, 4, 5, start=8, tokens=68):
        torch.compile(lambda x: attend_jointly(x[:, order]), backend=spy)(x)
    assert spy.fates == [["reordered"]]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"start": -1, "tokens": 68}, "start of video_grid is -1"),
        ({"start": True, "tokens": 68}, "start of video_grid is True"),
        ({"start": 8}, r"start of video_grid is 8, but it must be 0 if tokens is None. .* tokens=..."),
        (
            {"tokens": 59},
            r"video_grid is \(\(3, 4, 5\), 0, 59\), .* start \+ frames \* rows \* cols <= tokens",
        ),
        ({"start": 9, "tokens": 68}, r"video_grid is \(\(3, 4, 5\), 9, 68\)"),
        ({"tokens": "68"}, "tokens of video_grid is '68'"),
    ],
)
def test_a_place_that_cannot_be_is_an_error(arguments: dict, text: str):
    with pytest.raises(vsa_compile.OptionError, match=text), vsa_compile.video_grid(3, 4, 5, **arguments):
        pass
    assert now.hint is None


def two_axes(x: Tensor) -> Tensor:
    return attend_jointly(x.flatten(1, 2))


def across_two_inputs(x: Tensor, y: Tensor) -> Tensor:
    q, k = (one.unflatten(-1, (2, 16)).transpose(1, 2) for one in (x, y))
    return F.scaled_dot_product_attention(q, k, k)


@pytest.mark.parametrize(
    ("run", "args"),
    [
        (two_axes, (torch.randn(1, 3, 20, 32),)),
        (across_two_inputs, (torch.randn(1, 60, 32), torch.randn(1, 60, 32))),
    ],
    ids=["two axes", "two inputs"],
)
def test_a_graph_that_was_compiled_without_a_hint_hears_of_it_later(run: Callable, args: tuple):
    spy = Spy(**OPTIONS)
    compiled = torch.compile(run, backend=spy)
    compiled(*args)
    with vsa_compile.video_grid(3, 4, 5):
        compiled(*args)
    compiled(*args)
    (first,), (second,) = spy.fates
    assert (first, second) == (first, "sparse")
    assert first != "sparse"


def test_a_hint_that_does_not_fit_is_refused():
    spy = Spy()
    model = by_blocks(ToyDiT(TWO), spy)
    with torch.no_grad(), vsa_compile.video_grid(5, 6, 8):
        model(*inputs(TWO, (5, 6, 7)))
    assert {fate for graph in spy.fates for fate in graph} == {"unknown-grid"}


def test_a_graph_that_shows_its_grid_does_not_listen_to_hints():
    spy = Spy()
    model = torch.compile(ToyDiT(TWO), backend=spy)
    args = inputs(TWO, (5, 6, 7))
    with torch.no_grad():
        plain = model(*args)
        with vsa_compile.video_grid(5, 7, 6):
            assert torch.equal(model(*args), plain)
    assert len(spy.fates) == 1


@pytest.mark.seconds
def test_explain_hears_the_hint():
    block, x = ToyDiT(TWO).blocks[0], torch.randn(1, 210, 64)
    (plain,) = vsa_compile.explain(block, x, None, options=EXACT).sites
    with vsa_compile.video_grid(5, 6, 7):
        (hinted,) = vsa_compile.explain(block, x, None, options=EXACT).sites
    assert (plain.slug, hinted.grid) == ("unknown-grid", (5, 6, 7))


def test_hints_nest_and_bad_ones_are_errors():
    with vsa_compile.video_grid(1, 2, 3):
        with vsa_compile.video_grid(4, 5, 6):
            assert now.hint == Hint((4, 5, 6))
        assert now.hint == Hint((1, 2, 3))
        with (
            pytest.raises(vsa_compile.OptionError, match="grid is \\(0, 5, 6\\)"),
            vsa_compile.video_grid(0, 5, 6),
        ):
            pass
        assert now.hint == Hint((1, 2, 3))
    assert now.hint is None


@pytest.mark.seconds
@pytest.mark.parametrize("how", ["prepare", "video_grid"])
def test_gradients_of_blocks_compiled_alone(how: str):
    plain, model = ToyDiT(TWO), ToyDiT(TWO)
    if how == "prepare":
        vsa_compile.prepare(model)
    by_blocks(model, Spy(sparsity=1e-6))
    args = inputs(TWO)
    exact, exact_grads = output_and_gradients(plain, *args)
    with vsa_compile.video_grid(5, 6, 7):
        got, got_grads = output_and_gradients(model, *args)
    assert_same_output(got, exact)
    assert_same_gradients(got_grads, exact_grads)


@pytest.mark.seconds
def test_explain_of_compiled_blocks_shows_what_the_blocks_do():
    """As a whole the model would show its grid; block by block it does not, until it is prepared."""
    model = by_blocks(ToyDiT(TWO), Spy())
    calls = [block._compiled_call_impl for block in model.blocks]
    blind = vsa_compile.explain(model, *inputs(TWO), options=EXACT)
    assert [(site.name, site.slug) for site in blind.sites] == [
        ("blocks.0.attn", "unknown-grid"),
        ("blocks.1.attn", "unknown-grid"),
    ]
    assert [block._compiled_call_impl for block in model.blocks] == calls
    vsa_compile.prepare(model)
    seen = vsa_compile.explain(model, *inputs(TWO), options=EXACT)
    assert [(site.name, site.grid) for site in seen.sites] == [
        ("blocks.0.attn", (5, 6, 7)),
        ("blocks.1.attn", (5, 6, 7)),
    ]
