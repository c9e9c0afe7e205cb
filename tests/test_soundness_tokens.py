"""Whose tokens they are and in which order; a hint fills only what is unknown of that."""

from collections.abc import Callable

import pytest
import torch
from soundness import (
    GRID,
    ORDER,
    TEXT,
    VIDEO,
    WIDTH,
    Model,
    TwoVideos,
    attention,
    dense,
    fates,
    heads,
    latents,
    sdpa,
    tiled,
)
from torch import Tensor, nn

import vsa_compile


def test_the_smallest_model_converts():
    assert fates(Model(lambda x: attention(x)), latents()) == [GRID]


def by_index_copy(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y.index_copy_(1, ORDER, x)
    return y


def by_index_copy_into_a_clone(x: Tensor) -> Tensor:
    y = x.clone()
    y.index_copy_(1, ORDER, x)
    return y


def by_scatter(x: Tensor) -> Tensor:
    y = x.clone()
    y.scatter_(1, ORDER[None, :, None].expand(x.shape), x)
    return y


def by_copy(x: Tensor) -> Tensor:
    x = x.clone()
    x.copy_(x[:, ORDER])
    return x


def by_assignment(x: Tensor) -> Tensor:
    x = x.clone()
    x[:] = x[:, ORDER]
    return x


def by_scatter_through_a_view(x: Tensor) -> Tensor:
    x = x.clone()
    view = x.view(x.shape[0], VIDEO, 2, -1)
    view[:, ORDER] = view.clone()
    return x


def by_out(x: Tensor) -> Tensor:
    y = x.clone()
    torch.index_select(x, 1, ORDER, out=y)
    return y


def by_every_second_turned(x: Tensor) -> Tensor:
    """Every second frame turned from right to left."""
    y = x.unflatten(1, GRID).clone()
    y[:, 1::2] = y[:, 1::2].flip(3)
    return y.flatten(1, 3)


def by_write_under_an_alias(x: Tensor) -> Tensor:
    y = x.clone()
    same = y.view_as(y)
    y.copy_(x.roll(1, 1))
    return same


REORDERED_IN_PLACE = (
    by_index_copy, by_index_copy_into_a_clone, by_scatter, by_copy, by_assignment, by_scatter_through_a_view,
    by_out, by_every_second_turned, by_write_under_an_alias,
)  # fmt: skip


def filled(x: Tensor, order: list[int], way: str) -> Tensor:
    """A buffer that is filled position by position."""
    y = torch.empty_like(x)
    views = y.unbind(1)
    for i, j in enumerate(order):
        if way == "select":
            y.select(1, i).copy_(x.select(1, j))
        elif way == "setitem":
            y[:, i] = x[:, j]
        elif way == "narrow":
            y.narrow(1, i, 1).copy_(x.narrow(1, j, 1) * 1)
        else:
            views[i].copy_(x.unbind(1)[j])
    return y


WAYS = pytest.mark.parametrize("way", ["select", "setitem", "narrow", "unbind"])
SMALL_GRID = (2, 2, 3)


@WAYS
def test_a_buffer_that_is_filled_backwards_stays_dense(way: str):
    model = Model(lambda x: attention(filled(x, list(range(12))[::-1], way)) + x)
    assert dense(fates(model, latents(grid=SMALL_GRID)))
    assert dense(fates(model, latents(grid=SMALL_GRID), grid=SMALL_GRID))


@WAYS
def test_a_buffer_that_is_filled_in_order_has_the_same_tokens(way: str):
    model = Model(lambda x: attention(filled(x, list(range(12)), way)) + x)
    assert fates(model, latents(grid=SMALL_GRID)) == [SMALL_GRID]


@WAYS
def test_what_is_filled_backwards_stays_in_another_order_to_its_last_position(way: str):
    """Of three frames no two lie side by side that could still show in which order they were."""

    def backwards(x: Tensor) -> Tensor:
        return filled(x.unflatten(1, (3, 2, 2)), [2, 0, 1], way).flatten(1, 3)

    model = Model(lambda x: attention(backwards(x)) + x)
    assert fates(model, latents(grid=(3, 2, 2)), grid=(3, 2, 2)) == ["reordered"]


def erased_by_zero(x: Tensor, y: Tensor) -> Tensor:
    return x.clone().mul_(0).add_(y)


def erased_by_itself(x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    return z.sub_(z).add_(y)


def erased_by_filling(x: Tensor, y: Tensor) -> Tensor:
    return x.clone().masked_fill_(torch.ones(x.shape, dtype=torch.bool), 0).add_(y)


def weighed_with_nothing(x: Tensor, y: Tensor) -> Tensor:
    return torch.add(y, x, alpha=0)


def at_the_end_of_the_way(x: Tensor, y: Tensor) -> Tensor:
    return torch.lerp(x, y, 1)


ERASED = (erased_by_zero, erased_by_itself, erased_by_filling, weighed_with_nothing, at_the_end_of_the_way)


@pytest.mark.parametrize("erase", ERASED, ids=lambda f: f.__name__)
def test_what_an_operation_leaves_nothing_of_does_not_say_whose_tokens_they_are(erase: Callable):
    assert dense(fates(Model(lambda x: attention(erase(x, x.flip(1)))), latents()))
    assert fates(Model(lambda x: attention(erase(x.flip(1), x))), latents()) == [GRID]


@pytest.mark.parametrize("write", REORDERED_IN_PLACE, ids=lambda f: f.__name__)
def test_tokens_that_were_written_in_another_order_stay_dense(write: Callable[[Tensor], Tensor]):
    assert dense(fates(Model(lambda x: attention(write(x))), latents()))


def by_index(x: Tensor) -> Tensor:
    return x[:, ORDER]


def by_gather(x: Tensor) -> Tensor:
    return x.gather(1, ORDER[None, :, None].expand(x.shape))


def by_roll(x: Tensor) -> Tensor:
    return x.roll(5, 1)


def by_flip(x: Tensor) -> Tensor:
    return x.flip(1)


def by_sort(x: Tensor) -> Tensor:
    return x[:, x.abs().sum((0, 2)).argsort()]


REORDERED = (by_index, by_gather, by_roll, by_flip, by_sort)


@pytest.mark.parametrize("reorder", REORDERED, ids=lambda f: f.__name__)
def test_a_sum_with_reordered_tokens_teaches_nothing_of_them(reorder: Callable[[Tensor], Tensor]):
    def attend(x: Tensor) -> Tensor:
        y = reorder(x)
        return attention(y) + (x + y).mean()

    assert dense(fates(Model(attend), latents()))
    assert fates(Model(lambda x: attention(x) + (x + reorder(x)).mean()), latents()) == [GRID]


def from_two_copies(x: Tensor) -> Tensor:
    return x.repeat(1, 2, 1)[:, 5 : 5 + VIDEO]


def from_an_unknown_order(x: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.cat([x[:, :1], x], 1), dim=1)[:, 1:]


@pytest.mark.parametrize("cut", [from_two_copies, from_an_unknown_order], ids=lambda f: f.__name__)
def test_a_run_of_other_tokens_learns_nothing_from_a_sum(cut: Callable[[Tensor], Tensor]):
    assert dense(fates(Model(lambda x: x + attention(cut(x))), latents()))


def positions() -> Tensor:
    """(N, 16), computed from frame, row and column of every token of a video."""
    places = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in GRID), indexing="ij")
    return torch.stack([place.flatten() for place in places], 1) @ torch.ones(3, WIDTH)


