"""An adversary edits graphs: what changes their meaning never converts wrongly, what keeps it is not lost.

The truth of a conversion is found by running the graph (adversary/truth.py), so that edits may be combined at
will, and may undo one another.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from adversary.captured import capture, pool
from adversary.strategy import CHANGING, KEEPING, Case, Change, cases, hinted_cases
from adversary.truth import Claim, assert_true, options, reads_blank_memory, sdpa_calls
from hypothesis import assume, example, given
from profiles import SCALE, examples
from random_models import Plan
from random_models.plan import Block

pytestmark = pytest.mark.no_cover

PLANS = pool(12 * min(SCALE, 10), start=SCALE)


def judged(case: Case) -> dict[str, Claim]:
    """What is converted of an edited graph, once it is known to be true."""
    made = case.sketch()
    assume(made is not None)
    assert made is not None
    captured, module = made
    return assert_true(captured, module, options(captured, case.hinted))


def test_memory_that_nobody_wrote_to_is_nothing_to_judge_by():
    captured = capture(PLANS[0])
    module = captured.copy()
    assert not reads_blank_memory(captured, module)
    call = sdpa_calls(module)[0]
    query = call.all_input_nodes[0]
    with call.graph.inserting_before(call):
        call.replace_input_with(query, call.graph.call_function(torch.empty_like, (query,)))
    assert reads_blank_memory(captured, module)


# Rows that were swapped before a table of positions, which names the axes of a video, is added.
ROWS_SWAPPED = Case(
    Plan((3, 6, 5), (Block("mask-of-ones", rope="folded", groups=2, gqa="flag"),), width=12, text=4),
    (Change("cut_and_swapped", 0, 0),),
)

# A text that is as long as the video is not what a hint speaks of, where the graph shows the video.
LONG_TEXT = Case(
    Plan((6, 2, 5), (Block("self"), Block("long-text-self")), width=12, text=6, patch="rearrange"), (), True
)
# The same beside a video that was cut and swapped: parts of it are as long together.
LONG_TEXT_BESIDE_PARTS = Case(
    Plan(
        (6, 2, 5),
        (
            Block(
                "two-stream-before", "chunk", "transpose", "view", "grid", "layer", "interleaved",
                rope_first=True, gqa="repeat", positional=True, modulated=True, masked=True,
                checkpointed=True,
            ),
            Block(
                "long-text-self", "chunk", "sequence-first", "reshape", "channels", "wide", "folded",
                gqa="repeat", scale=0.25, positional=True, masked=True,
            ),
        ),
        width=12, text=6, patch="rearrange",
    ),
    (Change("cut_and_swapped", 233, 0),), True,
)  # fmt: skip
# Keys that were taken out of (q, k, v), then copied token by token.
KEYS_COPIED = Case(
    Plan((4, 4, 5), (Block("text-among-keys", qkv="unbind"),), width=8, text=4, patch="tokens"),
    (Change("filled_in_order", 37, 1),),
)
# (q, k, v), heads and their width, swapped and back, are no channels in front of a video.
HEADS_SWAPPED_BACK = Case(
    Plan(
        (5, 4, 4),
        (
            Block(
                "one-stream-before", "unbind", "permute", "view", "grid", rope="interleaved", gqa="repeat",
                scale=0.25, positional=True, modulated=True,
            ),
            Block(
                "one-stream-before", heads="permute", held="grid", rope="interleaved", groups=2, gqa="repeat",
                positional=True,
            ),
        ),
        batch=2, width=12, text=6, patch="rearrange", unpatch=False, seed=2,
    ),
    (Change("transposed_and_back", 15496, 0),),
)  # fmt: skip
# Flipped keys, to which turned ones are added, by a table moved along by one: its second sine is 0, too.
KEYS_FLIPPED = Case(
    Plan(
        (3, 3, 3),
        (
            Block(
                "two-stream-after", qkv="separate", rope="interleaved", held="frames", rope_first=True,
                gqa="expand", scale=0.25, positional=True,
            ),
        ),
        batch=2, width=16, text=6, patch="permute-flatten", seed=2,
    ),
    (Change("padded_and_cut_askew", 4076, 45506), Change("writes_through_a_view_", 2220, 41614)),
)  # fmt: skip
# Rows that were repeated and cut amid the first time, (2, 0, 1).
ROWS_REPEATED = Case(
    Plan(
        (3, 3, 3),
        (
            Block(
                "two-stream-before", qkv="unbind", held="channels", rope="folded", gqa="repeat",
                positional=True, masked=True, checkpointed=True,
            ),
        ),
        width=12, text=7, patch="in-time", unpatch=False, seed=2,
    ),
    (Change("repeated_and_cut", 0, 0),),
)  # fmt: skip
# Tokens rows first that are read as (frames, rows, cols) and turned.
ROWS_FIRST_TURNED = Case(
    Plan(
        (3, 4, 5),
        (Block("rows-first", "permute", rope="axes", rope_first=True, gqa="repeat", checkpointed=True),),
        batch=2, width=16, text=7, seed=3,
    ),
    (Change("frames_turned", 26, 0),), True,
)  # fmt: skip
# Bare tokens to which turned ones are added: they are in the output's places, and in others, too.
TURNED_ADDED = Case(
    Plan(
        (2, 5, 2),
        (
            Block(
                "one-stream-after", "chunk", "transpose", "reshape", "channels", "rms", "folded",
                rope_first=True, scale=0.25, positional=True, masked=True,
            ),
            Block(
                "cross-video", "chunk", "transpose", "reshape", rope="folded", rope_first=True, gqa="repeat",
                scale=0.25, contiguous=True,
            ),
        ),
        batch=1, width=8, text=1, patch="tokens",
    ),
    (Change("rolled", 73, 0), Change("indexed", 135, 0)),
)  # fmt: skip
# A text as long as a video whose queries are (cols, rows, frames).
LONG_TEXT_BESIDE_CROSSED = replace(LONG_TEXT_BESIDE_PARTS, changes=(Change("grid_transposed", 7883, 0),))
# Attention between channels, whose values have the tokens' order, whatever that of its queries.
CHANNELS_TURNED = Case(
    Plan(
        (5, 2, 2),
        (
            Block(
                "channels", "unbind", "sequence-first", "reshape", "grid", "rms", "interleaved",
                rope_first=True, gqa="repeat", modulated=True, checkpointed=True,
            ),
            Block(
                "registers", "split", "permute", "reshape", "flat", "layer", "interleaved", gqa="expand",
                contiguous=True, masked=True, checkpointed=True,
            ),
        ),
        batch=2, width=16, text=7, patch="permute-flatten", unpatch=False, seed=1,
    ),
    (Change("indexed", 19031, 0), Change("indexed", 278, 0)),
)  # fmt: skip
# Tokens that were repeated and cut amid a frame, then split into frames, rows and columns, and merged again.
CUT_AND_SPLIT = Case(
    Plan(
        (5, 4, 4),
        (
            Block("two-stream-before", heads="permute", held="channels", rope="none", positional=True),
            Block("one-stream-after", qkv="split", rope="half"),
        ),
        width=12, text=3, patch="flatten-transpose",
    ),
    (Change("repeated_and_cut", 1, 0),),
)  # fmt: skip
# Keys turned by a table that was padded with zeros: the last of them is multiplied by 0.
KEYS_TURNED_BY_NOTHING = Case(
    Plan(
        (5, 3, 5),
        (
            Block("flipped", qkv="unbind", rope="half", gqa="flag", positional=True, modulated=True),
            Block(
                "two-stream-after", "unbind", "permute", "view", "flat", "layer", "complex", rope_first=True,
                gqa="expand", scale=0.25,
            ),
        ),
        batch=2, width=8, text=2, patch="rearrange", unpatch=False, seed=3,
    ),
    (Change("indexed", 16383, 0), Change("padded_and_cut_askew", 65392, 0)),
)  # fmt: skip
# Tokens read as (rows, cols, q or k or v), which are as many as frames: a table has a place for each.
TORN = Case(
    Plan(
        (3, 3, 3),
        (
            Block(
                "self", "permute", held="grid", norm="layer", rope="folded", rope_first=True, gqa="repeat",
                positional=True,
            ),
            Block(
                "self", "permute", held="grid", norm="rms", rope="half", rope_first=True, gqa="expand",
                scale=0.25, positional=True, contiguous=True, modulated=True, masked=True,
            ),
        ),
        batch=2, width=12, text=4, patch="rearrange", unpatch=False,
    ),
    (Change("memory_read_otherwise", 5508, 0),),
)  # fmt: skip


@example(case=TORN)
@example(case=KEYS_TURNED_BY_NOTHING)
@example(case=CUT_AND_SPLIT)
@example(case=TURNED_ADDED)
@example(case=CHANNELS_TURNED)
@example(case=ROWS_SWAPPED)
@example(case=ROWS_REPEATED)
@example(case=KEYS_FLIPPED)
@examples(120)
@given(case=cases(PLANS, CHANGING + KEEPING))
def test_what_is_converted_is_true(case: Case):
    judged(case)


@example(case=LONG_TEXT)
@example(case=LONG_TEXT_BESIDE_PARTS)
@example(case=ROWS_FIRST_TURNED)
@example(case=LONG_TEXT_BESIDE_CROSSED)
@examples(40)
@given(case=hinted_cases(PLANS))
def test_a_hint_overrides_nothing_that_the_graph_shows(case: Case):
    judged(case)


@cache
def unedited(plan: Plan) -> dict[str, Claim]:
    return judged(Case(plan, ()))


@example(case=HEADS_SWAPPED_BACK)
@example(case=KEYS_COPIED)
@examples(60)
@given(case=cases(PLANS, KEEPING))
def test_another_spelling_loses_no_conversion(case: Case):
    before = unedited(case.plan)
    assume(before)
    assert judged(case) == before
