"""A recording acts as a GPU: the tuner runs on it as it would live, and its choice is judged.

What is asked, measured, timed again and chosen goes through the tuner's own code; compiling and
timing are looked up.  Times are drawn from the recorded samples, so that noise is real.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from kdsl.autotune.compiling import Built
from kdsl.autotune.recordings.files import Held
from kdsl.autotune.recordings.recording import Recording, kind_of
from kdsl.autotune.search.space import Params, Point, point
from kdsl.autotune.session.evaluate import FINAL_ROUNDS, FINAL_ROWS, finalists, timed
from kdsl.autotune.session.kin import kin
from kdsl.autotune.session.ledger import Ledger
from kdsl.autotune.session.outcome import Outcome
from kdsl.autotune.session.tuner import Manner, Tally, WorkloadTuner
from kdsl.runtime import keying
from kdsl.runtime.calibration import Calibration, CostModel
from kdsl.runtime.predict import UNCOMPILED, Figures, Prediction
from kdsl.runtime.records import MemorySource, Run, Source, Trial, Workload
from kdsl.runtime.records.form import Row
from kdsl.runtime.records.rows import now
from kdsl.targets import Target
from kdsl.work import AheadOfTime

A_ROUND = 6


@dataclass(frozen=True)
class Attempt:
    """One seed on one recording.

    ``regret`` is the recorded time of the choice over the recorded best, ``found_at`` the
    measurement that first came ``within`` of it, None if none did.
    """

    seed: int
    regret: float
    found_at: int | None
    measured: int


@dataclass(frozen=True)
class Replay:
    """All seeds on one recording."""

    recording: Recording
    within: float
    attempts: tuple[Attempt, ...]

    @property
    def reached(self) -> int:
        """Seeds whose choice is within the bound of the best."""
        return sum(a.regret <= 1 + self.within for a in self.attempts)


def replay(
    recording: Recording,
    *,
    seeds: Sequence[int],
    budget: int,
    within: float,
    warm: Sequence[Params] = (),
    calibration: Calibration | None = None,
) -> Replay:
    """Tune on a recording once a seed, with ``budget`` measurements each."""
    model = Remembered(recording.job.tunable, recording.target, calibration)
    manners = [
        Manner(limit=budget, seed=seed, warm=warm, legal=recording.legal, model=model)
        for seed in seeds
    ]
    return Replay(recording, within, tuple(_attempt(recording, m, within) for m in manners))


class Remembered(CostModel):
    """A cost model that is asked the same by every seed."""

    @cached_property
    def _known(self) -> dict[Point, Prediction]:
        return {}

    def __call__(self, params: Params, figures: Figures = UNCOMPILED) -> Prediction:
        """The time of a configuration that nobody compiled."""
        at = point(params)
        if at not in self._known:
            self._known[at] = super().__call__(params, figures)
        return self._known[at]


def _attempt(recording: Recording, manner: Manner, within: float) -> Attempt:
    watch = _Watch(recording, within)
    shelf = Shelf()
    run = Run(started=now())
    space = keying.space_hash(recording.job.tunable.space(recording.target))
    ledger = Ledger(shelf, run, recording.key, space, "measured", recording.default)
    shelf.add(*recording.key, run)
    tally = WorkloadTuner(
        recording.job,
        recording.target,
        Replayed(recording, manner.seed),
        RecordedPool(recording),
        ledger,
        watch,
        manner,
    ).run()
    chosen = tally.ranking
    regret = (recording.regret(chosen[0].params) if chosen else None) or float("inf")
    return Attempt(manner.seed, regret, watch.found_at, tally.new)


class Shelf:
    """A store in memory for one attempt."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    @property
    def source(self) -> MemorySource:
        """What was added."""
        return MemorySource(self._rows)

    def add(self, *rows: Row) -> tuple[str, ...]:
        """Keep rows."""
        self._rows += rows
        return tuple(row.id for row in rows)


