"""Corrections of the physical bound, by ridge regression on logarithms.

``log(measured / bound)`` is first a sum of weighted traits (`kdsl.runtime.predict.traits`) and an
offset of its own for each recording, which keeps what one workload is slower by out of the weights:
they order the candidates within a workload.  Then the offsets become an intercept and weights of
the traits that a workload has as a whole.  Recordings count alike, however many rows they have,
but for those of a small part of the space.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.autotune.recordings import Recording
from kdsl.autotune.recordings.recording import FULL
from kdsl.autotune.search.space import Point
from kdsl.runtime.calibration import Calibration
from kdsl.runtime.predict import (
    LEVEL,
    Figures,
    Loading,
    Physics,
    before_us,
    makespan,
    physical_us,
    traits,
)
from kdsl.targets import Target
from kdsl.work import Work

Floats = npt.NDArray[np.float64]

OVERHEADS = (1.0, 2.0, 4.0, 8.0)
L2 = (1.5, 2.5, 4.0)
EXPOSED = (0.0, 0.3, 0.6, 1.0)
SHRINK, OFFSET_SHRINK, LEVEL_SHRINK = 2.0, 0.1, 1.0
"""Ridge penalties of weights and offsets in rows, and of the level's weights in recordings."""


@dataclass(frozen=True)
class Sample:
    """One measured candidate with everything that a prediction of it may use."""

    params: Mapping[str, Any]
    work: Work
    loading: Loading
    us: float


@dataclass(frozen=True)
class Lesson:
    """The samples of one recording."""

    recording: Recording
    samples: tuple[Sample, ...]

    @property
    def target(self) -> Target:
        """The GPU."""
        return self.recording.target


def samples_of(recording: Recording) -> Lesson:
    """What a recording says, with the compiler's figures of its rows."""
    tunable, target = recording.job.tunable, recording.target
    works: dict[Point, Work] = {}
    found = []
    for at, us in recording.times.items():
        params, built = dict(at), recording.outcomes[at].built
        works[at] = tunable.work(params, target)
        figures = Figures()
        if built is not None:
            figures = Figures(built.registers, built.spill_bytes, built.shared_bytes)
        found.append(Sample(params, works[at], Loading.of(works[at], target, figures), us))
    return Lesson(recording, tuple(found))


def groups(lessons: Iterable[Lesson]) -> dict[tuple[str, str, int], list[Lesson]]:
    """By what a calibration is for: operation, dtype, compute capability."""
    out: defaultdict[tuple[str, str, int], list[Lesson]] = defaultdict(list)
    for lesson in lessons:
        unit = lesson.samples[0].work.unit
        out[lesson.recording.job.tunable.op, unit, lesson.target.cc].append(lesson)
    return dict(out)


def fit(lessons: Sequence[Lesson], memo: Spans | None = None) -> Calibration:
    """The calibration of lessons of one operation, dtype and compute capability.

    Of all parameters of the bound the ones with the least weighted squared error.  Errors of the
    calibration are infinite until somebody has looked at what was left out: see `judging`.
    """
    memo = memo or Spans()
    grid = [Physics(*at) for at in itertools.product(OVERHEADS, L2, EXPOSED)]
    rows = [row for lesson in lessons for row in memo.traits(lesson)]
    owners = np.repeat(np.arange(len(lessons)), [len(lesson.samples) for lesson in lessons])
    w = np.concatenate([np.full(len(x.samples), _weight(x) / len(x.samples)) for x in lessons])
    w *= len(w) / w.sum()
    every = sorted({name for row in rows for name in row if name not in LEVEL})
    # What never varies would share the intercept's part, and be shrunk where that is not.
    names = [name for name in every if len({row.get(name, 0.0) for row in rows}) > 1]
    x = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    y = np.stack([np.concatenate([_excess(o, at, memo) for o in lessons]) for at in grid], axis=1)
    mean = np.average(y, axis=0, weights=w)
    penalty = [SHRINK] * len(names) + [OFFSET_SHRINK] * len(lessons)
    solved = _ridge(np.hstack([x, np.eye(len(lessons))[owners]]), y - mean, w, penalty)
    own, offset = solved[: len(names)], solved[len(names) :]
    errors = np.average((mean + x @ own + offset[owners] - y) ** 2, axis=0, weights=w)
    best = int(errors.argmin())
    firsts = [memo.traits(lesson)[0] for lesson in lessons]
    intercept, level = _level(firsts, mean[best] + offset[:, best])
    weights = {**dict(zip(names, map(float, own[:, best]), strict=True)), **level}
    found = _calibration(lessons, grid[best], intercept, weights)
    totals = [found.total(row) for row in rows]
    return replace(found, low=_six(min(totals)), high=_six(max(totals)))


def _weight(lesson: Lesson) -> float:
    """Of a recording: less where a small part of the space was measured."""
    return 1.0 if lesson.recording.whole else len(lesson.samples) / FULL