def split_and_merged(x: Tensor) -> Tensor:
    y = from_two_copies(x) + positions()
    return y.unflatten(1, GRID).relu().flatten(1, 3)


def beside_others(x: Tensor) -> Tensor:
    joint = torch.cat([x, x[:, :TEXT].square()], 1)
    run = joint.repeat(1, 2, 1)[:, 5 : 5 + VIDEO + TEXT]
    return (run + torch.cat([positions(), torch.zeros(TEXT, WIDTH)]))[:, :VIDEO]


def two_of_them(x: Tensor) -> Tensor:
    return from_two_copies(x) + x.repeat(1, 3, 1)[:, 9 : 9 + VIDEO] + positions()


@pytest.mark.parametrize("cut", [split_and_merged, beside_others, two_of_them], ids=lambda f: f.__name__)
def test_a_run_amid_frames_stays_one_whatever_is_added_to_it(cut: Callable[[Tensor], Tensor]):
    assert dense(fates(Model(lambda x: attention(cut(x))), latents()))
    assert dense(fates(Model(lambda x: attention(cut(x))), latents(), grid=GRID))
    assert fates(Model(lambda x: attention(x + cut(x))), latents()) == [GRID]


@pytest.mark.parametrize("reorder", REORDERED, ids=lambda f: f.__name__)
def test_queries_alone_in_another_order_stay_dense(reorder: Callable[[Tensor], Tensor]):
    def attend(x: Tensor) -> Tensor:
        return x + sdpa(heads(reorder(x)), heads(x), heads(x)).transpose(1, 2).flatten(2)

    assert dense(fates(Model(attend), latents()))


