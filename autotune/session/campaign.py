"""All workloads of a run, one after the other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from kdsl.autotune.compiling import CompilePool
from kdsl.autotune.measuring import Bench
from kdsl.autotune.search import StudyAt
from kdsl.autotune.session.budget import Budget
from kdsl.autotune.session.evaluate import Evaluator, Measurer, Predictor
from kdsl.autotune.session.job import Job
from kdsl.autotune.session.kin import kin
from kdsl.autotune.session.ledger import Ledger
from kdsl.autotune.session.outcome import Params
from kdsl.autotune.session.simulated import NothingToCompile, Simulated
from kdsl.autotune.session.tuner import Compilers, Manner, Tally, Watch, WorkloadTuner
from kdsl.autotune.store import Store
from kdsl.parallel.tunable import PartitionTunable
from kdsl.runtime import keying
from kdsl.runtime.calibration import CostModel
from kdsl.runtime.records import Device, Key, Run, Source, shipped
from kdsl.specs import digest
from kdsl.targets import Target


class Lab(Protocol):
    """Where times come from: a GPU, or a model of one that is not here."""

    def evaluator(self, job: Job, seed: int) -> Evaluator:
        """For one workload."""

    def key(self, job: Job) -> Key:
        """What its rows are filed under."""


@dataclass(frozen=True)
class AbsentGpu:
    """Predictions alone."""

    target: Target

    def evaluator(self, job: Job, seed: int) -> Evaluator:
        """Predicts."""
        del seed
        return Predictor(job, self.target)

    def key(self, job: Job) -> Key:
        """Data sheet, the compiler here, and the calibration: other models' rows are others."""
        key = keying.key_for(job.tunable, self.target)
        found = CostModel.of(job.tunable, self.target).calibration
        if found is None:
            return key
        return key._replace(toolchain=replace(key.toolchain, extra={"model": found.id}))


@dataclass(frozen=True)
class PresentGpu:
    """Measurements through a process on the GPU."""

    target: Target
    bench: Bench

    def evaluator(self, job: Job, seed: int) -> Evaluator:
        """Measures."""
        return Measurer(job, self.target, self.bench, seed)

    def key(self, job: Job) -> Key:
        """The card at hand and all versions that its times depend on."""
        facts = self.bench.facts
        versions = {"driver": facts.driver, "cuda": facts.cuda, "torch": facts.torch}
        versions |= {"triton": facts.triton} if facts.triton else {}
        device = Device.of(self.target, power_cap_w=facts.power_cap_w)
        return Key(keying.workload(job.tunable), device, keying.toolchain(job.tunable, **versions))


class Campaign:
    """Tunes jobs in turn; each gets its share of the time that is left.

    ``jobs`` are made when their turn comes, since a large mask takes seconds to read. ``study`` is
    a place of Optuna's where other drivers take part; ``driver`` is this one's name there, by
    default the run's.
    """

    def __init__(
        self,
        lab: Lab,
        target: Target,
        pool: CompilePool,
        store: Store,
        watch: Watch,
        *,
        budget: Budget,
        seed: int = 0,
        record: bool = False,
        study: str | None = None,
        driver: str = "",
    ) -> None:
        self.study, self.driver = study, driver
        self.lab, self.target, self.pool, self.store = lab, target, pool, store
        self.watch, self.budget, self.seed, self.record = watch, budget, seed, record
        self.tallies: list[Tally] = []

    def run(self, run: Run, jobs: Sequence[Callable[[], Job]]) -> list[Tally]:
        """Every job; what is done stands in ``tallies`` when this is interrupted, too."""
        end = None if self.budget.seconds is None else time.monotonic() + self.budget.seconds
        for number, make in enumerate(jobs):
            until = None
            if end is not None:
                now = time.monotonic()
                until = now + max(end - now, 0.0) / (len(jobs) - number)
            self._one(run, make(), until)
        return self.tallies

    def _one(self, run: Run, job: Job, until: float | None) -> None:
        lab: Lab = self.lab
        pool: Compilers = self.pool
        if isinstance(job.tunable, PartitionTunable):
            lab, pool = Simulated(job.tunable, self.target), NothingToCompile()
        evaluator = lab.evaluator(job, self.seed)
        tunable, key = job.tunable, lab.key(job)
        space = keying.space_hash(tunable.space(self.target))
        default = tunable.default(self.target)
        ledger = Ledger(self.store, run, key, space, evaluator.kind, default)
        warm: list[Params] = []
        if not self.record:
            sources: list[Source] = [self.store.source, shipped()]
            warm = kin(key, sources, lambda p: tunable.legal(p, self.target))
        study = None
        if self.study is not None:
            study = StudyAt(self.study, _study_name(ledger), self.driver or run.id)
        manner = Manner(self.budget.candidates, until, self.seed, warm, self.record, study=study)
        tuner = WorkloadTuner(job, self.target, evaluator, pool, ledger, self.watch, manner)
        self.tallies.append(tuner.tally)
        tuner.run()

    @property
    def counts(self) -> dict[str, int]:
        """New candidates by status, and the points that the static model refused."""
        total: Counter[str] = Counter()
        for tally in self.tallies:
            total.update(tally.fresh)
            total["illegal"] += tally.illegal
        return dict(total)


def _study_name(ledger: Ledger) -> str:
    """One study for each key and space: readable in front, unmistakable behind."""
    workload, device, toolchain = ledger.key
    same = (workload.id, device.name, device.cc, device.sms, device.mig, toolchain.id)
    mark = digest([*same, ledger.space_hash])[:12]
    return f"{workload.op} on {device.name}, {ledger.kind}, {mark}"