def _excess(lesson: Lesson, physics: Physics, memo: Spans) -> Floats:
    """Logarithms of measured over bound, of the main launch alone."""
    us = np.array([s.us for s in lesson.samples])
    before = np.array([before_us(s.work, lesson.target) for s in lesson.samples])
    # A tenth at least: a copy may take less than the data sheet's bandwidth says.
    return np.asarray(np.log(np.maximum(us - before, 0.1 * us) / memo.bounds(lesson, physics)))


class Spans:
    """What fits of the same lessons share, computed once: makespans, bounds, traits."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int, float], float] = {}
        self._digests: dict[int, tuple[Any, bytes]] = {}
        self._bounds: dict[tuple[int, Physics], tuple[Lesson, Floats]] = {}
        self._traits: dict[int, tuple[Lesson, list[dict[str, float]]]] = {}

    def bounds(self, lesson: Lesson, physics: Physics) -> Floats:
        """The bound of each sample in microseconds."""
        at = id(lesson), physics
        if at not in self._bounds:
            found = [
                physical_us(s.work, lesson.target, s.loading, physics, self) for s in lesson.samples
            ]
            self._bounds[at] = lesson, np.array(found)
        return self._bounds[at][1]

    def traits(self, lesson: Lesson) -> list[dict[str, float]]:
        """The traits of each sample."""
        if id(lesson) not in self._traits:
            found = [traits(s.params, s.work, s.loading) for s in lesson.samples]
            self._traits[id(lesson)] = lesson, found
        return self._traits[id(lesson)][1]

    def __call__(self, steps: npt.NDArray[Any], slots: int, overhead: float) -> float:
        """As `kdsl.runtime.predict.makespan`."""
        at = (self._digest(steps), slots, overhead)
        if at not in self._known:
            self._known[at] = makespan(steps, slots, overhead)
        return self._known[at]

    def _digest(self, steps: npt.NDArray[Any]) -> bytes:
        held = self._digests.get(id(steps))
        if held is None or held[0] is not steps:
            held = steps, hashlib.sha256(steps.tobytes()).digest()
            self._digests[id(steps)] = held
        return held[1]


def _level(ones: Sequence[Mapping[str, float]], offsets: Floats) -> tuple[float, dict[str, float]]:
    """Intercept and weights of what a workload has as a whole; one row of traits for each."""
    names = [name for name in LEVEL if all(name in row for row in ones)]
    x: Floats = np.array([[row[name] for name in names] for row in ones], np.float64)
    x = np.reshape(x, (len(ones), len(names)))
    center = np.average(x, axis=0)
    middle = float(offsets.mean())
    shrink = [LEVEL_SHRINK] * len(names)
    solved = _ridge(x - center, offsets - middle, np.ones(len(ones)), shrink)
    found = dict(zip(names, map(float, solved), strict=True))
    return middle - float(solved @ center), found


def _ridge(x: Floats, y: Floats, weights: Floats, penalty: Sequence[float]) -> Floats:
    """Coefficients; a column of them for each column of ``y``."""
    scaled = x * weights[:, None]
    return np.asarray(np.linalg.solve(scaled.T @ x + np.diag(penalty), scaled.T @ y), np.float64)


def _six(value: float) -> float:
    """To six digits, as files have it."""
    return float(f"{value:.6g}")


def _calibration(
    lessons: Sequence[Lesson],
    physics: Physics,
    intercept: float,
    weights: Mapping[str, float],
) -> Calibration:
    ids = sorted(row for lesson in lessons for row in lesson.recording.row_ids)
    one = lessons[0]
    keys = [lesson.recording.key for lesson in lessons]
    return Calibration(
        op=one.recording.job.tunable.op,
        unit=one.samples[0].work.unit,
        cc=one.target.cc,
        overhead=physics.overhead,
        l2=physics.l2,
        exposed=physics.exposed,
        intercept=_six(intercept),
        weights={name: _six(value) for name, value in weights.items()},
        low=-math.inf,
        high=math.inf,
        typical_error=math.inf,
        large_error=math.inf,
        rows=sum(len(lesson.samples) for lesson in lessons),
        workloads=tuple(sorted(lesson.recording.name for lesson in lessons)),
        devices=tuple(sorted({k.device.name for k in keys})),
        templates=tuple(sorted({k.toolchain.template_hash for k in keys})),
        evidence=hashlib.sha256("\n".join(ids).encode()).hexdigest()[:32],
    )


def with_errors(
    found: Calibration, factors: Sequence[float], notes: Mapping[str, float]
) -> Calibration:
    """The calibration with its errors, from factors between predicted and measured."""
    off = sorted(max(f, 1 / f) for f in factors)
    return replace(
        found,
        typical_error=off[len(off) // 2],
        large_error=off[min(len(off) * 9 // 10, len(off) - 1)],
        notes=dict(notes),
    )
