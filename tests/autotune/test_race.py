"""Intervals of medians, and races."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl.autotune.measuring.race import Rules, interval, median, quantile, race

TIMES = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=80)


@given(TIMES)
def test_the_interval_holds_the_median(samples: list[float]) -> None:
    """Both ends are samples, and the sample median lies between them."""
    low, high = interval(samples)
    assert low in samples
    assert high in samples
    assert low <= median(samples) * (1 + 1e-12)
    assert high >= median(samples) * (1 - 1e-12)


@pytest.mark.parametrize("n", [6, 7, 10, 20, 41, 60])
def test_the_interval_covers_the_true_median(n: int) -> None:
    """Over every way in which n samples can fall below or above the true median, it lies between
    the ends with at least 95 %, and one rank further in with less."""

    def cover(rank: int) -> float:
        inside = sum(math.comb(n, below) for below in range(rank + 1, n - rank))
        return inside / 2**n

    rank = sorted(range(n)).index(int(interval([float(i) for i in range(n)])[0]))
    assert cover(rank) >= 0.95
    assert rank + 1 > (n - 1) // 2 or cover(rank + 1) < 0.95


@given(TIMES, st.floats(0, 1))
def test_quantiles_are_within_and_ascend(samples: list[float], share: float) -> None:
    """A quantile lies within the samples, between minimum and maximum in order."""
    found = quantile(samples, share)
    assert min(samples) * (1 - 1e-12) <= found <= max(samples) * (1 + 1e-12)
    assert quantile(samples, 0) == min(samples)
    assert quantile(samples, 1) == max(samples)


def drawing(times: Iterator[float], drawn: list[int]) -> object:
    def draw(count: int) -> list[float]:
        drawn.append(count)
        return list(itertools.islice(times, count))

    return draw


def test_a_sure_median_ends_the_race() -> None:
    """Samples without noise end it after the first round."""
    drawn: list[int] = []
    samples = race(drawing(itertools.repeat(100.0), drawn), None)  # type: ignore[arg-type]
    assert len(samples) == sum(drawn) == Rules().a_round


def test_a_loser_is_not_measured_further() -> None:
    """A candidate whose interval is above the bar stops early; without the bar it goes on."""
    noise = random.Random(0)
    times = [200.0 * math.exp(noise.gauss(0, 0.2)) for _ in range(1000)]
    lost = race(drawing(iter(times), []), 50.0)  # type: ignore[arg-type]
    free = race(drawing(iter(times), []), None)  # type: ignore[arg-type]
    assert len(lost) == Rules().a_round
    assert len(free) > len(lost)


def test_a_race_is_bounded() -> None:
    """However noisy, it ends at the most samples; however slow, at the most seconds."""
    noise = random.Random(1)
    wild = (100.0 * math.exp(noise.gauss(0, 2)) for _ in itertools.count())
    assert len(race(drawing(wild, []), None)) == Rules().most  # type: ignore[arg-type]
    slow = (3e5 * math.exp(noise.gauss(0, 2)) for _ in itertools.count())
    assert len(race(drawing(slow, []), None)) < Rules().most  # type: ignore[arg-type]
