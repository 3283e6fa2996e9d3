"""From a compiled candidate to its time: predicted, or measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from kdsl.autotune.compiling import Built
from kdsl.autotune.measuring import Bench, Opening, Timing
from kdsl.autotune.measuring.race import interval, median
from kdsl.autotune.session.job import Job
from kdsl.autotune.session.outcome import Outcome, Params
from kdsl.runtime.calibration import CostModel
from kdsl.runtime.predict import Figures
from kdsl.specs import canonical
from kdsl.targets import Target, occupancy
from kdsl.work import Work

FINALISTS = 3
FINAL_ROUNDS = 20
"""Samples of each finalist in one row."""
FINAL_ROWS = 2
"""A candidate stands by the median of its rows: three with the one from the search."""
MARGIN = 1.1
"""How far above the data sheet's rates a real kernel may be: sheets assume lower clocks."""


class Evaluator(Protocol):
    """Gives compiled candidates of one workload their times."""

    @property
    def kind(self) -> Literal["measured", "predicted"]:
        """What the times are; the two are never mixed."""

    def evaluate(self, params: Params, built: Built, bar_us: float | None) -> Outcome:
        """The outcome; it may stop early once it cannot come below ``bar_us``."""

    def finals(self, best: Sequence[Outcome], default: Outcome | None) -> list[Outcome]:
        """A second, closer look at the best and the default; nothing where that adds nothing."""

    def finals_seconds(self, best: Sequence[Outcome]) -> float:
        """About how long that look takes."""


def refused(params: Params, built: Built, target: Target) -> Outcome | None:
    """The outcome of a candidate that did not compile or fits no multiprocessor."""
    if built.status != "ok":
        return Outcome(params, built.status, built.reason, built=built)
    shared, registers = built.shared_bytes or 0, built.registers or 0
    if shared > target.smem_optin:
        said = f"{shared} bytes of shared memory, {target.name} has {target.smem_optin}"
        return Outcome(params, "smem", said, built=built)
    if not occupancy(target, registers, shared, max(built.warps, 1)):
        said = f"no block fits: {registers} registers a thread, {shared} bytes, {built.warps} warps"
        return Outcome(params, "smem", said, built=built)
    return None


class Predicted:
    """What all evaluators share that compute times: there is nothing to time again."""

    kind: Literal["predicted"] = "predicted"

    def finals(self, best: Sequence[Outcome], default: Outcome | None) -> list[Outcome]:
        """A prediction looked at twice is the same."""
        del best, default
        return []

    def finals_seconds(self, best: Sequence[Outcome]) -> float:
        """No time."""
        del best
        return 0.0


class Predictor(Predicted):
    """Times from the work and the compiler's figures, for a GPU that is not here."""

    def __init__(self, job: Job, target: Target) -> None:
        self.job, self.target = job, target
        self.model = CostModel.of(job.tunable, target)

    def evaluate(self, params: Params, built: Built, bar_us: float | None) -> Outcome:
        """The prediction."""
        del bar_us
        failed = refused(params, built, self.target)
        if failed is not None:
            return failed
        figures = Figures(built.registers, built.spill_bytes, built.shared_bytes)
        guess = self.model(params, figures)
        return Outcome(
            params,
            "ok",
            median_us=guess.us,
            built=built,
            typical_error=guess.typical_error,
        )


class Measurer:
    """Times from the GPU, in its own process."""

    kind: Literal["measured"] = "measured"

    def __init__(self, job: Job, target: Target, bench: Bench, seed: int) -> None:
        self.job, self.target, self.bench = job, target, bench
        self._same: dict[tuple[Any, ...], Outcome] = {}
        sizes = job.tunable.sizes()
        spec_json = canonical(job.tunable.spec.to_json())
        batch, op = sizes.get("batch", 1), job.tunable.op
        bench.open(Opening(spec_json, job.tables, batch, seed, op))

    def evaluate(self, params: Params, built: Built, bar_us: float | None) -> Outcome:
        """The measurement; a binary that was measured before, launched alike, gives its result."""
        failed = refused(params, built, self.target)
        if failed is not None:
            return failed
        work = self.job.tunable.work(params, self.target)
        launch = (built.binary_hash, built.warps, work.programs)
        if built.binary_hash and launch in self._same:
            return replace(self._same[launch], params=params, built=built)
        outcome = self._judged(params, built, work, self.bench.measure(params, bar_us))
        self._same[launch] = outcome
        return outcome

    def _judged(self, params: Params, built: Built, work: Work, timing: Timing) -> Outcome:
        outcome = Outcome(
            params,
            timing.status,
            timing.reason,
            samples=timing.samples,
            built=built,
            error=timing.error,
            clock_mhz=timing.clock_mhz,
            temp_c=timing.temp_c,
        )
        if timing.status != "ok":
            return outcome
        outcome = timed(outcome, timing.samples)
        floor = floor_us(work, self.target)
        if (outcome.median_us or 0.0) < floor:
            said = f"{outcome.median_us:.1f} us is below what the GPU can do: {floor:.1f} us"
            return replace(outcome, status="too_fast", reason=said)
        return outcome

    def finals(self, best: Sequence[Outcome], default: Outcome | None) -> list[Outcome]:
        """Rows of samples taken by turns, so that heat and clocks touch all alike."""
        chosen = finalists(best, default)
        if len(chosen) < 2:
            return []
        taken = self.bench.finals([o.params for o in chosen], FINAL_ROWS * FINAL_ROUNDS)
        out = []
        for outcome, samples in zip(chosen, taken, strict=True):
            for row in range(FINAL_ROWS if samples else 0):
                part = tuple(samples[row::FINAL_ROWS])
                out.append(timed(replace(outcome, final=True), part))
        return out

    def finals_seconds(self, best: Sequence[Outcome]) -> float:
        """Four times what the kernels themselves take."""
        each = sum(o.median_us or 0.0 for o in finalists(best, None)) * 1e-6
        return 2.0 + 4 * FINAL_ROWS * FINAL_ROUNDS * each


def timed(outcome: Outcome, samples: Sequence[float]) -> Outcome:
    """The outcome with the statistics of these samples."""
    return replace(
        outcome, samples=tuple(samples), median_us=median(samples), interval_us=interval(samples)
    )


def finalists(best: Sequence[Outcome], default: Outcome | None) -> list[Outcome]:
    """The fastest few and the default."""
    sound = sorted((o for o in best if o.status == "ok"), key=lambda o: o.median_us or 0.0)
    chosen = sound[:FINALISTS]
    if default is not None and default.status == "ok" and default not in chosen:
        chosen.append(default)
    return chosen


def floor_us(work: Work, target: Target) -> float:
    """A time that no right kernel is below, in microseconds; 0 where the GPU is only estimated.

    Useful operations at the data sheet's peak, bytes at its bandwidth, both with a margin; as much
    as the L2 cache holds may still lie there when the kernel ends.
    """
    if target.live:
        return 0.0
    rates: Mapping[str, float] = dict(target.peaks)
    peak = rates.get(work.unit, 0.0)
    by_flop = work.useful_flop / (peak * MARGIN) if peak else 0.0
    crossing = max(work.bytes - target.l2_bytes, 0.0)
    by_bytes = crossing / (target.bandwidth * MARGIN) if target.bandwidth else 0.0
    return max(by_flop, by_bytes) * 1e6
