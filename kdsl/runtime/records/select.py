"""The best of a group of measurements, the same from whatever order they come in.

A group is one (workload, device, toolchain, kind). The rules stand beside the view ``standing`` in
``views.sql``, which computes the same inside a database; tests hold the two together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from kdsl.runtime.records.form import dumps
from kdsl.runtime.records.rows import Candidate, Device, Measurement, Toolchain

_UNKNOWN = 1 << 32


@dataclass(frozen=True)
class Trial:
    """A measurement with what it refers to, except the workload."""

    measurement: Measurement
    candidate: Candidate
    device: Device
    toolchain: Toolchain


@dataclass(frozen=True)
class Standing:
    """A candidate of a group: the trial it stands by, how often it was timed, default or not.

    ``heat`` is what its time is multiplied with to be held against others'.
    """

    trial: Trial
    runs: int
    default: bool
    heat: float = 1.0

    @property
    def fair_us(self) -> float:
        """The median, as a card would give that is as warm as when others were timed again."""
        return _median(self.trial) * self.heat


def wrong_binaries(trials: Iterable[Trial]) -> set[str]:
    """Hashes of binaries that gave a wrong result."""
    return {
        t.measurement.binary_hash
        for t in trials
        if t.measurement.status == "wrong" and t.measurement.binary_hash
    }


def ranked(group: Collection[Trial], condemned: Collection[str] = ()) -> list[Standing]:
    """The sound candidates of one group, best first.

    ``group`` holds all outcomes of one workload, device and toolchain of one kind, and those found
    ``wrong`` of either; ``condemned`` are binaries found wrong elsewhere.
    """
    wrong = {t.candidate.id for t in group if t.measurement.status == "wrong"}
    bad = {*condemned, *wrong_binaries(group)}
    runs: defaultdict[str, list[Trial]] = defaultdict(list)
    for trial in group:
        row = trial.measurement
        if row.status == "ok" and trial.candidate.id not in wrong and row.binary_hash not in bad:
            runs[trial.candidate.id].append(trial)
    standings = []
    quickest: dict[str, float] = {}
    for name, trials in runs.items():
        trials.sort(key=lambda t: (_median(t), t.measurement.id))
        quickest[name] = _median(trials[0])
        middle = trials[(len(trials) - 1) // 2]
        default = any(t.measurement.is_default for t in trials)
        standings.append(Standing(middle, len(trials), default))
    if not standings:
        return []
    first = min(standings, key=lambda s: (s.runs == 1, _median(s.trial), s.trial.candidate.id))
    heat = _median(first.trial) / quickest[first.trial.candidate.id]
    standings = [replace(s, heat=heat) if s.runs == 1 else s for s in standings]
    leader = min(standings, key=lambda s: (s.fair_us, s.trial.candidate.id))
    bar = leader.trial.measurement.interval()[1] * leader.heat

    def order(standing: Standing) -> tuple[float | str, ...]:
        row, candidate = standing.trial.measurement, standing.trial.candidate
        once = standing.runs == 1 < leader.runs
        if once or row.interval()[0] * standing.heat > bar:
            return (1, standing.fair_us, candidate.id)
        return (
            0,
            not standing.default,
            _UNKNOWN if row.shared_bytes is None else row.shared_bytes,
            _UNKNOWN if row.registers is None else row.registers,
            len(dumps(candidate.params)),
            candidate.id,
        )

    return sorted(standings, key=order)


def _median(trial: Trial) -> float:
    return trial.measurement.median_us or 0.0
