"""What is known about a workload, and adding to it: the session's view of the database."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kdsl.autotune.compiling import Built
from kdsl.autotune.measuring.race import quantile
from kdsl.autotune.session.outcome import Outcome, Params
from kdsl.runtime.records import Candidate, Key, Measurement, Row, Run, Source, Trial
from kdsl.runtime.records.keys import changes, same_device
from kdsl.runtime.records.rows import now
from kdsl.runtime.records.select import ranked

MOST_SAMPLES = 64


class Shelf(Protocol):
    """Where rows are kept: a `Store`, or memory."""

    @property
    def source(self) -> Source:
        """What was added."""

    def add(self, *rows: Row) -> tuple[str, ...]:
        """Keep rows; they are safe when this returns."""


@dataclass(frozen=True)
class Ledger:
    """Rows of one kind under one key."""

    store: Shelf
    run: Run
    key: Key
    space_hash: str
    kind: str
    default: Params

    def known(self) -> list[Outcome]:
        """One outcome for each candidate that has rows of this kind, device and toolchain."""
        return outcomes_of(self._trials(), self.store.source.condemned())

    def written(self) -> list[Outcome]:
        """One outcome for each candidate that has such rows of this run."""
        trials = [t for t in self._trials() if t.measurement.run_id == self.run.id]
        return outcomes_of(trials, self.store.source.condemned())

    def _trials(self) -> list[Trial]:
        return [t for t in self.store.source.trials(self.key.workload.id) if self._mine(t)]

    def _mine(self, trial: Trial) -> bool:
        if trial.measurement.kind != self.kind:
            return False
        if not same_device(self.key.device, trial.device):
            return False
        if self.key.toolchain.extra != trial.toolchain.extra:
            return False  # of another calibration
        return not changes(self.key, Key(self.key.workload, trial.device, trial.toolchain))

    def add(self, outcome: Outcome) -> Measurement:
        """Write one outcome; it is on the disk when this returns."""
        candidate = Candidate(space_hash=self.space_hash, params=dict(outcome.params))
        row = Measurement(
            workload_id=self.key.workload.id,
            device_id=self.key.device.id,
            toolchain_id=self.key.toolchain.id,
            candidate_id=candidate.id,
            run_id=self.run.id,
            kind=self.kind,
            status=outcome.status,
            reason=outcome.reason,
            created=now(),
            is_default=dict(outcome.params) == dict(self.default),
            error=outcome.error,
            clock_mhz=outcome.clock_mhz,
            temp_c=outcome.temp_c,
            **_times(outcome),
            **_resources(outcome.built),
            extra=_provenance(outcome),
        )
        self.store.add(*self.key, candidate, row)
        return row


def outcomes_of(trials: Collection[Trial], condemned: Collection[str]) -> list[Outcome]:
    """One outcome for each candidate of a group: sound ones by rank, then the others."""
    found = {s.trial.candidate.id: s.trial for s in ranked(trials, condemned)}
    for trial in sorted(trials, key=lambda t: (t.measurement.created, t.measurement.id)):
        if trial.measurement.status != "ok":
            found.setdefault(trial.candidate.id, trial)
    return [_outcome(trial) for trial in found.values()]


def _times(outcome: Outcome) -> Mapping[str, Any]:
    samples = outcome.samples
    if not samples:
        return {"median_us": outcome.median_us}
    low, high = outcome.interval_us or (None, None)
    return {
        "n": len(samples),
        "median_us": outcome.median_us,
        "p20_us": quantile(samples, 0.2),
        "p80_us": quantile(samples, 0.8),
        "ci_lo_us": low,
        "ci_hi_us": high,
        "samples": tuple(round(s, 3) for s in samples[:MOST_SAMPLES]),
    }


def _provenance(outcome: Outcome) -> Mapping[str, Any]:
    """What a prediction rests on, for the rows of calibrated ones."""
    if outcome.typical_error is None:
        return {}
    return {"typical_error": outcome.typical_error}


def _resources(built: Built | None) -> Mapping[str, Any]:
    if built is None:
        return {}
    return {
        "registers": built.registers,
        "spill_bytes": built.spill_bytes,
        "shared_bytes": built.shared_bytes,
        "stack_bytes": built.stack_bytes,
        "binary_hash": built.binary_hash,
    }


def _outcome(trial: Trial) -> Outcome:
    row = trial.measurement
    built = Built(
        "ok",
        registers=row.registers,
        spill_bytes=row.spill_bytes,
        shared_bytes=row.shared_bytes,
        stack_bytes=row.stack_bytes,
        binary_hash=row.binary_hash,
    )
    return Outcome(
        trial.candidate.params,
        row.status,
        row.reason,
        median_us=row.median_us,
        interval_us=row.interval() if row.status == "ok" else None,
        built=built,
        error=row.error,
    )