TABLE = torch.randn(1, VIDEO, WIDTH, generator=torch.Generator().manual_seed(2))


def test_samples_of_one_batch_are_not_each_others_tokens():
    def attend(x: Tensor, other: Callable[[Tensor], Tensor]) -> Tensor:
        return x + sdpa(heads(x), heads(other(x)), heads(other(x))).transpose(1, 2).flatten(2)

    def halves(x: Tensor) -> Tensor:
        first, second = x.chunk(2)
        return torch.cat(
            [first, second + sdpa(*map(heads, (second, first, first))).transpose(1, 2).flatten(2)]
        )

    for other in (
        lambda x: x.flip(0),
        lambda x: x[[1, 0]],
        lambda x: x[:1].expand_as(x),
        lambda x: x.roll(1, 0),
    ):
        assert fates(Model(lambda x, other=other: attend(x, other)), latents()) == ["cross"]
    assert fates(Model(halves), latents()) == ["cross"]
    assert fates(Model(lambda x: attend(x, lambda x: x + 1)), latents()) == [GRID]
    assert fates(Model(lambda x: torch.cat([attention(one) for one in x.chunk(2)])), latents()) == [
        GRID,
        GRID,
    ]


def test_single_samples_are_told_apart():
    def assigned(x: Tensor) -> Tensor:
        others = x.clone()
        others[:1] = x[1:2]
        return others

    for queries, keys in (
        (lambda x: x[0][None], lambda x: x[1][None]),
        (lambda x: x.unbind(0)[0][None], lambda x: x.unbind(0)[1][None]),
        (lambda x: x, lambda x: torch.cat([x[1:], x[:1]])),
        (lambda x: x, assigned),
        (lambda x: x[0][None], lambda x: x[1:]),
        (lambda x: x[::2], lambda x: x[1::2]),
        (lambda x: x[:1], lambda x: x[torch.tensor([1])]),
        (lambda x: x[torch.tensor([0])], lambda x: x[torch.tensor([1])]),
        (lambda x: x[torch.tensor(0)][None], lambda x: x[torch.tensor(1)][None]),
        (lambda x: x.index_select(0, torch.tensor([0])), lambda x: x.index_select(0, torch.tensor([1]))),
    ):
        found = fates(
            Model(lambda x, q=queries, k=keys: sdpa(heads(q(x)), heads(k(x)), heads(k(x)))), latents()
        )
        assert found == ["cross"]
    assert fates(Model(lambda x: attention(x[1][None])), latents()) == [GRID]
    assert fates(Model(lambda x: attention(x[1::2])), latents()) == [GRID]


