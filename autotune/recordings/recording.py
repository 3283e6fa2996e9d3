"""One workload on one GPU with all that was measured of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kdsl import targets
from kdsl.autotune.recordings.files import Held
from kdsl.autotune.recordings.subject import Subjects
from kdsl.autotune.search.space import Params, Point, point
from kdsl.autotune.session.job import Job
from kdsl.autotune.session.ledger import outcomes_of
from kdsl.autotune.session.outcome import Outcome
from kdsl.errors import UnsupportedError
from kdsl.runtime.records import Key, Trial, Workload, ranked
from kdsl.targets import Target

FULL = 120
"""Candidates from which a recording that is not exhaustive counts as one."""


@dataclass(frozen=True)
class Recording:
    """What was measured: one outcome a candidate, a fair time of each that is right, and samples.

    Times are microseconds on a card as warm as when the fastest were timed again, see
    `kdsl.runtime.records.select`; samples are those of that second time, or brought there.
    """

    job: Job
    target: Target
    key: Key
    outcomes: Mapping[Point, Outcome]
    times: Mapping[Point, float]
    samples: Mapping[Point, tuple[float, ...]]
    row_ids: tuple[str, ...]
    in_time: tuple[Point, ...]
    """Candidates in the order of their first rows, to the second."""

    @property
    def name(self) -> str:
        """Of the workload."""
        return self.job.name

    @cached_property
    def best_us(self) -> float:
        """The least of the times."""
        return min(self.times.values())

    @cached_property
    def default(self) -> Params:
        """The built-in choice today, whatever it was when the rows were made."""
        return self.job.tunable.default(self.target)

    def regret(self, params: Params) -> float | None:
        """How many times slower than the best a configuration is; None if it has no time."""
        us = self.times.get(point(params))
        return None if us is None else us / self.best_us

    def legal(self, params: Params) -> str | None:
        """Why a configuration cannot be asked about, or None."""
        if point(params) not in self.outcomes:
            return "not in the recording"
        return self.job.tunable.legal(params, self.target)

    @cached_property
    def coverage(self) -> float:
        """Share of the legal space that was measured; 0 where the space is too large to count."""
        from kdsl.autotune.search.space import Space

        tunable, target = self.job.tunable, self.target
        points = Space(tunable.space(target), lambda p: tunable.legal(p, target)).points
        if not points:
            return 0.0
        return sum(point(p) in self.outcomes for p in points) / len(points)

    @property
    def whole(self) -> bool:
        """Whether it is exhaustive, or large enough to stand for the space."""
        return len(self.outcomes) >= FULL or self.coverage == 1.0


def kind_of(recording: Recording) -> tuple[str, tuple[tuple[str, int], ...]]:
    """What the densities of a workload share: program and sizes."""
    workload = recording.key.workload
    return workload.program, tuple(sorted(workload.dims.items()))


def recordings(held: Held, gpu: str | None = None) -> tuple[list[Recording], list[str]]:
    """All measured workloads with at least two sound candidates, and why others are left out.

    Of several toolchains one stands, see `_groups`; ``gpu`` names one GPU.
    """
    found: list[Recording] = []
    left: list[str] = []
    subjects = Subjects(held.runs)
    for workload in held.workloads:
        if not any(t.measurement.kind == "measured" for t in held.source.trials(workload.id)):
            continue
        job = subjects.job(workload)
        if job is None:
            left.append(f"{workload.op} {workload.id[:8]}: the values of its tables are not here")
            continue
        for trials in _groups(held, workload, gpu, job.tunable.template_hash):
            made = _recording(job, workload, trials, held)
            if made is not None and len(made.times) > 1:
                found.append(made)
    return sorted(found, key=lambda r: (r.target.name, r.name, r.key.workload.id)), left


def _groups(held: Held, workload: Workload, gpu: str | None, template: str) -> list[list[Trial]]:
    """Trials by device, each of one toolchain: today's template before others, then the one that
    tried most, then the newest."""
    sets: defaultdict[str, defaultdict[str, list[Trial]]] = defaultdict(lambda: defaultdict(list))
    for trial in held.source.trials(workload.id):
        if trial.measurement.kind == "measured" and gpu in (None, trial.device.name):
            sets[trial.device.id][trial.toolchain.id].append(trial)

    def worth(trials: Sequence[Trial]) -> tuple[bool, int, str, str]:
        tools = trials[0].toolchain
        tried = len({t.candidate.id for t in trials})
        newest = max(t.measurement.created for t in trials)
        return tools.template_hash == template, tried, newest, tools.id

    return [max(tools.values(), key=worth) for _, tools in sorted(sets.items())]


def _recording(
    job: Job, workload: Workload, trials: Sequence[Trial], held: Held
) -> Recording | None:
    one = trials[0]
    try:
        target = targets.get(one.device.name)
    except UnsupportedError:
        return None
    condemned = held.source.condemned()
    outcomes = {point(o.params): o for o in outcomes_of(trials, condemned)}
    ordered = sorted(trials, key=lambda t: (t.measurement.created, t.measurement.id))
    by_candidate: defaultdict[str, list[Trial]] = defaultdict(list)
    for trial in ordered:
        by_candidate[trial.candidate.id].append(trial)
    times, samples = {}, {}
    for standing in ranked(trials, condemned):
        at = point(standing.trial.candidate.params)
        times[at] = standing.fair_us
        own = by_candidate[standing.trial.candidate.id]
        again = [x for t in own[len(own) > 1 :] for x in t.measurement.samples]
        samples[at] = tuple(x * standing.heat for x in again)
    return Recording(
        job,
        target,
        Key(workload, one.device, one.toolchain),
        outcomes,
        times,
        samples,
        tuple(sorted(t.measurement.id for t in trials)),
        tuple(dict.fromkeys(point(t.candidate.params) for t in ordered)),
    )
