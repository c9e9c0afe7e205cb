"""An adversary edits graphs: what changes their meaning is never converted wrongly, what keeps it loses nothing.

The truth of a conversion is found by running the graph (adversary/truth.py), so edits may be combined at will,
and may undo one another.
"""

import torch
from adversary.captured import capture, play, pool
from adversary.strategy import CHANGING, KEEPING, Case, cases
from adversary.truth import assert_true, claims, options
from hypothesis import assume, given
from profiles import SCALE, examples

PLANS = pool(12 * min(SCALE, 10), start=SCALE)


@examples(200)
@given(case=cases(PLANS, CHANGING + KEEPING))
def test_what_is_converted_is_true(case: Case):
    made = case.sketch()
    assume(made is not None)
    captured, module = made
    assert_true(captured, module, options(captured, case.hinted))


@examples(100)
@given(case=cases(PLANS, KEEPING))
def test_another_spelling_loses_no_conversion(case: Case):
    captured = capture(case.plan)
    settings = options(captured, hinted=False)
    plain = captured.copy()
    with torch.no_grad():
        play(plain, captured.fresh_inputs())
    before, _ = claims(plain, settings)
    assume(before)
    made = case.sketch()
    assume(made is not None)
    assert made[0] is captured
    assert assert_true(captured, made[1], settings) == before
