"""What a mask lets through: later writes into it, lengths that are sums, fillings that look like sizes."""

from collections.abc import Callable

import pytest
import torch
from compare import assert_same_output
from soundness import GRID, TEXT, VIDEO, WIDTH, Model, attention, fates, latents
from torch import Tensor

import vsa_compile

pytestmark = pytest.mark.quick


def ones(batch: int = 2) -> Tensor:
    return torch.ones(batch, 1, 1, VIDEO + TEXT, dtype=torch.bool)


def frames_set_false(x: Tensor, pad: Tensor) -> Tensor:
    m = ones()
    m[..., 32:64] = False
    return m


def one_row_set_false(x: Tensor, pad: Tensor) -> Tensor:
    m = torch.ones(2, VIDEO + TEXT, dtype=torch.bool)
    m[0, 48:64] = False
    return m[:, None, None]


def filled_in_place(x: Tensor, pad: Tensor) -> Tensor:
    m = ones()
    m.masked_fill_(pad, False)
    return m


def anded_in_place(x: Tensor, pad: Tensor) -> Tensor:
    m = ones()
    m.logical_and_(~pad)
    return m


def anded_by_augmented_assignment(x: Tensor, pad: Tensor) -> Tensor:
    m = ones()
    m &= ~pad
    return m


def anded_out(x: Tensor, pad: Tensor) -> Tensor:
    m = ones()
    torch.logical_and(m, ~pad, out=m)
    return m


def zeroed_through_a_view(x: Tensor, pad: Tensor) -> Tensor:
    m = ones()
    m.view(2, -1)[:, 40:50].zero_()
    return m


def written_before_it_is_widened(x: Tensor, pad: Tensor) -> Tensor:
    m = torch.ones(2, VIDEO + TEXT, dtype=torch.bool)
    wide = m[:, None, None]
    m[:, :16] = False
    return wide


def positions_written_first(x: Tensor, pad: Tensor) -> Tensor:
    position = torch.arange(VIDEO + TEXT)
    position[10:20] = VIDEO + TEXT
    return (position < VIDEO + 1)[None, None, None].expand(2, -1, -1, -1)


def new_full_of_false(x: Tensor, pad: Tensor) -> Tensor:
    m = x.new_full((2, 1, 1, VIDEO + TEXT), False, dtype=torch.bool)
    m[..., VIDEO:] = True
    return m


def brought_into_another_order(x: Tensor, pad: Tensor) -> Tensor:
    m = torch.cat([torch.ones(2, VIDEO, dtype=torch.bool), ~pad[:, 0, 0, :TEXT]], 1)
    return m[:, torch.arange(VIDEO + TEXT - 1, -1, -1)][:, None, None]


def a_sum_of_what_is_negative(x: Tensor, pad: Tensor) -> Tensor:
    length = VIDEO + (pad[:, 0, 0, :TEXT].logical_not().int() - 1).sum(-1)
    return (torch.arange(VIDEO + TEXT)[None] < length[:, None])[:, None, None]


def a_length_that_wraps(x: Tensor, pad: Tensor) -> Tensor:
    length = (VIDEO + 2 * VIDEO + pad[:, 0, 0, :TEXT].sum(-1)).to(torch.int8)
    return (torch.arange(VIDEO + TEXT)[None] < length[:, None])[:, None, None]


def a_length_that_is_a_truth_value(x: Tensor, pad: Tensor) -> Tensor:
    length = (VIDEO + pad[:, 0, 0, :TEXT].sum(-1)).bool()
    return (torch.arange(VIDEO + TEXT)[None] < length[:, None])[:, None, None]


def a_number_that_wraps(x: Tensor, pad: Tensor) -> Tensor:
    m = torch.ones(2, VIDEO + TEXT, dtype=torch.int64)
    m[:, :16] = 256
    return m.to(torch.uint8).bool()[:, None, None]


def a_fraction_that_is_cut_off(x: Tensor, pad: Tensor) -> Tensor:
    m = torch.ones(2, VIDEO + TEXT)
    m[:, :16] = 0.5
    return m.int().bool()[:, None, None]


def a_count_that_may_be_none(x: Tensor, pad: Tensor) -> Tensor:
    return pad[:, 0, 0, :TEXT].sum(-1).bool()[:, None, None, None].expand(-1, -1, -1, VIDEO + TEXT)


