"""Recordings: from rows back to workloads, and the tuner on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdsl.autotune.recordings import Held, Recording, read, recordings
from kdsl.autotune.recordings.ablation import ablate
from kdsl.autotune.recordings.recording import kind_of
from kdsl.autotune.recordings.replay import RecordedPool, Replayed, replay, share, start
from kdsl.autotune.recordings.subject import Names, Subjects
from kdsl.autotune.search import Space
from kdsl.autotune.search.space import Params, point
from kdsl.autotune.session.kin import kin
from kdsl.autotune.store import Store
from kdsl.errors import StoreError
from kdsl.runtime.records import Measurement, MemorySource, Run, Workload, jsonl
from kdsl.runtime.records.select import ranked
from tests.autotune import synthetic
from tests.autotune.conftest import SMALL

NAMES = ["clip", "flux-dev-1024", "wan2.1-1.3b-480p", "wan2.1-1.3b-480p@0.1"]


def named(found: list[Recording], name: str) -> Recording:
    """One of them."""
    return next(r for r in found if r.name == name)


def points_of(recording: Recording) -> tuple[Params, ...]:
    """Every legal configuration."""
    tunable, target = recording.job.tunable, recording.target
    return Space(tunable.space(target), lambda p: tunable.legal(p, target)).points or ()


def test_rows_become_recordings(found: list[Recording]) -> None:
    """Every workload comes back under its name with all its legal candidates, failures included,
    and its times are the rows' medians."""
    assert [r.name for r in found] == NAMES
    for r in found:
        assert {point(p) for p in points_of(r)} == set(r.outcomes)
        assert r.whole
        assert r.coverage == 1.0
        failed = {at for at, o in r.outcomes.items() if o.status != "ok"}
        assert failed == {at for at in r.outcomes if synthetic.failure(r.job, dict(at))}
        assert point(r.default) not in failed
        assert set(r.times) == set(r.outcomes) - failed


def test_values_of_tables_are_made_again(held: Held) -> None:
    """A block plan of another density than the catalogue's is found through the run's command;
    without the run there is nothing to go by, and the workload is left out with a reason."""
    rows = [w for w in held.workloads if w.mask_stats["density"] < 0.15]
    assert len(rows) == 1
    job = Subjects(held.runs).job(rows[0])
    assert job is not None
    assert job.name == "wan2.1-1.3b-480p@0.1"
    assert Subjects(()).job(rows[0]) is None
    found, left = recordings(Held(held.source, held.workloads, ()))
    assert [r.name for r in found] == NAMES[:3]
    assert len(left) == 1
    assert "tables" in left[0]


def test_broken_specs_are_no_jobs(held: Held) -> None:
    """A spec that cannot be read, of whatever kind, is left out and nothing is evaluated."""
    subjects = Subjects(held.runs)
    for text in ("", "{", "[]", "null", '{"op": "attention"}', "\"__import__('os')\"", "1"):
        assert subjects.job(replace(held.workloads[0], spec_json=text)) is None
    assert subjects.job(replace(held.workloads[0], op="attention_backward")) is None


def test_files_are_read(tmp_path: Path, held: Held) -> None:
    """The same rows from JSONL and from a database; a broken line is reported with its number, an
    absent file is an error."""
    rows = synthetic.rows([("clip", None)])
    text, base = tmp_path / "rows.jsonl", tmp_path / "rows.db"
    text.write_text("".join(jsonl.write(rows)) + "{broken\n")
    with Store(base) as store:
        store.insert([("", row) for row in rows])
    from_text, from_base = read([text]), read([base])
    assert [w.id for w in from_text.workloads] == [w.id for w in from_base.workloads]
    assert len(from_text.problems) == 1
    assert f"rows.jsonl:{len(text.read_text().splitlines())}" in from_text.problems[0]
    assert recordings(from_text)[0][0].row_ids == recordings(from_base)[0][0].row_ids
    both = read([text, base])
    assert recordings(both)[0][0].row_ids == recordings(from_base)[0][0].row_ids
    for absent in ("none.jsonl", "none.db"):
        with pytest.raises(StoreError):
            read([tmp_path / absent])


def test_another_gpu_is_asked_for(held: Held) -> None:
    """Rows of one GPU alone, by name."""
    assert recordings(held, "h200") == ([], [])
    assert len(recordings(held, "h100")[0]) == 4


def test_names_of_rows(held: Held) -> None:
    """A plan of another density is named with it, the catalogue's own is not."""
    said = {Names().of(w) for w in held.workloads}
    assert said == set(NAMES)


def test_replay_finds_good_ones(found: list[Recording]) -> None:
    """On made-up landscapes with noise and failures, from the data sheet alone, the choice is
    within 5 % of the best for at least 90 % of (recording, seed) pairs in 40 measurements."""
    replays = [replay(r, seeds=range(24), budget=40, within=0.05) for r in found]
    assert share(replays) >= 0.9
    for r in replays:
        assert all(a.measured <= 40 for a in r.attempts)
        assert all(a.regret >= 1.0 for a in r.attempts)


