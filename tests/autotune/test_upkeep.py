"""What keeps a database in order: merge, diff, doctor, prune, and the commands of those names."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl.autotune.cli import main
from kdsl.autotune.measuring.lock import hold
from kdsl.autotune.store import Store, export_jsonl, reading
from kdsl.autotune.store.checkup import examine
from kdsl.autotune.store.compare import Counts, compare
from kdsl.autotune.store.prune import prune
from kdsl.errors import StoreError
from kdsl.runtime.records import Candidate, Measurement, Place, Row, Run, Toolchain
from tests.autotune.made_up import FakeHardware
from tests.autotune.test_store import H100, rows
from tests.autotune.test_store_laws import DATABASES, ranking


def unsound(store: Store) -> dict[str, str]:
    """Faults by subject, but for those of the tests' own server."""
    own = "rows survive a power cut"
    return {s.subject: s.said for s in examine(store) if not s.sound and s.subject != own}


def best(store: Store) -> str:
    """Parameters of the only group's best."""
    (found,) = store.bests().values()
    return found.params


def test_compare(store: Store, new_place: Callable[[], Place]) -> None:
    """Rows are counted by table, groups whose bests differ are told with both bests, groups that
    only one side knows too; two databases with the same rows are the same."""
    other_device = replace(H100, name="h200")
    store.add(*rows(64, median_us=800.0), *rows(32, median_us=900.0))
    with Store(new_place()) as other:
        other.add(*rows(64, median_us=800.0), *rows(16, median_us=700.0))
        other.add(*rows(64, other_device))
        found = compare(store, other)
        assert found.counts["candidate"] == Counts(both=1, only_a=1, only_b=1)
        assert found.counts["measurement"] == Counts(both=1, only_a=1, only_b=2)
        assert found.counts["device"] == Counts(both=1, only_a=0, only_b=1)
        assert not found.same
        assert found.agreed == 0
        first, second = found.disagreements
        assert (first.device, first.kind) == (H100, "measured")
        assert first.a is not None
        assert first.b is not None
        assert (first.a.median_us, first.b.median_us) == (800.0, 700.0)
        assert (second.device, second.a) == (other_device, None)
    with Store(store.place, write=False) as same:
        again = compare(store, same)
    assert again.same
    assert (again.agreed, again.disagreements) == (1, ())


def test_a_text_can_be_read_as_a_database(store: Store, tmp_path: Path) -> None:
    """A file's rows are compared like a database's; a file with a broken line is refused whole,
    since a comparison with a part of it would be wrong."""
    store.add(*rows(64))
    path = tmp_path / "x.jsonl"
    export_jsonl(store, path)
    with reading(path) as other:
        assert compare(store, other).same
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(StoreError, match="1 lines that cannot be used"), reading(path):
        pass


def test_doctor_finds_a_sound_database_sound(store: Store) -> None:
    """Nothing is wrong with what the tuner writes."""
    store.add(*rows(64), *rows(32, status="wrong", reason="off", median_us=None))
    store.begin("python -m autotune --gpu h100", host="box", card="GPU-1")
    assert unsound(store) == {}
    said = {s.subject: s.said for s in examine(store)}
    assert said["rows"].endswith("2 candidate, 2 measurement")
    assert said["runs"].startswith("2 cut off")


@pytest.mark.parametrize(
    ("statement", "subject", "said"),
    [
        ("UPDATE measurement SET median_us = 1.0", "rows", "1 are not what their ids say: meas"),
        ("UPDATE candidate SET params = '{}'", "rows", "1 are not what their ids say: candidate"),
        ("UPDATE measurement SET status = 'fine'", "rows", "1 are not what their ids say"),
        ("UPDATE device SET cc = 80", "rows", "1 are not what their ids say: device"),
        ("UPDATE run SET counts = '{'", "rows", "1 are not what their ids say: run"),
    ],
)
def test_doctor_finds_changed_rows(store: Store, statement: str, subject: str, said: str) -> None:
    """A row that somebody changed in place is found, whatever the column, and named."""
    store.add(*rows(64))
    assert store.link.run(statement) == 1
    assert said in unsound(store)[subject]