class Replayed:
    """Times from a recording, drawn anew from the recorded samples."""

    kind: Literal["measured", "predicted"] = "measured"

    def __init__(self, recording: Recording, seed: int) -> None:
        self.recording, self.chance = recording, random.Random(seed)

    def evaluate(self, params: Params, built: Built, bar_us: float | None) -> Outcome:
        """What was recorded: as many samples as a race takes at least."""
        del bar_us
        outcome = self.recording.outcomes[point(params)]
        if outcome.status != "ok":
            return Outcome(params, outcome.status, outcome.reason, built=built)
        return timed(Outcome(params, "ok", built=built), self._draw(params, A_ROUND))

    def finals(self, best: Sequence[Outcome], default: Outcome | None) -> list[Outcome]:
        """Rows of more samples of the best and the default."""
        chosen = finalists(best, default)
        if len(chosen) < 2:
            return []
        return [
            timed(Outcome(o.params, "ok", built=o.built, final=True), samples)
            for o in chosen
            for samples in self._rows_of(o.params)
        ]

    def _rows_of(self, params: Params) -> Iterator[tuple[float, ...]]:
        for _ in range(FINAL_ROWS):
            yield self._draw(params, FINAL_ROUNDS)

    def finals_seconds(self, best: Sequence[Outcome]) -> float:
        """No time."""
        del best
        return 0.0

    def _draw(self, params: Params, count: int) -> tuple[float, ...]:
        held = self.recording.samples[point(params)] or (self.recording.times[point(params)],)
        return tuple(self.chance.choices(held, k=count))


class RecordedPool:
    """A compiler that remembers."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def submit(
        self, key: Hashable, what: AheadOfTime, target: Target, *, patient: bool = False
    ) -> None:
        """Nothing to do."""

    def result(self, key: Hashable, until: float | None = None) -> Built | None:
        """What was compiled then."""
        assert isinstance(key, tuple)
        outcome = self.recording.outcomes[key[1]]
        return outcome.built or Built("ok")

    def drop(self, *, refill: bool = False) -> None:
        """Nothing is under way."""


class _Watch:
    """Counts measurements until one is good."""

    def __init__(self, recording: Recording, within: float) -> None:
        self.recording, self.within = recording, within
        self.count, self.found_at = 0, None if recording.times else 0

    def begin(self, tally: Tally) -> None:
        """Nothing yet."""

    def step(self, tally: Tally, outcome: Outcome) -> None:
        """One more."""
        self.count += 1
        regret = self.recording.regret(outcome.params)
        if self.found_at is None and regret is not None and regret <= 1 + self.within:
            self.found_at = self.count

    def end(self, tally: Tally) -> None:
        """Nothing left."""


def share(replays: Sequence[Replay]) -> float:
    """Of all (recording, seed) pairs, those within the bound."""
    pairs = sum(len(r.attempts) for r in replays)
    return sum(r.reached for r in replays) / pairs if pairs else 0.0


def counts(replays: Sequence[Replay]) -> Mapping[str, int]:
    """Pairs in all, and those within the bound."""
    return {
        "pairs": sum(len(r.attempts) for r in replays),
        "reached": sum(r.reached for r in replays),
    }


def start(
    recording: Recording, others: Sequence[Recording], held: Held
) -> tuple[list[Params], Calibration | None]:
    """What a run on a new workload starts from: the other workloads' winners, and a calibration
    fitted to them.  A workload's own densities count as the workload."""
    from kdsl.autotune.model import fit, samples_of

    own = kind_of(recording)
    rest = [o for o in others if kind_of(o) != own and o.target.cc == recording.target.cc]
    like = (recording.job.tunable.op, recording.key.workload.dtypes)
    alike = [o for o in rest if (o.job.tunable.op, o.key.workload.dtypes) == like]
    lessons = [samples_of(o) for o in alike]
    known = {o.key.workload.id for o in rest}
    warm = kin(recording.key, [_Only(held.source, known)], recording.legal)
    return warm, fit(lessons) if lessons else None


class _Only:
    """A source with some of its workloads alone."""

    def __init__(self, source: Source, known: Collection[str]) -> None:
        self._source, self._known = source, known

    def workloads(self, op: str, program: str | None = None) -> list[Workload]:
        """Those."""
        return [w for w in self._source.workloads(op, program) if w.id in self._known]

    def trials(self, workload_id: str) -> list[Trial]:
        """Of those."""
        return list(self._source.trials(workload_id)) if workload_id in self._known else []

    def condemned(self) -> Collection[str]:
        """All that were found wrong."""
        return self._source.condemned()
