"""Host overhead: a call is timed whole, whether or not there is a GPU."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from benchmarks import overhead


def test_every_template_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    """Both templates report microseconds; without a GPU the driver is made up, and it is said."""
    found = list(overhead.report(calls=3, rounds=2))
    assert [name for name, *_ in found][:1] == ["portable"]
    assert all(0 < us < 1e5 for *_, us in found)
    if not found[0][1]:
        assert [name for name, *_ in found] == ["portable", "hopper"]
