"""One workload: ask, compile, evaluate, write down, tell."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from kdsl.autotune.compiling import CompilePool
from kdsl.autotune.search import Search, Space, StudyAt, make_search
from kdsl.autotune.search.space import Point, point
from kdsl.autotune.session.evaluate import Evaluator
from kdsl.autotune.session.job import Job
from kdsl.autotune.session.ledger import Ledger
from kdsl.autotune.session.outcome import Outcome, Params
from kdsl.runtime.predict import predict_us
from kdsl.targets import Target

AHEAD = 4
"""Candidates asked for before their predecessors' results are known.

The same on every machine, whatever the number of compiling processes, so that a seed gives the same
candidates everywhere.
"""
GUESSES = 3
"""Points tried right after the default: the fastest by prediction from the work alone."""


@dataclass
class Tally:
    """What became of one workload."""

    name: str
    kind: str
    known: int
    """Candidates that had rows before."""
    wanted: int | None
    """Candidates that the budget asks for, as far as it counts them and the space holds them."""
    outcomes: list[Outcome] = field(default_factory=list)
    default: Outcome | None = None
    illegal: int = 0
    fresh: Counter[str] = field(default_factory=Counter)
    """Candidates of this run by status."""
    exhausted: bool = False
    settled: bool = False
    """``outcomes`` stand in the database's order, the choice first."""
    seconds: float = 0.0

    @property
    def counts(self) -> Counter[str]:
        """Candidates by status."""
        return Counter(o.status for o in self.outcomes)

    @property
    def new(self) -> int:
        """Candidates of this run."""
        return self.fresh.total()

    @property
    def left(self) -> int | None:
        """Candidates still to try; None where only the time decides."""
        if self.exhausted:
            return 0
        return None if self.wanted is None else max(self.wanted - len(self.outcomes), 0)

    @property
    def ranking(self) -> list[Outcome]:
        """Sound candidates, the choice first."""
        sound = [o for o in self.outcomes if o.status == "ok"]
        return (
            sound
            if self.settled
            else sorted(sound, key=lambda o: (o.median_us or 0.0, point(o.params)))
        )

    @property
    def gain(self) -> float | None:
        """How many times faster than the default the choice is."""
        best = self.ranking
        if not best or self.default is None or not self.default.median_us:
            return None
        return self.default.median_us / (best[0].median_us or math.inf)


class Watch(Protocol):
    """Is told how it goes."""

    def begin(self, tally: Tally) -> None:
        """A workload starts."""

    def step(self, tally: Tally, outcome: Outcome) -> None:
        """A candidate has its outcome."""

    def end(self, tally: Tally) -> None:
        """A workload ends."""


