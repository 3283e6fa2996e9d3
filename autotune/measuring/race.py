"""Statistics of times, and when to stop taking them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95
HOPELESS = 1.5
"""How far above the bar a candidate's fastest warm-up sample ends it: noise is a few per cent."""


def median(samples: Sequence[float]) -> float:
    """The middle of the samples; the mean of both middles where there are two."""
    return quantile(samples, 0.5)


def quantile(samples: Sequence[float], share: float) -> float:
    """Linear between order statistics."""
    ordered = sorted(samples)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """Two samples between which the true median lies with 95 %, whatever the distribution.

    Ranks from the binomial distribution; with fewer than six samples the extremes, which is less.
    """
    ordered = sorted(samples)
    rank = _rank(len(ordered))
    return ordered[rank], ordered[-1 - rank]


@cache
def _rank(n: int) -> int:
    """The largest r for which fewer than r+1 of n samples lie below the median in at most 2.5 %."""
    below, rank = 0.0, 0
    for r in range(n):
        below += math.comb(n, r) / 2.0**n
        if 2 * below > 1 - CONFIDENCE:
            break
        rank = r
    return min(rank, max((n - 1) // 2, 0))


@dataclass(frozen=True)
class Rules:
    """How many samples a race takes.

    It takes ``a_round`` at a time, until the median is known to ``width`` of itself, or ``most``
    samples or ``seconds`` of the device are used up.
    """

    a_round: int = 6
    most: int = 60
    width: float = 0.01
    seconds: float = 1.0


def race(
    draw: Callable[[int], list[float]], bar_us: float | None, rules: Rules = Rules()
) -> list[float]:
    """Times from ``draw`` (microseconds) until they tell enough.

    Stops as well when the lower end of the median's interval is above ``bar_us``, the upper end of
    the best so far: it cannot win any more.
    """
    samples: list[float] = []
    while True:
        samples += draw(rules.a_round)
        low, high = interval(samples)
        lost = bar_us is not None and low > bar_us
        sure = high - low <= rules.width * median(samples)
        spent = len(samples) >= rules.most or sum(samples) >= rules.seconds * 1e6
        if lost or sure or spent:
            return samples


def hopeless(warm_up: Sequence[float], bar_us: float | None) -> bool:
    """Whether the first few samples are so far above ``bar_us`` that no more are needed."""
    return bar_us is not None and min(warm_up) > HOPELESS * bar_us