def padding_written_over_the_video(x: Tensor, pad: Tensor) -> Tensor:
    """CogView4's spelling, with the text taken to be in front."""
    m = torch.ones(2, VIDEO + TEXT, dtype=torch.int32)
    m[:, :TEXT] = ~pad[:, 0, 0, :TEXT]
    return m.bool()[:, None, None]


ANY_ORDER = torch.randperm(VIDEO + TEXT, generator=torch.Generator().manual_seed(0))


def positions() -> Tensor:
    return torch.arange(VIDEO + TEXT)


def key(mask: Tensor) -> Tensor:
    return mask.expand(2, -1)[:, None, None]


def positions_by_index(x: Tensor, pad: Tensor) -> Tensor:
    return key(positions()[ANY_ORDER] < VIDEO)


def positions_flipped(x: Tensor, pad: Tensor) -> Tensor:
    return key(positions().flip(0) < VIDEO)


def positions_rolled(x: Tensor, pad: Tensor) -> Tensor:
    rolled = positions()
    rolled.copy_(positions().roll(9))
    return key(rolled < VIDEO)


def positions_turned(x: Tensor, pad: Tensor) -> Tensor:
    return key(positions().view(-1, 1).T < 9)


def positions_across(x: Tensor, pad: Tensor) -> Tensor:
    return key(positions().view(9, 8).T.reshape(-1) < VIDEO)


def every_second_position(x: Tensor, pad: Tensor) -> Tensor:
    return key(torch.arange(2 * (VIDEO + TEXT))[::2] < VIDEO)


def frames_that_each_sample_has(x: Tensor, pad: Tensor) -> Tensor:
    """Padded clips: (B, frames, 1, 1), expanded to tokens."""
    frames = 1 + pad[:, 0, 0, :3].sum(1)
    real = (torch.arange(4).view(1, 4, 1, 1) < frames.view(-1, 1, 1, 1)).expand(-1, *GRID).flatten(1)
    return torch.cat([real, ~pad[:, 0, 0, :TEXT]], 1)[:, None, None]


def below_zero_in_a_byte(x: Tensor, pad: Tensor) -> Tensor:
    return key((torch.zeros(1, VIDEO + TEXT, dtype=torch.uint8) - 1) < 5)


def a_fraction_that_is_rounded(x: Tensor, pad: Tensor) -> Tensor:
    return key(torch.full((1, VIDEO + TEXT), 0.1).double() == 0.1)


def a_number_that_is_rounded(x: Tensor, pad: Tensor) -> Tensor:
    return key(torch.full((1, VIDEO + TEXT), 2049.0, dtype=torch.half).float() == 2049)


def a_bound_that_is_rounded(x: Tensor, pad: Tensor) -> Tensor:
    return key(torch.full((1, VIDEO + TEXT), 0.5) > 0.5 - 1e-12)


def joined_along_an_axis(x: Tensor, pad: Tensor) -> Tensor:
    hidden = torch.arange(VIDEO) % 5 > 2
    return key(torch.cat([torch.ones(1, TEXT, dtype=torch.bool), hidden[None]], axis=1))


def counted_down_by_index(x: Tensor, pad: Tensor) -> Tensor:
    mask, some = torch.ones(2, VIDEO + TEXT, dtype=torch.int64), torch.tensor([3, 9])
    return mask.index_add(1, some, torch.ones(2, 2, dtype=torch.int64), alpha=-1).bool()[:, None, None]


def counted_up_by_scatter(x: Tensor, pad: Tensor) -> Tensor:
    mask, some = torch.ones(2, VIDEO + TEXT, dtype=torch.int64), torch.tensor([[3, 9], [3, 9]])
    return (mask.scatter(1, some, 1, reduce="add") == 1)[:, None, None]


def counted_up_where_indices_say(x: Tensor, pad: Tensor) -> Tensor:
    mask, some = torch.ones(VIDEO + TEXT, dtype=torch.int64), torch.tensor([3, 9])
    mask.index_put_((some,), torch.tensor(1), accumulate=True)
    return key(mask == 1)


