"""The report: what it says, and that it stands alone."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from kdsl.autotune.page import Section, page, sections
from kdsl.autotune.page.charts import Axis
from kdsl.autotune.recordings import Recording
from kdsl.kernels.attention.config import PORTABLE

VOID = {"meta", "link", "br", "img", "rect", "circle", "line", "path", "polyline", "use"}


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order, and collects text and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open."""
        self.links += [v or "" for n, v in attrs if n in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close."""
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text."""
        self.text += data


@pytest.fixture(scope="module")
def made(found: list[Recording]) -> list[Section]:
    """Sections of two workloads."""
    return sections(found[:2])


def parsed(text: str) -> Balanced:
    """A page that is well formed."""
    reader = Balanced()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_it_stands_alone(made: list[Section]) -> None:
    """Every tag is closed, every link stays within the page, there is no script and no address
    but the name of SVG."""
    text = page(made)
    reader = parsed(text)
    assert reader.links
    assert all(link.startswith("#") for link in reader.links)
    assert "<script" not in text
    assert set(re.findall(r"https?://[^\s\"')]+", text)) == {"http://www.w3.org/2000/svg"}


def test_it_says_what_was_measured(made: list[Section]) -> None:
    """Each workload has its default, choice and gain with bounds, its failures with reasons, the
    statistics of its mask and its settings by importance."""
    text = parsed(page(made)).text
    for s in made:
        assert s.recording.name in text
        assert s.gain is not None
        ratio, low, high = s.gain
        assert low <= ratio <= high
        assert f"{ratio:.3f}x" in text
        assert f"[{low:.3f}, {high:.3f}]" in text
        for status, reason, _ in s.failures:
            assert status in text
            assert reason in text
        assert set(s.importances) <= set(PORTABLE)
        assert len(s.importances) > 3
        assert sum(s.importances.values()) == pytest.approx(1.0)
        assert f"{s.statistics['density']:.3f}" in text
    assert any(s.failures for s in made)


def test_history_never_gets_worse(made: list[Section]) -> None:
    """The best so far falls or stays, and ends at the fastest candidate; failures have no time."""
    for s in made:
        bests = [step.best_us for step in s.steps if step.best_us is not None]
        assert bests == sorted(bests, reverse=True)
        assert bests[-1] == s.recording.best_us
        assert sum(step.us is None for step in s.steps) == sum(n for *_, n in s.failures)


def test_text_from_rows_is_escaped(made: list[Section]) -> None:
    """A reason that looks like markup is shown, not obeyed."""
    bad = replace(made[0], failures=(("wrong", "<script>alert(1)</script>&", 1),))
    text = page([bad])
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_workload_without_a_default_or_few_rows(found: list[Recording]) -> None:
    """Where the default was not measured and little is known, the page says so and stays whole."""
    recording = found[0]
    few = dict(list(recording.outcomes.items())[:4])
    few = {at: o for at, o in few.items() if dict(at) != recording.default}
    times = {at: us for at, us in recording.times.items() if at in few}
    small = replace(recording, outcomes=few, times=times, in_time=tuple(few))
    text = parsed(page(sections([small]))).text
    assert "not measured" in text
    assert "Too few candidates" in text


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (10.0, 11.0), (3.0, 2e5), (0.02, 0.5)])
def test_axes(low: float, high: float) -> None:
    """Values keep their order and stay inside; there are two to six ticks within the axis."""
    axis = Axis(low, high, 0.0, 100.0)
    assert 0 <= axis(low) <= axis(high) <= 100
    assert 2 <= len(axis.ticks) <= 6
    assert all(0 <= axis(t) <= 100 for t in axis.ticks)
