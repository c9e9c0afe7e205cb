"""Every row of the table of bad inputs, to the letter; and the page that shows the table."""

import pytest
from bad_inputs import PAGE, TABLE, TITLES, Row, fits, happened, page
from bad_inputs import row as row_tools
from bad_inputs.row import COMPUTED, CONVERTED, by_hand, in_graph, itself

QUICK = ("X1", "X3", "X4", "X7", "X9", "X10", "X16", "X24", "X25")  # a few seconds, of all parts of the table


def named(row: Row) -> str:
    return f"{row.id}-{row.given}"


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=named(row), marks=[pytest.mark.quick] if row.id in QUICK else []) for row in TABLE],
)
def test_what_happens_is_what_the_table_says(row: Row):
    got = happened(row)
    assert fits(got, row.outcome), f"\n got: {got}\nwant: {row.outcome}"


@pytest.mark.quick
def test_every_bad_input_has_a_row_and_no_row_is_there_twice():
    assert list(TITLES) == [f"X{number}" for number in range(1, 33)]
    assert {row.id for row in TABLE} == set(TITLES)
    assert len({named(row) for row in TABLE}) == len(TABLE)


@pytest.mark.quick
def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again with: python tests/bad_inputs"


@pytest.mark.quick
def test_a_wrong_result_is_noticed(monkeypatch: pytest.MonkeyPatch):
    assert by_hand()() == COMPUTED
    assert in_graph(itself)() == CONVERTED
    assert in_graph(itself, sparsity=0.9)() != CONVERTED
    right = row_tools.expected
    monkeypatch.setattr(row_tools, "expected", lambda args: right(args) * (1 + 1e-4))
    assert by_hand()() != COMPUTED
    monkeypatch.setattr(row_tools, "expected", lambda args: right(args | {"k": args["k"].detach()}))
    with pytest.raises(RuntimeError, match="not have been used"):
        by_hand()()


@pytest.mark.quick
def test_texts_are_compared_to_the_letter():
    assert fits("ValueError: a and b", "ValueError: a and b")
    assert not fits("ValueError: a and b", "ValueError: a")
    assert fits("ValueError: a and b", "ValueError: a ...")
    assert not fits("TypeError: a and b", "ValueError: a ...")