@pytest.mark.parametrize("at", [(0, 1), (0, -1), (1, 2)])
def test_single_samples_of_a_symbolic_batch_are_told_apart(at: tuple[int, int]):
    def attend(x: Tensor, i: int, j: int) -> Tensor:
        return sdpa(heads(x[i][None]), heads(x[j][None]), heads(x[j][None]))

    found = []

    def backend(module: torch.fx.GraphModule, _: list) -> Callable:
        settings = vsa_compile.Options.read({"min_tokens": 0, "sparsity": 1e-6})
        found.extend(hasattr(one, "grid") for one in vsa_compile.backend.convert(module, settings))
        return module.forward

    for model in (Model(attend), Model(lambda x, *_: attend(x, *at))):
        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(model, backend=backend, dynamic=True)(latents(3), *at)
    torch._dynamo.reset()
    same = Model(lambda x, i, j: attention(x[i][None]))
    with torch.no_grad():
        torch.compile(same, backend=backend, dynamic=True)(latents(3), *at)
    assert found == [False, False, True]


@pytest.mark.parametrize(
    "cut",
    [
        lambda q: (q[:2], q[2:]),
        lambda q: (q[::2], q[1::2]),
        lambda q: (q[:2], q[torch.tensor([2, 3])]),
        lambda q: q.flatten(0, 1).view(2, 2, 2, VIDEO, 8).unbind(1),
        lambda q: (q[:, :, : VIDEO // 2], q[:, :, VIDEO // 2 :]),
        lambda q: (q[:, :, ::2], q[:, :, 1::2]),
        lambda q: (q, q[:, :, :1].expand(-1, -1, VIDEO, -1)),
    ],
    ids=["halves", "every second", "by index", "split", "tokens", "every second token", "one token"],
)
def test_parts_of_one_input_are_not_each_others_tokens_whatever_a_hint_says(cut: Callable):
    def attend(x: Tensor, given: Tensor) -> Tensor:
        q, k = cut(given)
        return sdpa(q, k, k).mean() + x

    given = torch.randn(4, 2, VIDEO, 8)
    for grid in (GRID, (2, 4, 4)):
        assert dense(fates(Model(attend), latents(), given, grid=grid))


def test_two_inputs_may_be_one_video_if_a_hint_says_so():
    model = Model(lambda x, q, k: sdpa(q, k, k).mean() + x)
    q, k = torch.randn(2, 2, 48, 8), torch.randn(2, 2, 48, 8)
    assert fates(model, latents(), q, k, grid=(3, 4, 4)) == [(3, 4, 4)]
    for part in (lambda k: k[1:], lambda k: k[torch.tensor([1, 0])]):

        def attend(x: Tensor, q: Tensor, k: Tensor, part: Callable = part) -> Tensor:
            keys = part(k)
            return sdpa(q[: len(keys)], keys, keys).mean() + x

        assert fates(Model(attend), latents(), q, k, grid=(3, 4, 4)) == ["cross"]


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.flip(1),
        lambda x: x.roll(1, 1),
        lambda x: torch.cat([x[:, 1:], x[:, :1]], 1),
        lambda x: x[:, :1].expand_as(x),
        lambda x: x.transpose(0, 1),
    ],
    ids=["flip", "roll", "cat", "expand", "transpose"],
)
def test_views_where_heads_are_do_not_see_each_others_tokens_unasked(other: Callable[[Tensor], Tensor]):
    """(batch, views, frames, rows, cols, channels): attention from each view to another one."""

    class Views(nn.Module):
        def forward(self, volume: Tensor) -> Tensor:
            q = volume.flatten(2, 4)
            return sdpa(q, other(q), other(q))

    class OneView(nn.Module):
        def forward(self, volume: Tensor) -> Tensor:
            q = volume.flatten(2, 4)
            return sdpa(q, 2 * q, q)

    volume = torch.randn(2, 2, *GRID, 8)
    assert fates(Views(), volume) == ["cross"]
    assert fates(OneView(), volume) == [GRID]