def positions_from_eight_on(x: Tensor, pad: Tensor) -> Tensor:
    return key(torch.arange(8, end=VIDEO + TEXT + 8) < VIDEO)


def less_twice_itself(x: Tensor, pad: Tensor) -> Tensor:
    z = torch.cat([torch.ones(2, VIDEO), (~pad[:, 0, 0, :TEXT]).float()], 1)
    return (torch.sub(z, z, alpha=2) == 0)[:, None, None]


def chosen_by_its_method(x: Tensor, pad: Tensor) -> Tensor:
    """seen.where(condition, y) is torch.where(condition, seen, y)."""
    return (~pad[:, 0, 0]).where(positions()[None] < VIDEO, True)[:, None, None]


def weighed_in_the_old_spelling(x: Tensor, pad: Tensor) -> Tensor:
    seen = (~pad[:, 0, 0]).long()
    return (torch.zeros(2, VIDEO + TEXT, dtype=torch.int64).add(1, seen) > 0)[:, None, None]


def beyond_a_byte(x: Tensor, pad: Tensor) -> Tensor:
    return key(torch.ones(1, VIDEO + TEXT, dtype=torch.int8).ne(257))


def above_what_no_byte_is_below(x: Tensor, pad: Tensor) -> Tensor:
    return key(torch.zeros(1, VIDEO + TEXT, dtype=torch.uint8) > -1)


def a_whole_number_that_is_rounded(x: Tensor, pad: Tensor) -> Tensor:
    return key(torch.full((1, VIDEO + TEXT), 2**24 + 1) > float(2**24))


def half_a_number_that_is_rounded(x: Tensor, pad: Tensor) -> Tensor:
    return key(torch.full((1, VIDEO + TEXT), 2048.0, dtype=torch.half) < 2049)


def filled_through_windows_that_overlap(x: Tensor, pad: Tensor) -> Tensor:
    m = torch.zeros(2, VIDEO + TEXT, dtype=torch.bool)
    m.view(-1).as_strided((VIDEO + TEXT, 2), (1, 1)).fill_(True)
    return m[:, None, None]


def beside_itself_in_an_expanded_dimension(x: Tensor, pad: Tensor) -> Tensor:
    cleared, same = torch.ones(2, VIDEO + TEXT, dtype=torch.bool)[:, None].expand(-1, 2, -1).unbind(1)
    cleared[:, 3:40] = False
    return same[:, None, None]


def a_run_of_positions_below_more_than_all(x: Tensor, pad: Tensor) -> Tensor:
    m = torch.zeros(2, VIDEO + TEXT, dtype=torch.bool)
    m[:, :32] = torch.arange(32) < VIDEO + pad[:, 0, 0, :TEXT].sum(1, keepdim=True)
    return m[:, None, None]


def infinity_less_itself(x: Tensor, pad: Tensor) -> Tensor:
    bias = torch.where(pad[:, 0, 0], float("-inf"), 0.0)
    return ((bias - bias) == 0)[:, None, None]


def infinity_times_nothing(x: Tensor, pad: Tensor) -> Tensor:
    bias = torch.where(pad[:, 0, 0], float("-inf"), 0.0)
    return (bias * 0 == 0)[:, None, None]


def bits_of_another_type(x: Tensor, pad: Tensor) -> Tensor:
    m = torch.ones(2, VIDEO + TEXT)
    m.view(torch.int32).fill_(1)
    return (m > 0.5)[:, None, None]


def a_count_beyond_its_type(x: Tensor, pad: Tensor) -> Tensor:
    count = pad[:, 0, 0].sum(1, dtype=torch.int32, keepdim=True) + (2**31 - 1)
    return (count > 0).expand(-1, VIDEO + TEXT)[:, None, None]


def in_a_window_that_overlaps(x: Tensor, pad: Tensor) -> Tensor:
    windows = torch.ones(2, 12, 12, dtype=torch.bool).unfold(1, 9, 3).unfold(2, 8, 4)
    cleared, same = windows[:, 0, 0], windows[:, 1, 1]
    same.fill_(True)
    cleared.fill_(False)
    return same.flatten(1)[:, None, None]


