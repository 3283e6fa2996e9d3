"""A Bayesian linear model of log times over a space that is written out.

Settings count by themselves and in pairs, and so does the cost model's guess; how much each may is
a normal prior, so that a few measurements already say something about every point.  The next
candidate is the one with the greatest expected improvement (Jones, Schonlau and Welch 1998).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.autotune.search.space import Params, Point, point

Floats = npt.NDArray[np.float64]

SETTING, PAIR, GUESS, REST = 0.3, 0.12, 0.3, 0.04
"""Standard deviations of logarithms: what a setting, a pair of settings, and one standard deviation
of the guess are worth, and what is left to the single candidate and to noise."""
MOST = 20_000
"""Points of a space above which its table of settings would be large."""
ENOUGH = 5
"""Sound candidates from which it says anything."""


class Surrogate:
    """What is likely at each point, from what was found at some."""

    def __init__(
        self,
        points: Sequence[Params],
        choices: Mapping[str, tuple[Any, ...]],
        prior: Callable[[Params], float],
    ) -> None:
        self.points = points
        self._at = {point(params): number for number, params in enumerate(points)}
        marks = {
            name: [np.array([p[name] == v for p in points], np.float64) for v in values]
            for name, values in choices.items()
            if len(values) > 1
        }
        columns = [SETTING * _centred(m) for values in marks.values() for m in values]
        for a, b in itertools.combinations(marks.values(), 2):
            both = (x * y for x in a for y in b)
            columns += [PAIR * _centred(m) for m in both if m.any()]
        guess = _centred(np.log([max(prior(p), 1e-9) for p in points]))
        spread = float(guess.std())
        columns.append(guess * (GUESS / spread if spread > 0 else 0.0))
        self._rows: Floats = np.stack(columns, axis=1)
        self._own: Floats = np.sum(self._rows**2, axis=1)

    def pick(self, told: Mapping[Point, float | None], asked: Sequence[Point]) -> Params | None:
        """The point to try next, or None where too little is known or nothing is left.

        ``told`` are logarithms of times, None for failures; ``asked`` are under way, and count as
        if they came out as expected.
        """
        sound = {self._at[at]: v for at, v in told.items() if v is not None and at in self._at}
        if len(sound) < ENOUGH:
            return None
        waiting = [self._at[at] for at in asked if at in self._at]
        gone = {self._at[at] for at in told if at in self._at} | set(waiting)
        free = np.array([n for n in range(len(self.points)) if n not in gone], np.int64)
        if not len(free):
            return None
        values = np.array(list(sound.values()))
        known = list(sound)
        inverse = self._inverse(known)
        weight = inverse.sum(axis=0)
        level = float(weight @ values / weight.sum())
        off = values - level
        if waiting:
            expected = self._between(waiting, known) @ (inverse @ off)
            known, off = known + waiting, np.concatenate([off, expected])
            inverse = self._inverse(known)
        near = self._between(free, known)
        mean = level + near @ (inverse @ off)
        spread = self._own[free] - np.einsum("ij,jk,ik->i", near, inverse, near)
        gain = _improvement(float(values.min()) - mean, np.sqrt(np.maximum(spread, 1e-10)))
        return self.points[int(free[int(gain.argmax())])]

    def _between(self, some: Any, others: Any) -> Floats:
        """Covariances of what the settings explain."""
        return np.asarray(self._rows[some] @ self._rows[others].T, np.float64)

    def _inverse(self, known: Sequence[int]) -> Floats:
        held = self._between(known, known) + REST**2 * np.eye(len(known))
        return np.asarray(np.linalg.inv(held), np.float64)


def _centred(values: Any) -> Floats:
    return np.asarray(values - np.mean(values), np.float64)


def _improvement(ahead: Floats, spread: Floats) -> Floats:
    """Expected gain over the best so far, where the mean is ``ahead`` of it."""
    z = ahead / spread
    below = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in z])
    return np.asarray(ahead * below + spread * np.exp(-z * z / 2) / math.sqrt(2 * math.pi))