class WorkloadTuner:
    """Tunes one workload of one target into one ledger.

    ``limit`` counts candidates, those with rows included; ``until`` is in monotonic seconds.
    """

    def __init__(
        self,
        job: Job,
        target: Target,
        evaluator: Evaluator,
        pool: CompilePool,
        ledger: Ledger,
        watch: Watch,
        *,
        limit: int | None,
        until: float | None,
        seed: int,
        study: StudyAt | None = None,
    ) -> None:
        self.job, self.target, self.evaluator, self.pool = job, target, evaluator, pool
        self.ledger, self.watch, self.limit, self.until = ledger, watch, limit, until
        self.study = study
        tunable = job.tunable
        self.default = tunable.default(target)
        self.space = Space(tunable.space(target), lambda p: tunable.legal(p, target))
        self.search = self._search(seed)
        known = [o for o in ledger.known() if self.space.why_not(o.params) is None]
        size = None if self.space.points is None else len(self.space.points)
        wanted = min(
            (n for n in (limit, size) if n is not None and limit is not None), default=None
        )
        self.tally = Tally(job.name, evaluator.kind, len(known), wanted, list(known))
        self.tally.default = next((o for o in known if self._is_default(o.params)), None)
        self._reference = self._first_reference(known)
        for outcome in known:
            self.search.tell(outcome.params, self._cost(outcome))

    def _search(self, seed: int) -> Search:
        tunable, target = self.job.tunable, self.target

        @cache
        def guess(at: Point) -> float:
            return predict_us(tunable.work(dict(at), target), target)

        def prior(params: Params) -> float:
            return guess(point(params))

        guesses = sorted(self.space.points or (), key=lambda p: (prior(p), point(p)))[:GUESSES]
        first = [self.default, *guesses]
        return make_search(
            self.space, first=first, prior=prior, limit=self.limit, seed=seed, study=self.study
        )

    def run(self) -> Tally:
        """Go on until the budget or the space is used up."""
        started = time.monotonic()
        self.watch.begin(self.tally)
        try:
            self._loop()
            if self.tally.new:
                for outcome in self.evaluator.finals(self.tally.outcomes, self.tally.default):
                    self.ledger.add(outcome)
            self._settle()
            self.pool.drop(refill=True)
        finally:
            self.search.close()
            self.tally.illegal = self.space.illegal
            self.tally.seconds = time.monotonic() - started
        self.watch.end(self.tally)
        return self.tally

    def _loop(self) -> None:
        window: deque[Params] = deque()
        while self._time_left():
            self._ask_ahead(window)
            if not window:
                break
            params = window.popleft()
            built = self.pool.result((self.job.name, point(params)), self.until)
            if built is None:
                break
            outcome = self.evaluator.evaluate(params, built, self._bar_us())
            self.ledger.add(outcome)
            self._count(outcome)

    def _time_left(self) -> bool:
        if self.until is None:
            return True
        return time.monotonic() + self.evaluator.finals_seconds(self.tally.outcomes) < self.until

    def _absorb(self) -> None:
        """Take in what other drivers of the same study have written down meanwhile."""
        seen = {point(o.params) for o in self.tally.outcomes}
        for outcome in self.ledger.known():
            if point(outcome.params) in seen or self.space.why_not(outcome.params) is not None:
                continue
            self.tally.outcomes.append(outcome)
            self.tally.known += 1
            if self.tally.default is None and self._is_default(outcome.params):
                self.tally.default = outcome
            self.search.tell(outcome.params, self._cost(outcome))

    def _ask_ahead(self, window: deque[Params]) -> None:
        if self.study is not None:
            self._absorb()
        while len(window) < AHEAD and not self.tally.exhausted:
            if self.limit is not None and len(self.tally.outcomes) + len(window) >= self.limit:
                return
            params = self.search.ask()
            if params is None:
                self.tally.exhausted = not window
                return
            what = self.job.tunable.ahead_of_time(params, self.target)
            key = self.job.name, point(params)
            # Everything is held against the default: it may take longer to compile.
            self.pool.submit(key, what, self.target, patient=self._is_default(params))
            window.append(params)

    def _count(self, outcome: Outcome) -> None:
        self.tally.outcomes.append(outcome)
        self.tally.fresh[outcome.status] += 1
        if self._is_default(outcome.params):
            self.tally.default = outcome
        if self._reference is None and outcome.status == "ok":
            self._reference = outcome.median_us
        self.search.tell(outcome.params, self._cost(outcome))
        self.watch.step(self.tally, outcome)

    def _cost(self, outcome: Outcome) -> float | None:
        """Logarithm of the time over the default's: 0 is the default, comparable everywhere."""
        if outcome.status != "ok" or not outcome.median_us or not self._reference:
            return None
        return math.log(outcome.median_us / self._reference)

    def _first_reference(self, known: Sequence[Outcome]) -> float | None:
        if self.tally.default is not None and self.tally.default.median_us:
            return self.tally.default.median_us
        return min((o.median_us for o in known if o.status == "ok" and o.median_us), default=None)

    def _bar_us(self) -> float | None:
        return min((o.upper_us for o in self.tally.outcomes if o.status == "ok"), default=None)

    def _is_default(self, params: Params) -> bool:
        return dict(params) == self.default

    def _settle(self) -> None:
        """Take the outcomes as the database ranks them: what a build would choose comes first."""
        known = [o for o in self.ledger.known() if self.space.why_not(o.params) is None]
        self.tally.outcomes, self.tally.settled = known, True
        self.tally.default = next((o for o in known if self._is_default(o.params)), None)