def a_part_that_begins_anew(x: Tensor, pad: Tensor) -> Tensor:
    m = torch.cat([~pad[:, 0, 0, :20], torch.ones(2, VIDEO + TEXT - 20, dtype=torch.bool)], 1)
    return m.tensor_split((VIDEO + TEXT, 0), 1)[2][:, None, None]


def of_one_head_between_repeats(x: Tensor, pad: Tensor) -> Tensor:
    m = joined_with_ones(x, pad).repeat(1, 2, 1, 1)
    m[:, 1, :, 3:9] = False
    return m.expand(-1, -1, VIDEO + TEXT, -1)


MASKS_THAT_HIDE_VIDEO = (
    of_one_head_between_repeats,
    a_part_that_begins_anew,
    bits_of_another_type,
    a_run_of_positions_below_more_than_all, infinity_less_itself, infinity_times_nothing,
    a_count_beyond_its_type, in_a_window_that_overlaps,
    chosen_by_its_method, weighed_in_the_old_spelling, beyond_a_byte, above_what_no_byte_is_below,
    a_whole_number_that_is_rounded, half_a_number_that_is_rounded, filled_through_windows_that_overlap,
    beside_itself_in_an_expanded_dimension,
    counted_down_by_index, counted_up_by_scatter, counted_up_where_indices_say, positions_from_eight_on,
    less_twice_itself,
    positions_by_index, positions_flipped, positions_rolled, positions_turned, positions_across,
    every_second_position, frames_that_each_sample_has, below_zero_in_a_byte, a_fraction_that_is_rounded,
    a_number_that_is_rounded, a_bound_that_is_rounded, joined_along_an_axis,
    frames_set_false, one_row_set_false, filled_in_place, anded_in_place, anded_by_augmented_assignment,
    anded_out, zeroed_through_a_view, written_before_it_is_widened, positions_written_first,
    new_full_of_false, brought_into_another_order, a_sum_of_what_is_negative, a_length_that_wraps,
    a_length_that_is_a_truth_value, a_number_that_wraps, a_fraction_that_is_cut_off, a_count_that_may_be_none,
    padding_written_over_the_video,
)  # fmt: skip


def joint(mask: Callable[[Tensor, Tensor], Tensor]) -> Model:
    """Video in front of text, in one sequence under a mask."""
    return Model(lambda x, text, pad: attention(torch.cat([x, text], 1), mask(x, pad))[:, :VIDEO])


