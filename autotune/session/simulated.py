"""Tuning what runs on more GPUs than are here: times come from a simulation, as predictions."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from kdsl.autotune.compiling import Built
from kdsl.autotune.session.evaluate import Predicted
from kdsl.autotune.session.job import Job
from kdsl.autotune.session.outcome import Outcome, Params
from kdsl.parallel.tunable import PartitionTunable
from kdsl.runtime import keying
from kdsl.runtime.records import Key
from kdsl.targets import Target
from kdsl.work import AheadOfTime


class NothingToCompile:
    """Stands where compilers do, for what is no kernel."""

    def submit(
        self, key: Hashable, what: AheadOfTime, target: Target, *, patient: bool = False
    ) -> None:
        """Nothing."""

    def result(self, key: Hashable, until: float | None = None) -> Built | None:
        """At once."""
        del key, until
        return Built("ok")

    def drop(self, *, refill: bool = False) -> None:
        """Nothing."""


class Simulator(Predicted):
    """Times of plans from their event timeline."""

    def __init__(self, tunable: PartitionTunable, target: Target) -> None:
        self.tunable, self.target = tunable, target

    def evaluate(self, params: Params, built: Built, bar_us: float | None) -> Outcome:
        """The simulated time."""
        del built, bar_us
        return Outcome(params, "ok", median_us=self.tunable.predicted_us(params, self.target))


@dataclass(frozen=True)
class Simulated:
    """A group of GPUs that need not be there."""

    tunable: PartitionTunable
    target: Target

    def evaluator(self, job: Job, seed: int) -> Simulator:
        """Simulates."""
        del job, seed
        return Simulator(self.tunable, self.target)

    def key(self, job: Job) -> Key:
        """Data sheet and costs: rows of other costs are others."""
        key = keying.key_for(job.tunable, self.target)
        model = {"model": self.tunable.costs_on(self.target).id}
        return key._replace(toolchain=replace(key.toolchain, extra=model))