@pytest.mark.parametrize(
    "other",
    [lambda x: x.flip(1), lambda x: x[:, torch.tensor([1, 0])], lambda x: x[:, :1].expand_as(x)],
    ids=["flip", "index", "expand"],
)
def test_views_that_were_split_from_the_batch_are_views(other: Callable[[Tensor], Tensor]):
    class Views(Model):
        def forward(self, latents: Tensor) -> Tensor:
            q = self.tokens(latents).unflatten(0, (2, 2))
            return sdpa(q, other(q), other(q)).mean() + sdpa(q, 2 * q, q)

    assert fates(Views(attention), latents(4)) == ["cross", GRID]


def test_two_videos_that_were_stacked_and_taken_apart_are_two():
    def packed(x: Tensor, y: Tensor) -> Tensor:
        q, k = torch.stack([x, y]).unbind(0)
        return sdpa(heads(q), heads(k), heads(k))

    def fused(x: Tensor, y: Tensor) -> Tensor:
        q, k = torch.stack([x, 2 * x], 2).unbind(2)
        return sdpa(heads(q), heads(k), heads(k)) + y.mean()

    two = latents(), latents(seed=1)
    assert fates(TwoVideos(packed), *two) == ["cross"]
    assert fates(TwoVideos(fused), *two) == [GRID]


def test_even_frames_and_odd_ones_are_two_videos():
    class Halves(Model):
        def forward(self, latents: Tensor) -> Tensor:
            even, odd = self.patch(latents).unflatten(2, (4, 2)).unbind(3)
            q, k = (half.flatten(2).transpose(1, 2) for half in (even, odd))
            return sdpa(heads(q), heads(k), heads(k))

    assert fates(Halves(attention), latents(grid=(8, 4, 4))) == ["cross"]


def rolled_by_writes(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:] = x[:, :-1]
    y[:, :1] = x[:, -1:]
    return y


