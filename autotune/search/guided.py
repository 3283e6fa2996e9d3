"""Optuna's TPE, driven by ask and tell, beside a linear model of the whole space.

TPE explores and needs no assumption; the model learns from few measurements what settings do alone
and in pairs.  Once `EXPLORE` candidates are told, it proposes, and every `TURN`-th is TPE's.  All
candidates are trials of the study.

The study lives in memory and is rebuilt from the database's rows, so there is no second state that
could contradict them. :mod:`.shared` is the same for several drivers of one study.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import Trial, TrialState

from kdsl.autotune.search.space import Params, Point, Space, point
from kdsl.autotune.search.surrogate import MOST, Surrogate

FAILED = 2.5
"""What a failure is told as: twelve times slower than the default, beside the broken constraint."""
FRUITLESS = 32
"""Proposals in a row that were known or illegal, after which the best guess is taken instead."""
STARTUP = 10
CONSTRAINTS = hasattr(Trial, "set_constraint")
"""Optuna 5 has them on trials."""
EXPLORE, TURN = 12, 3


class Guided:
    """TPE over a space. Orders of numbers become integers, so that neighbours stay neighbours."""

    ahead = 4

    def __init__(
        self,
        space: Space,
        *,
        first: Sequence[Params],
        prior: Callable[[Params], float],
        seed: int,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.prior = space, prior
        self.seed, self.random = seed, random.Random(seed)
        self.study = self._study()
        self.axes: dict[str, BaseDistribution] = {
            name: _axis(values) for name, values in space.choices.items() if len(values) > 1
        }
        self._told: dict[Point, float | None] = {}
        self._asked: dict[Point, Trial] = {}
        self._first = [dict(p) for p in reversed(first)]
        self._proposals = 0

    @cached_property
    def _surrogate(self) -> Surrogate | None:
        """The model, where the space is small enough for one."""
        points = self.space.points
        if points is None or not 0 < len(points) <= MOST:
            return None
        return Surrogate(points, self.space.choices, self.prior)

    def _study(self) -> optuna.Study:
        """A new one, in memory."""
        return optuna.create_study(sampler=self._sampler())

    def _sampler(self) -> optuna.samplers.TPESampler:
        return optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=STARTUP)

    def ask(self) -> Params | None:
        """A legal point that was neither proposed nor told."""
        points = self.space.points
        if points is not None and not any(map(self._fresh, points)):
            return None
        for _ in range(FRUITLESS):
            while self._first:
                params = self._first.pop()
                if self._fresh(params):
                    self.study.enqueue_trial(self._encode(params))
                    break
            else:
                picked = self._picked()
                if picked is not None:
                    self.study.enqueue_trial(self._encode(picked))
            asked = self._asked_for()
            if asked is not None:
                return asked
        while (guess := self._guess()) is not None:
            self.study.enqueue_trial(self._encode(guess))
            asked = self._asked_for()
            if asked is not None:
                return asked
        return None

    def _asked_for(self) -> Params | None:
        """The study's next proposal, or the fresh point nearest to one that needs no trying."""
        for _ in range(2):
            trial = self.study.ask(self.axes)
            params = self._decode(trial.params)
            if not self._settled(trial, params):
                self._asked[point(params)] = trial
                return params
            near = self._nearest(params)
            if near is None:
                return None
            self.study.enqueue_trial(self._encode(near))
        return None

    def _picked(self) -> Params | None:
        """The model's proposal, if it is its turn."""
        self._proposals += 1
        if len(self._told) < EXPLORE or self._proposals % TURN == 0 or self._surrogate is None:
            return None
        return self._surrogate.pick(self._told, list(self._asked))

    def _nearest(self, params: Params) -> Params | None:
        """The fresh point that differs least from a proposal that needs no trying."""
        fresh = (p for p in self.space.points or () if self._fresh(p))
        return min(fresh, key=lambda p: (self._apart(p, params), point(p)), default=None)

    def _apart(self, a: Params, b: Params) -> float:
        """A step between settings in order counts less than another kind."""
        total = 0.0
        for name, values in self.space.choices.items():
            if a[name] != b[name]:
                total += 1.0
                if isinstance(self.axes.get(name), IntDistribution):
                    ordered = _ordered(values)
                    steps = abs(ordered.index(a[name]) - ordered.index(b[name]))
                    total -= 0.7 * (1 - steps / (len(values) - 1))
        return total

    def tell(self, params: Params, cost: float | None) -> None:
        """Give a value to the trial it came from, or add one."""
        at = point(params)
        self._told[at] = cost
        trial = self._asked.pop(at, None)
        if trial is None:
            if not self._on_axes(params):
                return
            self._add(params, cost)
        else:
            self._finish(trial, cost)

    def close(self) -> None:
        """Nothing is open."""

    def _add(self, params: Params, cost: float | None) -> None:
        """A finished trial for what was not asked for."""
        failed: dict[str, Any] = {}
        if cost is None and CONSTRAINTS:
            failed = {"constraints": {"runs": 1.0}}
        self.study.add_trial(
            optuna.trial.create_trial(
                params=self._encode(params),
                distributions=self.axes,
                value=FAILED if cost is None else cost,
                **failed,
            )
        )

    def _fresh(self, params: Params) -> bool:
        return point(params) not in self._told and point(params) not in self._asked

    def _settled(self, trial: Trial, params: Params) -> bool:
        """Whether a proposal needs no trying, and is told what is known about it."""
        at = point(params)
        if at in self._told:
            self._finish(trial, self._told[at])
        elif at in self._asked:
            # Its value is on the way.
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        elif self.space.why_not(params) is not None:
            self._finish(trial, None)
        else:
            return False
        return True

    def _finish(self, trial: Trial, cost: float | None) -> None:
        if cost is None and CONSTRAINTS:
            trial.set_constraint("runs", 1.0)
        self.study.tell(trial, FAILED if cost is None else cost)

    def _guess(self) -> Params | None:
        if self.space.points is not None:
            left = [p for p in self.space.points if self._fresh(p)]
            return min(left, key=lambda p: (self.prior(p), point(p)), default=None)
        for _ in range(1000):
            params = {n: self.random.choice(v) for n, v in self.space.choices.items()}
            if self._fresh(params) and self.space.why_not(params) is None:
                return params
        return None

    def _on_axes(self, params: Params) -> bool:
        """Whether an older row's configuration lies in this space."""
        choices = self.space.choices
        return params.keys() == choices.keys() and all(params[n] in choices[n] for n in choices)

    def _encode(self, params: Params) -> dict[str, Any]:
        out = {}
        for name, axis in self.axes.items():
            ordered = _ordered(self.space.choices[name])
            is_index = isinstance(axis, IntDistribution)
            out[name] = ordered.index(params[name]) if is_index else params[name]
        return out

    def _decode(self, found: Mapping[str, Any]) -> dict[str, Any]:
        out = {}
        for name, values in self.space.choices.items():
            if name not in self.axes:
                out[name] = values[0]
            elif isinstance(self.axes[name], IntDistribution):
                out[name] = _ordered(values)[found[name]]
            else:
                out[name] = found[name]
        return out


def study_of(
    choices: Mapping[str, tuple[Any, ...]], costs: Sequence[tuple[Params, float]]
) -> optuna.Study:
    """A study in memory that holds these costs, for what Optuna can say of one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = Space(choices, lambda params: None)
    search = Guided(space, first=(), prior=lambda params: 0.0, seed=0)
    for params, cost in costs:
        search.tell(params, cost)
    return search.study


def _axis(values: tuple[Any, ...]) -> BaseDistribution:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return IntDistribution(0, len(values) - 1) if numbers else CategoricalDistribution(values)


def _ordered(values: tuple[Any, ...]) -> list[Any]:
    return sorted(values)