def text_and_padding() -> tuple[Tensor, Tensor]:
    """(B, T, C), and (B, 1, 1, T + V) bool: True where padding is, on video too."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, TEXT, WIDTH, generator=generator),
        torch.rand(2, 1, 1, VIDEO + TEXT, generator=generator) < 0.5,
    )


@pytest.mark.parametrize("mask", MASKS_THAT_HIDE_VIDEO, ids=lambda f: f.__name__)
def test_a_mask_that_hides_video_keys_stays_dense(mask: Callable[[Tensor, Tensor], Tensor]):
    assert fates(joint(mask), latents(), *text_and_padding()) == ["mask"]


def compared_with_other(x: Tensor, pad: Tensor) -> Tensor:
    length = VIDEO + pad[:, 0, 0, :TEXT].sum(-1)
    return torch.arange(VIDEO + TEXT).lt(other=length[:, None])[:, None, None]


def compared_by_function_with_other(x: Tensor, pad: Tensor) -> Tensor:
    length = VIDEO + pad[:, 0, 0, :TEXT].sum(-1)
    return torch.lt(torch.arange(VIDEO + TEXT), other=length[:, None])[:, None, None]


def joined_with_ones(x: Tensor, pad: Tensor) -> Tensor:
    return torch.cat([torch.ones(2, VIDEO, dtype=torch.bool), ~pad[:, 0, 0, :TEXT]], 1)[:, None, None]


def beside_a_row_that_is_cleared(x: Tensor, pad: Tensor) -> Tensor:
    cleared, kept = torch.ones(2, 2, VIDEO + TEXT, dtype=torch.bool).unbind(0)
    cleared.fill_(False)
    return kept[:, None, None]


def repeated_for_queries(x: Tensor, pad: Tensor) -> Tensor:
    return joined_with_ones(x, pad).expand(-1, -1, VIDEO + TEXT, -1)


def cast_in_four_dimensions(x: Tensor, pad: Tensor) -> Tensor:
    return joined_with_ones(x, pad).long().bool()


def repeated_for_heads(x: Tensor, pad: Tensor) -> Tensor:
    return joined_with_ones(x, pad).repeat(1, 2, 1, 1)


def repeated_for_heads_then_queries(x: Tensor, pad: Tensor) -> Tensor:
    return joined_with_ones(x, pad).expand(-1, 2, -1, -1).expand(-1, -1, VIDEO + TEXT, -1)


def a_count_of_numbers(x: Tensor, pad: Tensor) -> Tensor:
    length = VIDEO + (pad[:, 0, 0, :TEXT].long() != 0).long().sum(-1, keepdim=True)
    return (positions()[None] < length)[:, None, None]


def chosen_by_its_method_for_the_text(x: Tensor, pad: Tensor) -> Tensor:
    return (~pad[:, 0, 0]).where(positions()[None] >= VIDEO, True)[:, None, None]


@pytest.mark.parametrize(
    "mask",
    [
        chosen_by_its_method_for_the_text,
        a_count_of_numbers,
        repeated_for_heads_then_queries,
        cast_in_four_dimensions,
        repeated_for_queries,
        repeated_for_heads,
        compared_with_other,
        compared_by_function_with_other,
        joined_with_ones,
        beside_a_row_that_is_cleared,
    ],
    ids=lambda f: f.__name__,
)
def test_a_mask_of_the_text_alone_converts_however_it_is_spelled(mask: Callable[[Tensor, Tensor], Tensor]):
    assert fates(joint(mask), latents(), *text_and_padding()) == [GRID]


@pytest.mark.parametrize("end", [-TEXT, 3])
def test_where_a_slice_ends_that_may_count_from_the_end_is_unknown(end: int):
    """A number that is an argument is a symbol of the graph, negative or not."""

    def attend(x: Tensor, text: Tensor, end: int) -> Tensor:
        mask = torch.ones(2, 1, 1, VIDEO + TEXT, dtype=torch.bool)
        mask[..., :end] = False
        return attention(torch.cat([x, text], 1), mask)[:, :VIDEO]

    found: list[str] = []

    def backend(module: torch.fx.GraphModule, _: list) -> Callable:
        settings = vsa_compile.Options.read({"min_tokens": 0, "sparsity": 1e-6})
        found.extend(one.reason.slug for one in vsa_compile.backend.convert(module, settings))
        return module.forward

    torch._dynamo.reset()
    model, text = Model(attend), text_and_padding()[0]
    with torch.no_grad():
        got = torch.compile(model, backend=backend, dynamic=True)(latents(), text, end)
        assert_same_output(got, model(latents(), text, end))
    assert found == ["mask"]


def test_one_place_of_a_mask_may_be_written_through_a_view_without_dimensions():
    def attend(x: Tensor, text: Tensor, pad: Tensor) -> Tensor:
        mask = joined_with_ones(x, pad).clone()
        rows = mask.view(-1).unbind(0)
        rows[VIDEO - 1].fill_(False)
        return attention(torch.cat([x, text], 1), mask)[:, :VIDEO]

    assert fates(Model(attend), latents(), *text_and_padding()) == ["mask"]


def test_a_mask_that_is_repeated_for_more_samples_is_another():
    def attend(x: Tensor, text: Tensor, pad: Tensor) -> Tensor:
        joint = torch.cat([x, text], 1)
        mask = joined_with_ones(x, pad).repeat(2, 1, 1, 1)
        return attention(torch.cat([joint, joint]), mask)[:, :VIDEO]

    assert fates(Model(attend), latents(), *text_and_padding()) == [GRID]


def test_a_mask_between_padding_whose_first_key_is_set_later_computes_what_it_did():
    """The HunyuanVideo refiner's spelling: padding sees nobody, then everybody sees the first key."""

    def mask(x: Tensor, pad: Tensor) -> Tensor:
        real = joined_with_ones(x, pad)
        both = real & real.transpose(2, 3)
        both[:, :, :, 0] = True
        return both

    model = Model(lambda x, text, pad: attention(torch.cat([x, text], 1), mask(x, pad)))
    assert fates(model, latents(), *text_and_padding()) == ["mask"]
