"""One workload: ask, compile, evaluate, write down, tell."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from kdsl.autotune.compiling import Built
from kdsl.autotune.search import Search, Space, StudyAt, make_recorder, make_search
from kdsl.autotune.search.space import Point, point
from kdsl.autotune.session.evaluate import Evaluator
from kdsl.autotune.session.job import Job
from kdsl.autotune.session.outcome import Outcome, Params
from kdsl.runtime.calibration import CostModel
from kdsl.targets import Target
from kdsl.work import AheadOfTime

GUESSES, CALIBRATED_GUESSES = 3, 8
"""Points tried early, the fastest by prediction: more where measured rows stand behind it."""


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


class Compilers(Protocol):
    """What compiles: see `kdsl.autotune.compiling.CompilePool`."""

    def submit(
        self, key: Hashable, what: AheadOfTime, target: Target, *, patient: bool = False
    ) -> None:
        """Put a kernel in the queue."""

    def result(self, key: Hashable, until: float | None = None) -> Built | None:
        """Wait for a kernel that was submitted; None if ``until`` passes first."""

    def drop(self, *, refill: bool = False) -> None:
        """Forget everything that was asked for."""


class Book(Protocol):
    """Where outcomes are written: see `kdsl.autotune.session.ledger.Ledger`."""

    def known(self) -> list[Outcome]:
        """One outcome for each candidate that was tried before, sound ones by rank."""

    def written(self) -> list[Outcome]:
        """One outcome for each candidate that this run itself has written down."""

    def add(self, outcome: Outcome) -> object:
        """Write one outcome."""


class Watch(Protocol):
    """Is told how it goes."""

    def begin(self, tally: Tally) -> None:
        """A workload starts."""

    def step(self, tally: Tally, outcome: Outcome) -> None:
        """A candidate has its outcome."""

    def end(self, tally: Tally) -> None:
        """A workload ends."""


@dataclass(frozen=True)
class Manner:
    """How a workload is gone about.

    ``limit`` counts candidates, those with rows included; ``until`` is in monotonic seconds.
    ``warm`` are tried right after the default.  ``record`` goes through the whole space in a random
    order.  ``legal`` replaces the tunable's own answer, ``model`` the cost model.
    """

    limit: int | None = None
    until: float | None = None
    seed: int = 0
    warm: Sequence[Params] = ()
    record: bool = False
    legal: Callable[[Params], str | None] | None = None
    model: CostModel | None = None
    study: StudyAt | None = None
    """Where other drivers take part."""


class WorkloadTuner:
    """Tunes one workload of one target into one book."""

    def __init__(
        self,
        job: Job,
        target: Target,
        evaluator: Evaluator,
        pool: Compilers,
        book: Book,
        watch: Watch,
        manner: Manner = Manner(),
    ) -> None:
        self.job, self.target, self.evaluator, self.pool = job, target, evaluator, pool
        self.book, self.watch, self.manner = book, watch, manner
        tunable = job.tunable
        self.default = tunable.default(target)
        legal = manner.legal or (lambda p: tunable.legal(p, target))
        self.space = Space(tunable.space(target), legal)
        self.search = self._search()
        known = [o for o in book.known() if self.space.why_not(o.params) is None]
        size = None if self.space.points is None else len(self.space.points)
        limits = (manner.limit, size if manner.limit or manner.record else None)
        wanted = min((n for n in limits if n is not None), default=None)
        self.tally = Tally(job.name, evaluator.kind, len(known), wanted, list(known))
        self.tally.default = next((o for o in known if self._is_default(o.params)), None)
        self._reference = self._first_reference(known)
        for outcome in known:
            self.search.tell(outcome.params, self._cost(outcome))

    def _search(self) -> Search:
        limit, seed = self.manner.limit, self.manner.seed
        if self.manner.record:
            return make_recorder(self.space, default=self.default, limit=limit, seed=seed)
        model = self.manner.model or CostModel.of(self.job.tunable, self.target)

        @cache
        def guess(at: Point) -> float:
            return model(dict(at)).us

        def prior(params: Params) -> float:
            return guess(point(params))

        count = CALIBRATED_GUESSES if model.calibrated else GUESSES
        guesses = sorted(self.space.points or (), key=lambda p: (prior(p), point(p)))[:count]
        first = [self.default, *self.manner.warm, *guesses]
        study = self.manner.study
        return make_search(
            self.space, first=first, prior=prior, limit=limit, seed=seed, study=study
        )

    def run(self) -> Tally:
        """Go on until the budget or the space is used up."""
        started = time.monotonic()
        self.watch.begin(self.tally)
        try:
            self._loop()
            if self.tally.new:
                for outcome in self.evaluator.finals(self.tally.outcomes, self.tally.default):
                    self.book.add(outcome)
            self._settle()
            self.pool.drop(refill=True)
        except KeyboardInterrupt:
            self._catch_up()
            raise
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
            built = self.pool.result((self.job.name, point(params)), self.manner.until)
            if built is None:
                break
            outcome = self.evaluator.evaluate(params, built, self._bar_us())
            self.book.add(outcome)
            self._count(outcome)

    def _time_left(self) -> bool:
        if self.manner.until is None:
            return True
        return (
            time.monotonic() + self.evaluator.finals_seconds(self.tally.outcomes)
            < self.manner.until
        )

    def _absorb(self) -> None:
        """Take in what other drivers of the same study have written down meanwhile."""
        seen = {point(o.params) for o in self.tally.outcomes}
        for outcome in self.book.known():
            if point(outcome.params) in seen or self.space.why_not(outcome.params) is not None:
                continue
            self.tally.outcomes.append(outcome)
            self.tally.known += 1
            if self.tally.default is None and self._is_default(outcome.params):
                self.tally.default = outcome
            self.search.tell(outcome.params, self._cost(outcome))

    def _ask_ahead(self, window: deque[Params]) -> None:
        limit = self.manner.limit
        if self.manner.study is not None:
            self._absorb()
        while len(window) < self.search.ahead and not self.tally.exhausted:
            if limit is not None and len(self.tally.outcomes) + len(window) >= limit:
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

    def _catch_up(self) -> None:
        """Count what was written but not counted: an interrupt may fall between the two."""
        counted = {point(o.params) for o in self.tally.outcomes}
        for outcome in self.book.written():
            if point(outcome.params) not in counted:
                self.tally.outcomes.append(outcome)
                self.tally.fresh[outcome.status] += 1
            if self.tally.default is None and self._is_default(outcome.params):
                self.tally.default = outcome

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
        known = [o for o in self.book.known() if self.space.why_not(o.params) is None]
        self.tally.outcomes, self.tally.settled = known, True
        self.tally.default = next((o for o in known if self._is_default(o.params)), None)
