"""How a budget is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl.autotune.session.budget import Budget
from kdsl.errors import ConfigError

SECONDS = st.integers(1, 10**6).map(float)
COUNTS = st.integers(1, 10**6)


@given(COUNTS, SECONDS)
def test_what_is_printed_is_read_back(count: int, seconds: float) -> None:
    """``str`` and ``parse`` are inverse for counts, times and both."""
    for budget in (Budget(count), Budget(None, seconds), Budget(count, seconds)):
        assert Budget.parse(str(budget)) == budget


@given(st.integers(1, 9999), st.sampled_from([("s", 1), ("m", 60), ("h", 3600)]))
def test_units(number: int, unit: tuple[str, int]) -> None:
    """Seconds, minutes and hours, with blanks and capitals."""
    assert Budget.parse(f" {number}{unit[0].upper()} ") == Budget(None, number * unit[1])


@given(st.text(max_size=12))
def test_other_text_is_refused_with_examples(text: str) -> None:
    """Whatever is no budget raises one error, which says what would be one."""
    try:
        budget = Budget.parse(text)
    except ConfigError as error:
        hint = error.hint
    else:
        hint = "40, 2m" if budget.candidates or budget.seconds else ""
    assert "40" in hint
    assert "2m" in hint


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "0s", "2 m", "m", "1e3", "40,40", "2m,3s", "40,", "\u0664", "inf", "nan"],
)
def test_refused(text: str) -> None:
    """Zero, negative and doubled budgets, unknown units and foreign digits are no budgets."""
    with pytest.raises(ConfigError, match="no budget"):
        Budget.parse(text)


def test_fractions_and_both() -> None:
    """``1.5h`` is a time, and a count and a time go together in either order."""
    assert Budget.parse("1.5h") == Budget(None, 5400.0)
    assert Budget.parse("2m,40") == Budget.parse("40,2m") == Budget(40, 120.0)