def test_doctor_finds_missing_rows(tmp_path: Path) -> None:
    """A referent that was deleted by a client without foreign keys is missed."""
    with Store(tmp_path / "t.db") as store:
        store.add(*rows(64))
        store.link.run("PRAGMA foreign_keys = OFF")
        store.link.run("DELETE FROM candidate")
        found = unsound(store)
        assert "to a candidate" in found["referents"]
        assert found["references"] == "1 lead nowhere"


def test_doctor_finds_secrets(store: Store, tmp_path: Path) -> None:
    """Rows from elsewhere that name a host, an address or a password are told of, and neither they
    nor what refers to them gets into an export."""
    store.add(*rows(64))
    leaking: list[Row] = [
        Run(started="2", command="autotune --storage postgresql://anna:hunter2@db/x"),
        Run(started="3", host="anna-laptop"),
        Toolchain(kdsl="0", numerics_env="PGPASSWORD=hunter2"),
        Candidate(space_hash="s", params={}, extra={"note": "see 10.1.2.3"}),
    ]
    store.insert([("", row) for row in leaking])
    given = rows(32)
    outcome = given[-1]
    assert isinstance(outcome, Measurement)
    given[-1] = replace(outcome, run_id=leaking[0].id)
    store.insert([("", row) for row in given])
    assert unsound(store)["secrets"].startswith("4 rows name a host")
    done = export_jsonl(store, tmp_path / "x.jsonl")
    assert done.kept_back == 5
    text = (tmp_path / "x.jsonl").read_text()
    for secret in ("anna", "hunter2", "10.1.2.3"):
        assert secret not in text
    with reading(tmp_path / "x.jsonl") as other:
        assert len(list(other.rows())) == done.rows == 7
    for row in leaking:
        with pytest.raises(StoreError, match="names a host"):
            store.add(row)


def test_prune_removes_old_losers_alone(store: Store) -> None:
    """What is old and behind goes with what it alone referred to; young rows, the first places,
    ties, defaults and wrong results stay. A trial changes nothing."""
    young = {"created": "2999-01-01T00:00:00+00:00"}
    store.add(
        *rows(1, median_us=100.0, ci_lo_us=99.0, ci_hi_us=101.0),
        *rows(2, median_us=100.5, ci_lo_us=99.5, ci_hi_us=101.5),  # tied
        *rows(3, median_us=150.0, is_default=True),
        *rows(4, status="wrong", reason="off", median_us=None, binary_hash="beef"),
        *rows(5, median_us=160.0, **young),
        *rows(6, median_us=170.0),
        *rows(7, status="crash", reason="bang", median_us=None),
        *rows(8, median_us=90.0, binary_hash="beef"),  # condemned elsewhere
    )
    before, first = set(store.rows()), best(store)
    tried = prune(store, older_days=1, keep=1, apply=False)
    assert set(store.rows()) == before
    done = prune(store, older_days=1, keep=1, apply=True)
    assert done == tried
    assert done.rows == {"candidate": 3, "measurement": 3}
    assert done.statuses == {"ok": 2, "crash": 1}
    assert done.kept == 5
    left = {r.params["block_q"] for r in store.rows() if isinstance(r, Candidate)}
    assert left == {1, 2, 3, 4, 5}
    assert best(store) == first
    assert unsound(store) == {}
    assert prune(store, older_days=1, keep=1, apply=True).rows == {}


def test_prune_takes_runs_with_their_last_outcome(store: Store) -> None:
    """A run goes, with its end and its whole, when nothing that is left belongs to it; a run that
    has no outcome yet stays."""
    store.add(*rows(1, median_us=1.0, created="2999"))
    whole = store.begin("python -m autotune")
    part = store.begin("a share of a run", part_of=whole.id)
    store.finish(part, complete=True, counts={})
    store.finish(whole, complete=True, counts={})
    fresh = store.begin("python -m autotune")
    given = rows(2, median_us=2.0)
    outcome = given[-1]
    assert isinstance(outcome, Measurement)
    store.add(*given[:-1], replace(outcome, run_id=part.id))
    done = prune(store, older_days=0, keep=1, apply=True)
    assert done.rows == {"run": 4, "candidate": 1, "measurement": 1}
    assert fresh in set(store.rows())