def flipped_through_a_view(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y.view(2, 8, 8, WIDTH).copy_(x.reshape(2, 8, 8, WIDTH).flip(1))
    return y


@pytest.mark.parametrize("write", [rolled_by_writes, flipped_through_a_view], ids=lambda f: f.__name__)
def test_a_hint_does_not_say_that_tokens_that_were_written_somewhere_are_in_order(write: Callable):
    assert fates(Model(lambda x: attention(write(x))), latents(), grid=GRID) == ["reordered"]


def copied(x: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(y)


def assigned(x: Tensor, y: Tensor) -> Tensor:
    buffer = x.clone()
    buffer[:] = y
    return buffer


def in_two_parts(x: Tensor, y: Tensor) -> Tensor:
    buffer = torch.empty_like(x)
    buffer[..., :8], buffer[..., 8:] = y[..., :8], y[..., 8:]
    return buffer


@pytest.mark.parametrize("write", [copied, assigned, in_two_parts], ids=lambda f: f.__name__)
def test_what_is_written_over_a_video_is_none(write: Callable[[Tensor, Tensor], Tensor]):
    text = torch.randn(2, VIDEO, WIDTH)
    assert fates(Model(lambda x, text: attention(write(x, text)).mean() + x), latents(), text) == [
        "unknown-grid"
    ]
    assert fates(Model(lambda x: attention(write(x, x.mT.reshape(x.shape)))), latents()) != [GRID]
    assert fates(Model(lambda x, text: attention(write(text, x))), latents(), text) == [GRID]


def test_tokens_that_were_looked_up_by_an_index_are_in_another_order():
    def attend(x: Tensor) -> Tensor:
        return attention(torch.stack([torch.nn.functional.embedding(ORDER, one) for one in x]))

    assert fates(Model(attend), latents(), grid=GRID) == ["reordered"]


def snake_over_frames(x: Tensor) -> Tensor:
    frames = x.unflatten(1, GRID).flatten(2, 3).unbind(1)
    return torch.cat([one.flip(1) if at % 2 else one for at, one in enumerate(frames)], 1)


def snake_over_rows(x: Tensor) -> Tensor:
    rows = x.unflatten(1, GRID).unbind(2)
    return torch.stack([one.flip(2) if at % 2 else one for at, one in enumerate(rows)], 2).flatten(1, 3)


def backwards_in_the_batch(x: Tensor) -> Tensor:
    return torch.cat([x[:1], x[1:].flip(1)])


def backwards_in_half_the_channels(x: Tensor) -> Tensor:
    return torch.cat([x[..., :8], x[..., 8:].flip(1)], -1)


def rows_swapped_in_half_the_channels(x: Tensor) -> Tensor:
    swapped = rows_swapped(x.unflatten(1, GRID)).flatten(1, 3)
    return torch.cat([x[..., :8], swapped[..., 8:]], -1)


def backwards_in_a_stack(x: Tensor) -> Tensor:
    return torch.stack([x, x.flip(1)], 2).flatten(2)[..., :WIDTH]


def backwards_in_the_first_channels_written(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[..., :8] = x.flip(1)[..., :8]
    y[..., 8:] = x[..., 8:]
    return y


def backwards_at_chosen_channels(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[..., torch.arange(WIDTH).flip(0)] = x.flip(1)
    return y


def backwards_at_chosen_samples(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[torch.tensor([1, 0])] = x.flip(1)
    return y


def backwards_copied_to_channels(x: Tensor) -> Tensor:
    return torch.zeros_like(x).index_copy(2, torch.arange(WIDTH).flip(0), x.flip(1))


def backwards_scattered_to_channels(x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter(2, torch.arange(WIDTH).flip(0).expand(x.shape), x.flip(1))


SIDE_BY_SIDE = (
    backwards_in_the_first_channels_written, backwards_at_chosen_channels, backwards_at_chosen_samples,
    backwards_copied_to_channels, backwards_scattered_to_channels,
    snake_over_frames, snake_over_rows, backwards_in_the_batch, backwards_in_half_the_channels,
    rows_swapped_in_half_the_channels, backwards_in_a_stack,
)  # fmt: skip


@pytest.mark.parametrize("joined", SIDE_BY_SIDE, ids=lambda f: f.__name__)
def test_tokens_beside_others_in_another_order_are_in_no_order(joined: Callable[[Tensor], Tensor]):
    assert fates(Model(lambda x: attention(joined(x))), latents()) == ["reordered"]


def test_tokens_beside_others_in_their_order_keep_it():
    def at_channels(x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        y[..., torch.arange(WIDTH).flip(0)] = x
        return y

    def copied(x: Tensor) -> Tensor:
        return x.index_copy(2, torch.arange(8), 2 * x[..., :8])

    for joined in (at_channels, copied):
        assert fates(Model(lambda x, joined=joined: attention(joined(x))), latents()) == [GRID]


def test_what_was_filled_or_overwritten_by_a_table_is_nobodys():
    def filled(x: Tensor) -> Tensor:
        y = x.clone()
        y[:] = 0
        return y.add_(x.flip(1))

    def positioned(x: Tensor) -> Tensor:
        y = x.clone()
        y[:] = positions()
        return y.add_(x.flip(1))

    assert dense(fates(Model(lambda x: attention(filled(x))), latents()))
    assert dense(fates(Model(lambda x: attention(positioned(x))), latents()))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_table_that_two_videos_share_does_not_make_them_one(batch: int):
    def attend(x: Tensor, other: Tensor) -> Tensor:
        x, other = x + TABLE, other + TABLE
        return sdpa(heads(x), heads(other), heads(other))

    assert fates(TwoVideos(attend), latents(batch), latents(batch, 1)) == ["cross"]


@pytest.mark.parametrize("batch", [1, 2])
def test_the_mean_difference_of_two_videos_does_not_make_them_one(batch: int):
    def attend(x: Tensor, other: Tensor) -> Tensor:
        return sdpa(heads(x), heads(other), heads(other)) + (x - other).mean()

    assert fates(TwoVideos(attend), latents(batch), latents(batch, 1)) == ["cross"]


@pytest.mark.parametrize("batch", [1, 2])
def test_two_shifts_of_a_clip_are_not_the_same_tokens(batch: int):
    def attend(x: Tensor) -> Tensor:
        clip = torch.cat([x, x[:, :16]], 1)
        early, late = clip[:, :VIDEO], clip[:, 16:]
        return sdpa(heads(early), heads(late), heads(late)) + (early - late).mean()

    assert dense(fates(Model(attend), latents(batch)))


@pytest.mark.parametrize("batch", [1, 2])
def test_one_video_under_a_table_converts_at_every_batch_size(batch: int):
    assert fates(Model(lambda x: attention(x + TABLE)), latents(batch)) == [GRID]


# A hint fills what is unknown.


def in_windows(x: Tensor) -> Tensor:
    """Window by window of (2, 2, 2)."""
    return tiled(x.transpose(1, 2).unflatten(2, GRID)).transpose(1, 2)


def rows_first(x: Tensor) -> Tensor:
    return x.unflatten(1, GRID).transpose(1, 2).flatten(1, 3)


def frames_swapped(x: Tensor) -> Tensor:
    volume = x.unflatten(1, GRID)
    return torch.cat([volume[:, 1:], volume[:, :1]], 1).flatten(1, 3)


def frames_turned(x: Tensor) -> Tensor:
    """The first two the other way round."""
    volume = x.unflatten(1, GRID)
    return torch.cat([volume[:, :2].flip(1), volume[:, 2:]], 1).flatten(1, 3)


def tokens_swapped_and_regrouped(x: Tensor) -> Tensor:
    return torch.cat([x[:, 5:], x[:, :5]], 1).unflatten(1, (8, 8)).flatten(1, 2)


SHOWN_NOT_TO_BE_RASTER = (
    in_windows, rows_first, by_index, by_flip, by_copy, by_every_second_turned, frames_swapped, frames_turned,
    tokens_swapped_and_regrouped,
)  # fmt: skip


@pytest.mark.parametrize("reorder", SHOWN_NOT_TO_BE_RASTER, ids=lambda f: f.__name__)
@pytest.mark.parametrize("hint", ["options", "video_grid", "prepare", "prepare, before the block"])
def test_a_hint_does_not_override_what_the_graph_shows(reorder: Callable[[Tensor], Tensor], hint: str):
    model = Model(lambda x: attention(reorder(x)))
    if hint == "prepare, before the block":
        model = Model(lambda x: attention(x), before=reorder)
    if hint.startswith("prepare"):
        found = fates(vsa_compile.prepare(model), latents())
    elif hint == "video_grid":
        found = fates(model, latents(), context=vsa_compile.video_grid(*GRID))
    else:
        found = fates(model, latents(), grid=GRID)
    assert dense(found)


@pytest.mark.parametrize(
    ("reorder", "shown"),
    [(by_flip, "(flip)"), (by_index, "(getitem)"), (frames_swapped, "(its runs"), (frames_turned, "(flip)")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_reason_says_what_the_graph_shows_and_the_way_out(reorder: Callable, shown: str):
    texts: list[str] = []
    assert fates(Model(lambda x: attention(reorder(x))), latents(), texts=texts, grid=GRID) == ["reordered"]
    assert shown in texts[0]
    assert "no hint makes them so, nor another index" in texts[0]


RAGGED = (3, 4, 5)


def astride(x: Tensor) -> Tensor:
    """The tokens of (3, 4, 5), read as (4, 3, 5): no axis of these is one of those."""
    return x.unflatten(1, (4, 3, 5))


def astride_and_turned(x: Tensor) -> Tensor:
    return astride(x).flip(1, 2, 3).transpose(1, 2)


def astride_and_indexed(x: Tensor) -> Tensor:
    return astride(x)[:, ORDER[:3] % 3].transpose(1, 2)


@pytest.mark.parametrize(
    "reorder",
    [lambda x: astride(x).transpose(1, 2), astride_and_turned, astride_and_indexed,
     lambda x: astride(x).flip(1), lambda x: rows_repeated(x.unflatten(1, RAGGED))],
    ids=["transposed", "turned", "indexed", "flipped", "repeated"],
)  # fmt: skip
@pytest.mark.parametrize("hint", [None, RAGGED])
def test_what_was_reshaped_across_axes_and_moved_stays_dense(reorder: Callable[[Tensor], Tensor], hint):
    def attend(x: Tensor) -> Tensor:
        return attention(reorder(x).flatten(1, 3))

    options = {} if hint is None else {"grid": hint}
    assert dense(fates(Model(attend), latents(grid=RAGGED), **options))


def rows_repeated(volume: Tensor) -> Tensor:
    return volume.repeat(1, 1, 2, 1, 1)[:, :, 3:7]


def rows_swapped(volume: Tensor) -> Tensor:
    return torch.cat([volume[:, :, 2:], volume[:, :, :2]], 2)


def test_rows_that_were_swapped_stay_so_whatever_rows_are_added_to_them():
    def attend(x: Tensor) -> Tensor:
        volume = x.unflatten(1, GRID)
        twice = volume.repeat(1, 1, 2, 1, 1)
        others = torch.cat([twice[:, :, 3:5], twice[:, :, :2]], 2)
        return attention((rows_swapped(volume) + others).flatten(1, 3) + positions())

    assert dense(fates(Model(attend), latents()))


def test_what_was_reshaped_across_axes_and_back_is_what_it_was():
    found = fates(Model(lambda x: attention((2 * astride(x)).flatten(1, 3))), latents(grid=RAGGED))
    assert found == [RAGGED]


def test_prepare_does_not_take_text_of_equal_length_for_the_video():
    def attend(text: Tensor, x: Tensor) -> Tensor:
        return attention(text).mean(1, keepdim=True) + x

    class TextFirst(Model):
        def forward(self, latents: Tensor, text: Tensor) -> Tensor:
            return self.blocks[0](text, self.tokens(latents))

    text = torch.randn(2, VIDEO, WIDTH, generator=torch.Generator().manual_seed(3))
    assert dense(fates(vsa_compile.prepare(TextFirst(attend)), latents(), text))


def table_of_positions() -> Tensor:
    """(64, 16), of positions of three axes in raster order."""
    frames, rows, cols = torch.meshgrid(*map(torch.arange, GRID), indexing="ij")
    return torch.stack([frames, rows, cols, frames + 1], -1).reshape(VIDEO, 4).repeat(1, 4).cos()


@pytest.mark.parametrize("embed", ["a convolution", "a linear layer"])
def test_a_table_of_positions_makes_no_video_of_rows_cols_and_parts_of_a_width(embed: str):
    """Frames were taken for the parts of each width, which are as many; the table has a place for each."""
    embedding = nn.Linear(4, WIDTH)

    def attend(x: Tensor) -> Tensor:
        torn = x.reshape(x.shape[0], 4, VIDEO, 4)[:, 1].repeat(1, 1, 4)
        return attention(torn * table_of_positions())

    class Linear(nn.Module):
        def forward(self, video: Tensor) -> Tensor:
            return attend(embedding(video.permute(0, 2, 3, 4, 1)).flatten(1, 3))

    model = Model(attend) if embed == "a convolution" else Linear()
    assert fates(model, latents(), grid=GRID) == ["not-raster"]
    assert fates(Model(lambda x: attention(x * table_of_positions())), latents()) == [GRID]
