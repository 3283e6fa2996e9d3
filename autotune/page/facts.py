"""What a page says of each recording."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdsl.autotune.page.importance import importances
from kdsl.autotune.recordings import Recording
from kdsl.autotune.search.space import Point, point
from kdsl.autotune.session.outcome import Outcome
from kdsl.runtime.calibration import CostModel
from kdsl.runtime.predict import Figures, Prediction

TOP = 8


@dataclass(frozen=True)
class Step:
    """A measurement in the order of time: its median and the best up to it, in microseconds.

    ``us`` is None for a failure.
    """

    number: int
    us: float | None
    best_us: float | None


@dataclass(frozen=True)
class Guess:
    """A candidate's predicted and measured time in microseconds."""

    predicted_us: float
    measured_us: float
    settings: str


@dataclass(frozen=True)
class Section:
    """One workload on one GPU."""

    recording: Recording
    ranking: tuple[Outcome, ...]
    default: Outcome | None
    steps: tuple[Step, ...]
    importances: Mapping[str, float]
    """Share of each setting in the variance of the fast ones; empty where too few are known."""
    failures: tuple[tuple[str, str, int], ...]
    """Status, reason, count."""
    guesses: tuple[Guess, ...]
    typical_error: float | None
    """Of the calibration; None where this GPU's capability has none."""
    statistics: Mapping[str, float]

    @property
    def best(self) -> Outcome:
        """The choice."""
        return self.ranking[0]

    @property
    def gain(self) -> tuple[float, float, float] | None:
        """How many times faster than the default the choice is, between the bounds that both
        intervals leave."""
        if self.default is None or not self.default.median_us or not self.best.median_us:
            return None
        low, high = self.best.interval_us or (self.best.median_us,) * 2
        default_low, default_high = self.default.interval_us or (self.default.median_us,) * 2
        ratio = self.default.median_us / self.best.median_us
        return ratio, default_low / high, default_high / low

    @property
    def shown(self) -> list[Outcome]:
        """The fastest few, and the default."""
        chosen = list(self.ranking[:TOP])
        if self.default is not None and self.default not in chosen and self.default.median_us:
            chosen.append(self.default)
        return chosen


def sections(found: Sequence[Recording]) -> list[Section]:
    """In the order given."""
    return [_section(recording) for recording in found]


def _section(recording: Recording) -> Section:
    outcomes = recording.outcomes
    ranking = tuple(o for o in outcomes.values() if o.status == "ok")
    reasons = Counter((o.status, o.reason) for o in outcomes.values() if o.status != "ok")
    model = CostModel.of(recording.job.tunable, recording.target)
    return Section(
        recording,
        ranking,
        outcomes.get(point(recording.default)),
        tuple(_steps(recording)),
        importances(recording),
        tuple((*what, count) for what, count in reasons.most_common()),
        tuple(_guess(recording, at, model) for at in recording.times),
        _typical(model, recording),
        dict(recording.job.tunable.statistics()),
    )


def _steps(recording: Recording) -> list[Step]:
    best = math.inf
    out = []
    for number, at in enumerate(recording.in_time, 1):
        us = recording.times.get(at)
        best = min(best, us or math.inf)
        out.append(Step(number, us, best if best < math.inf else None))
    return out


def _guess(recording: Recording, at: Point, model: CostModel) -> Guess:
    built = recording.outcomes[at].built
    figures = Figures()
    if built is not None:
        figures = Figures(built.registers, built.spill_bytes, built.shared_bytes)
    said: Prediction = model(dict(at), figures)
    settings = ", ".join(f"{name}={value}" for name, value in at)
    return Guess(said.us, recording.times[at], settings)


def _typical(model: CostModel, recording: Recording) -> float | None:
    known = model.calibration
    return known.typical_error if known is not None and known.knows(recording.target) else None
