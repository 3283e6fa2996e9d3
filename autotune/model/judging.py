"""How good predictions are where the model has seen nothing: whole workloads are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdsl.autotune.model.fitting import Lesson, Spans, fit, with_errors
from kdsl.autotune.recordings import Recording
from kdsl.autotune.recordings.recording import kind_of
from kdsl.runtime.calibration import Calibration
from kdsl.runtime.predict import Physics, before_us


@dataclass(frozen=True)
class Case:
    """One recording that the model was not fitted to.

    ``spearman`` is the rank correlation of predicted and measured times within it, ``regret`` the
    measured time of the candidate that is predicted fastest over the best; ``plain_spearman`` and
    ``plain_regret`` the same of the bound alone.  ``factors`` are predicted over measured.
    """

    recording: Recording
    fitted_on: tuple[str, ...]
    spearman: float
    regret: float
    plain_spearman: float
    plain_regret: float
    factors: tuple[float, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]


def held_out(lessons: Sequence[Lesson]) -> tuple[Calibration, list[Case]]:
    """The calibration of all, with the errors of each workload predicted from all others.

    A workload goes with all its densities and GPUs: they share a spec.  With one workload alone
    each recording is left out by itself, and with one recording nothing can be left out.
    """
    memo = Spans()
    whole = fit(lessons, memo)
    alone = len({kind_of(lesson.recording) for lesson in lessons}) < 2
    cases = []
    for held in lessons:
        own = kind_of(held.recording)
        rest = [o for o in lessons if (o is not held if alone else kind_of(o.recording) != own)]
        if rest:
            cases.append(judged(held, fit(rest, memo), rest, memo))
    factors = [f for case in cases for f in case.factors]
    if not factors:
        return whole, []
    return with_errors(whole, factors, summary(cases)), cases


def transferred(train: Sequence[Lesson], test: Sequence[Lesson]) -> list[Case]:
    """Recordings of one GPU, predicted from those of another of its compute capability."""
    memo = Spans()
    model = fit(train, memo)
    return [judged(lesson, model, train, memo) for lesson in test]


def judged(lesson: Lesson, model: Calibration, rest: Sequence[Lesson], memo: Spans) -> Case:
    """A lesson as a model sees it that knows nothing of it."""
    measured = np.array([s.us for s in lesson.samples])
    before = np.array([before_us(s.work, lesson.target) for s in lesson.samples])
    plain = before + memo.bounds(lesson, Physics())
    factors = np.array([model.factor(s.params, s.work, s.loading) for s in lesson.samples])
    predicted = before + memo.bounds(lesson, model.physics) * factors
    best = float(measured.min())
    return Case(
        recording=lesson.recording,
        fitted_on=tuple(sorted({o.recording.name for o in rest})),
        spearman=spearman(predicted, measured),
        regret=float(measured[predicted.argmin()]) / best,
        plain_spearman=spearman(plain, measured),
        plain_regret=float(measured[plain.argmin()]) / best,
        factors=tuple(float(f) for f in predicted / measured),
        predicted=tuple(map(float, predicted)),
        measured=tuple(map(float, measured)),
    )


def summary(cases: Sequence[Case]) -> dict[str, float]:
    """The figures that goals are set in: median and worst rank correlation and regret."""
    ranks = sorted(case.spearman for case in cases)
    regrets = sorted(case.regret for case in cases)
    return {
        "spearman_median": float(np.median(ranks)),
        "spearman_worst": ranks[0],
        "regret_median": float(np.median(regrets)),
        "regret_worst": regrets[-1],
    }


def spearman(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Rank correlation; ties share their mean rank."""
    ra, rb = _ranks(a), _ranks(b)
    ra, rb = ra - ra.mean(), rb - rb.mean()
    norm = float(np.sqrt((ra**2).sum() * (rb**2).sum()))
    return float((ra * rb).sum()) / norm if norm else 0.0


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], np.float64)