def test_replay_finds_rare_ones() -> None:
    """The same where one to three candidates of some sixty are that good, on a made-up A100: where
    trying 40 of them by chance would often miss."""
    rare = recordings(synthetic.held(SMALL, gpu="a100"))[0]
    for r in rare:
        near = [us for us in r.times.values() if us <= 1.05 * r.best_us]
        assert len(near) <= 3
    assert sum(len(r.times) > 50 for r in rare) == 3
    assert share([replay(r, seeds=range(24), budget=40, within=0.05) for r in rare]) >= 0.9


def test_replay_is_repeatable(found: list[Recording]) -> None:
    """A seed gives the same attempt again."""
    recording = named(found, "flux-dev-1024")
    one, two = (replay(recording, seeds=[5], budget=20, within=0.05).attempts for _ in range(2))
    assert one == two


def test_replay_can_fail(found: list[Recording]) -> None:
    """With three measurements and a default far off, the bound is missed: the judge has teeth."""
    recording = named(found, "clip")
    made = replay(recording, seeds=range(2), budget=3, within=0.001)
    assert made.reached == 0
    assert all(a.found_at is None for a in made.attempts)


def test_replay_measures_what_was_recorded(found: list[Recording]) -> None:
    """Every time that a replayed GPU gives is one of the recorded samples, and a failure keeps its
    status and reason."""
    for recording in found:
        gpu, pool = Replayed(recording, 0), RecordedPool(recording)
        for at, outcome in list(recording.outcomes.items())[:20]:
            built = pool.result(("name", at))
            assert built is not None
            given = gpu.evaluate(dict(at), built, None)
            assert given.status == outcome.status
            assert set(given.samples) <= set(recording.samples[at])
            assert outcome.status == "ok" or given.reason == outcome.reason


def test_a_new_workload_starts_from_others(
    found: list[Recording], held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held out, neither winners nor calibration come from the workload at any of its densities, and
    with them a good candidate is met among the first dozen."""
    recording = named(found, "wan2.1-1.3b-480p")
    asked: list[str] = []
    trials = held.source.trials
    monkeypatch.setattr(held.source, "trials", lambda w: (asked.append(w), trials(w))[1])
    warm, model = start(recording, found, held)
    own = {r.key.workload.id for r in found if kind_of(r) == kind_of(recording)}
    assert len(own) == 2
    assert asked
    assert not own & set(asked)
    assert model is not None
    assert model.workloads == ("clip", "flux-dev-1024")
    made = replay(recording, seeds=[0], budget=20, within=0.1, warm=warm, calibration=model)
    assert (made.attempts[0].found_at or 99) <= 12


def test_warm_starts_are_winners_of_kin(found: list[Recording], held: Held) -> None:
    """The same size under another mask gives its winners first; what is illegal here is left out;
    an empty source gives nothing."""
    wan, thin = named(found, NAMES[2]), named(found, NAMES[3])
    given = kin(thin.key, [held.source], thin.legal)
    first = ranked(list(held.source.trials(thin.key.workload.id)))[0]
    assert given[0] == first.trial.candidate.params
    assert thin.times[point(given[0])] <= (1 + synthetic.NOISE) * thin.best_us
    others = MemorySource(row for row in synthetic.rows([("wan2.1-1.3b-480p", None)]))
    first = kin(thin.key, [others], thin.legal)[0]
    assert wan.times[point(first)] <= 1.02 * wan.best_us
    assert kin(thin.key, [held.source], lambda p: "no") == []
    assert kin(thin.key, [MemorySource()], thin.legal) == []


def test_predictions_never_warm_a_search(found: list[Recording]) -> None:
    """Predicted rows of a workload say nothing about winners."""
    rows = [
        replace(row, kind="predicted", samples=(), n=0)
        if isinstance(row, Measurement) and row.status == "ok"
        else row
        for row in synthetic.rows([("clip", None)])
        if not isinstance(row, Measurement) or row.status == "ok"
    ]
    clip = named(found, "clip")
    assert kin(clip.key, [MemorySource(rows)], clip.legal) == []


def test_ablation_compares_masks_of_one_size(found: list[Recording]) -> None:
    """Only workloads with a sibling of their size take part; each loss is the recorded time of the
    sibling's best over the own best."""
    lines = ablate(found)
    assert sorted(a.recording.name for a in lines) == NAMES[2:]
    wan, thin = named(found, NAMES[2]), named(found, NAMES[3])
    best = min(thin.times, key=lambda at: (thin.times[at], at))
    line = next(a for a in lines if a.recording is wan)
    assert line.nearest == line.worst == wan.times[best] / wan.best_us
    assert line.mean == pytest.approx(line.worst, rel=1e-12)
    assert line.distance > 0.5


def test_old_runs_do_not_matter(held: Held) -> None:
    """Commands that are no command lines of the tuner, or name silly densities, do no harm."""
    odd = [Run(started="", command=c) for c in ("", "make test", "x --density", "x --density 9")]
    row = next(w for w in held.workloads if isinstance(w, Workload))
    assert Subjects([*odd, *held.runs]).job(row) is not None