@settings(deadline=None, max_examples=40)
@given(DATABASES, st.integers(1, 3))
def test_prune_changes_no_best(found: set[Row], keep: int) -> None:
    """Whatever is in a database, what leads every group before leads it afterwards, condemned
    binaries stay condemned, and the first places keep their order."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "t.db") as store:
        store.add(*found)
        before, condemned, old = store.bests(), store.source.condemned(), ranking(store)
        prune(store, older_days=0, keep=keep, apply=True)
        assert store.bests() == before
        assert store.source.condemned() == condemned
        left = set(store.rows())
        assert left <= found
        places = [row[:5] for row in ranking(store) if row[-1] <= keep]
        assert places == [row[:5] for row in old if row[-1] <= keep]
        assert unsound(store) == {}


@pytest.mark.parametrize(("older", "keep"), [(-1.0, 5), (1.0, 0)])
def test_prune_refuses_nonsense(store: Store, older: float, keep: int) -> None:
    """Something always stays."""
    with pytest.raises(StoreError, match="1 place or more"):
        prune(store, older_days=older, keep=keep, apply=True)


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """merge, diff, doctor and prune say what they found and did, and end with 1 where something is
    wrong."""
    monkeypatch.setenv("KDSL_DB", str(tmp_path / "t.db"))
    monkeypatch.setenv("KDSL_CACHE_DIR", str(tmp_path / "cache"))

    def call(*words: object, hardware: FakeHardware | None = None) -> tuple[int, str, str]:
        made = hardware or FakeHardware()
        code = main([str(word) for word in words], hardware=lambda: made)
        return code, *capsys.readouterr()

    assert call("doctor")[:2] == (0, call("doctor")[1])
    assert "none yet at" in call("doctor")[1]
    assert not (tmp_path / "t.db").exists()
    with Store(tmp_path / "a.db") as a, Store(tmp_path / "b.db") as b:
        a.add(*rows(64, median_us=800.0))
        b.add(*rows(32, median_us=700.0), *rows(16, median_us=900.0))
        export_jsonl(b, tmp_path / "b.jsonl")
    (tmp_path / "bad.jsonl").write_text((tmp_path / "b.jsonl").read_text() + "{\n[]\n")
    code, out, err = call("merge", tmp_path / "a.db", tmp_path / "bad.jsonl")
    assert code == 1
    assert out.splitlines() == [
        "a.db: 6 new rows, 0 known, 0 skipped",
        "bad.jsonl: 4 new rows, 4 known, 2 skipped",
    ]
    assert err.splitlines()[0].startswith("bad.jsonl:10: is not JSON")
    assert call("merge", tmp_path / "b.jsonl")[0] == 0
    code, out, _ = call("diff", tmp_path / "a.db", tmp_path / "b.jsonl")
    assert code == 0
    assert "attention" in out
    assert "800.0 us" in out
    assert out.splitlines()[-1] == "0 bests agree, 1 differ"
    _, out, _ = call("prune", "--older", "0", "--keep", "1")
    assert out.splitlines()[0] == "would remove: 2 candidate, 2 measurement"
    assert out.splitlines()[-1] == "nothing was changed; --yes does it"
    _, out, _ = call("prune", "--older", "0", "--keep", "1", "--yes")
    assert out.splitlines()[0] == "removed: 2 candidate, 2 measurement"
    with hold("fake-card", tmp_path / "cache"):
        code, out, _ = call("doctor", hardware=FakeHardware("h100"))
    assert code == 0
    assert "h100: compute capability 9.0" in out
    assert "another process measures on this GPU" in out
    assert out.splitlines()[-1] == "sound"
    with Store(tmp_path / "t.db") as store:
        store.link.run("UPDATE device SET cc = 80")
    code, out, _ = call("doctor")
    assert code == 1
    assert "FAULT" in out
    shutil.copy(tmp_path / "bad.jsonl", tmp_path / "t.db")
    for left in tmp_path.glob("t.db-*"):
        left.unlink()
    code, out, _ = call("doctor")
    assert code == 1
    assert "corrupt" in out
