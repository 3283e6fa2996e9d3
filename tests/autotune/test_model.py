"""Fitting the cost model, and judging it on what it has not seen."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from kdsl.autotune.model import groups, held_out, samples_of, transferred
from kdsl.autotune.model.fitting import Lesson, Spans, fit
from kdsl.autotune.model.judging import judged, spearman, summary
from kdsl.autotune.recordings import Recording, read, recordings
from kdsl.runtime import calibration
from kdsl.runtime.calibration import CostModel
from kdsl.runtime.predict import Figures, makespan
from tests.autotune import synthetic


@pytest.fixture(scope="module")
def lessons(found: list[Recording]) -> list[Lesson]:
    """What the synthetic recordings say."""
    return [samples_of(r) for r in found]


def test_held_out_workloads_are_ranked(lessons: list[Lesson]) -> None:
    """On a landscape that the bound does not know, workloads left out of the fit are ranked and
    their best found within the goals, and far better than by the bound alone."""
    found, cases = held_out(lessons)
    said = summary(cases)
    assert said["spearman_median"] >= 0.8
    assert said["spearman_worst"] >= 0.6
    assert said["regret_median"] <= 1.1
    assert said["regret_worst"] <= 1.2
    assert all(c.spearman > c.plain_spearman for c in cases)
    assert 1.0 < found.typical_error < found.large_error < math.inf


def test_a_workload_is_left_out_with_all_its_densities(lessons: list[Lesson]) -> None:
    """No case was fitted to its own workload, at whatever density."""
    _, cases = held_out(lessons)
    assert len(cases) == len(lessons)
    for case in cases:
        plain = case.recording.name.partition("@")[0]
        assert all(name.partition("@")[0] != plain for name in case.fitted_on)
        assert case.fitted_on


def test_nothing_can_be_learnt_from_nonsense(lessons: list[Lesson]) -> None:
    """With times shuffled within each workload no rank correlation is left: the judge has teeth."""
    chance = random.Random(0)
    shuffled = []
    for lesson in lessons:
        times = [s.us for s in lesson.samples]
        chance.shuffle(times)
        samples = tuple(replace(s, us=us) for s, us in zip(lesson.samples, times, strict=True))
        shuffled.append(Lesson(lesson.recording, samples))
    _, cases = held_out(shuffled)
    assert abs(summary(cases)["spearman_median"]) < 0.4


def test_one_recording_proves_nothing(lessons: list[Lesson]) -> None:
    """With nothing to leave out there are no cases, and the error is unknown."""
    found, cases = held_out(lessons[:1])
    assert cases == []
    assert math.isinf(found.typical_error)


def test_the_fit_is_repeatable(lessons: list[Lesson]) -> None:
    """The same recordings in another order give the same predictions to six digits, and the same
    evidence."""
    one, two = fit(lessons), fit(lessons[::-1])
    assert one.evidence == two.evidence
    assert one.workloads == two.workloads
    for lesson in lessons:
        for s in lesson.samples[:10]:
            a, b = (c.factor(s.params, s.work, s.loading) for c in (one, two))
            assert a == pytest.approx(b, rel=1e-4)


def test_what_is_written_predicts_the_same(found: list[Recording], lessons: list[Lesson]) -> None:
    """Through its file, a calibration predicts in the runtime what it predicted in the fit."""
    made, _ = held_out(lessons)
    (again,) = calibration.parse(calibration.text((made,)), "here")
    recording = found[0]
    model = CostModel(recording.job.tunable, recording.target, again)
    case = judged(lessons[0], made, lessons, Spans())
    for (at, _), us in list(zip(recording.times.items(), case.predicted, strict=True))[:20]:
        built = recording.outcomes[at].built
        assert built is not None
        figures = Figures(built.registers, built.spill_bytes, built.shared_bytes)
        assert model(dict(at), figures).us == pytest.approx(us, rel=1e-4)


def test_one_gpu_from_another(lessons: list[Lesson]) -> None:
    """Rows of an H100 rank the candidates on a made-up H200, whose rows were not looked at."""
    other = recordings(synthetic.held([("flux-dev-1024", None)], gpu="h200", slower=0.9))[0]
    assert [r.target.name for r in other] == ["h200"]
    (case,) = transferred(lessons[2:], [samples_of(r) for r in other])
    assert case.spearman >= 0.6
    assert list(groups([*lessons, samples_of(other[0])])) == [("attention", "bfloat16", 90)]


def test_rank_correlation() -> None:
    """Perfect, reversed and tied orders, and a case by hand: ranks 1 2 3 4 against 1 3 2 4."""
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(a, a**3) == pytest.approx(1.0)
    assert spearman(a, -a) == pytest.approx(-1.0)
    assert spearman(a, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    assert spearman(a, np.ones(4)) == 0.0
    tied = np.array([1.0, 1.0, 2.0, 2.0])
    assert spearman(tied, a) == pytest.approx(2 / math.sqrt(5))


def test_remembered_makespans() -> None:
    """Equal steps are looked up, and what is remembered is what is computed."""
    memo, steps = Spans(), np.arange(500, 0, -1)
    for array in (steps, steps.copy(), steps[:400]):
        for slots in (3, 7):
            assert memo(array, slots, 2.0) == makespan(array, slots, 2.0)


def test_the_shipped_calibration_comes_from_the_shipped_rows() -> None:
    """Each shipped entry names exactly the shipped rows of its operation, dtype and capability."""
    entries = calibration.shipped()
    lessons = [samples_of(r) for r in recordings(read(own=False))[0]] if entries else []
    held = groups(lessons)
    for entry in entries:
        rows = sorted(i for x in held[entry.op, entry.unit, entry.cc] for i in x.recording.row_ids)
        assert entry.evidence == hashlib.sha256("\n".join(rows).encode()).hexdigest()[:32]
        assert entry.notes["spearman_median"] <= 1.0
