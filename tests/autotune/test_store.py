"""The written database: adding, runs, exchange, and what it keeps to itself."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdsl.autotune.store import (
    ImportReport,
    Store,
    export_jsonl,
    import_jsonl,
    merge,
    scrub,
)
from kdsl.errors import StoreError
from kdsl.runtime.records import (
    Candidate,
    Device,
    Key,
    Measurement,
    Place,
    Row,
    Run,
    Toolchain,
    Workload,
    default_sources,
    lookup,
    tables,
)
from kdsl.runtime.records.rows import TABLES

WORKLOAD = Workload(
    op="attention",
    program="p1",
    dtypes={"q": "bfloat16"},
    dims={"tokens": 32_760, "head_dim": 128},
    mask_stats={"density": 0.1},
    align={"q": 16},
    numerics={"tf32": False},
    extra={"later": [1.5, {"x": None}]},
)
H100 = Device(name="h100", cc=90, sms=132, power_cap_w=700)
TOOLS = Toolchain(kdsl="0.1", triton="3.9.0")
RUN = Run(started="2026-01-01T00:00:00+00:00", counts={"illegal": 3})


def rows(block_q: int = 64, device: Device = H100, **fields: Any) -> list[Row]:
    """A measurement and all that it refers to; the measurement last."""
    candidate = Candidate(space_hash="s", params={"block_q": block_q, "x": 0.1, "y": True})
    row = Measurement(
        workload_id=WORKLOAD.id,
        device_id=device.id,
        toolchain_id=TOOLS.id,
        candidate_id=candidate.id,
        run_id=RUN.id,
        **{
            "kind": "measured",
            "status": "ok",
            "created": "2026-01-01T00:00:00+00:00",
            "median_us": 812.4,
            "samples": [812.4, 1.0 / 3],
            **fields,
        },
    )
    return [WORKLOAD, device, TOOLS, RUN, candidate, row]


def test_rows_come_back_as_they_went(store: Store) -> None:
    """Every kind of field survives the database: floats to the bit, maps, flags, unknown ones."""
    given = rows(registers=0, is_default=True, ci_lo_us=0.1, ci_hi_us=1e300)
    ids = store.add(*given)
    assert ids == tuple(row.id for row in given)
    assert set(store.rows()) == set(given)
    assert {row.id for row in store.rows()} == set(ids)


def test_twice_is_once(store: Store) -> None:
    """Adding what is there changes nothing."""
    store.add(*rows())
    store.add(*rows())
    assert len(list(store.rows())) == 6


def test_order_within_a_call_does_not_matter(store: Store) -> None:
    """Referents are stored before those who refer to them."""
    store.add(*reversed(rows()))
    assert len(list(store.rows())) == 6


def test_dangling_rows_are_refused(store: Store) -> None:
    """A measurement of nothing is an error that leaves everything out."""
    given = rows()
    del given[4]
    with pytest.raises(StoreError, match=r"measurement .{8} refers to candidate .{8}, which is"):
        store.add(*given)
    assert list(store.rows()) == []


def test_every_row_class_has_its_table(store: Store) -> None:
    """The schema and the row classes name the same columns."""
    store.add(*rows())
    for table in TABLES:
        (found,) = store.link.fetch(f"SELECT * FROM {table} LIMIT 1")
        assert found.keys() == {"id", *tables.kinds(table)}


def test_a_run_is_closed_by_another_row(store: Store) -> None:
    """Nothing is updated: the end of a run is a row of its own, an open run has none."""
    run = store.begin("autotune --gpu h100", host="box", card="GPU-1", budget="40", seed=7)
    store.finish(run, complete=True, counts={"illegal": 12})
    first, second = sorted(
        (r for r in store.rows() if isinstance(r, Run)), key=lambda r: bool(r.closes)
    )
    assert first == run
    assert (second.closes, second.complete, second.counts) == (run.id, True, {"illegal": 12})
    assert store.begin("autotune --gpu h100").id != store.begin("autotune --gpu h100").id


def test_the_file_is_plain_sqlite(tmp_path: Path) -> None:
    """Any client can ask for the best: write-ahead mode, no function of ours in the views."""
    path = tmp_path / "new" / "folder" / "t.db"
    for median, block in ((900.0, 32), (800.0, 64), (1.0, 16)):
        with Store(path) as store:
            kind = "predicted" if block == 16 else "measured"
            store.add(*rows(block, median_us=median, kind=kind))
    link = sqlite3.connect(path)
    try:
        assert link.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        best = link.execute("SELECT params, median_us FROM best_measured").fetchall()
        assert [(json.loads(p)["block_q"], m) for p, m in best] == [(64, 800.0)]
        guess = link.execute("SELECT params, median_us FROM best_predicted").fetchall()
        assert [(json.loads(p)["block_q"], m) for p, m in guess] == [(16, 1.0)]
    finally:
        link.close()


def test_look_up_reads_the_users_database(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tuner stored is what a look-up finds, through KDSL_DB and through the store."""
    monkeypatch.setenv("KDSL_DB", str(place))
    key = Key(WORKLOAD, H100, TOOLS)
    with Store() as store:
        store.add(*rows())
        inside = lookup(key, legal=lambda config: None, sources=[store.source])
    outside = lookup(key, legal=lambda config: None)
    assert inside == outside
    assert (outside.rung, outside.config) == ("exact", {"block_q": 64, "x": 0.1, "y": True})


def test_reading_changes_nothing(tmp_path: Path) -> None:
    """A look-up leaves the database's bytes alone; an empty file is an empty database."""
    path = tmp_path / "t.db"
    with Store(path) as store:
        store.add(*rows())
    before = path.read_bytes()
    with default_sources(path) as opened:
        assert opened[0].workloads("attention") == [WORKLOAD]
    assert path.read_bytes() == before
    (tmp_path / "empty.db").touch()
    with default_sources(tmp_path / "empty.db") as opened:
        assert len(opened) == 1


def test_reading_where_nobody_may_write(tmp_path: Path) -> None:
    """A database in a read-only folder, as a site may install it, can be read."""
    if os.geteuid() != 0:
        pytest.skip("changes the effective user, which takes root")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "site" / "t.db"
        with Store(path) as store:
            store.add(*rows())
        Path(folder).chmod(0o755)
        os.seteuid(65534)
        try:
            with default_sources(path) as opened:
                assert opened[0].workloads("attention") == [WORKLOAD]
        finally:
            os.seteuid(0)


def test_export_and_import_round_trip(
    store: Store, new_place: Callable[[], Place], tmp_path: Path
) -> None:
    """A file gives back the same rows under the same ids, and the same bytes once more."""
    store.add(*rows(), *rows(32, status="crash", reason="illegal access", median_us=None))
    assert export_jsonl(store, tmp_path / "a.jsonl") == (8, 0)
    with Store(new_place()) as other:
        report = import_jsonl(other, tmp_path / "a.jsonl")
        assert report == ImportReport(added=8, known=0)
        assert import_jsonl(other, tmp_path / "a.jsonl") == ImportReport(added=0, known=8)
        assert set(other.rows()) == set(store.rows())
        export_jsonl(other, tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (tmp_path / "a.jsonl").stat().st_mode & 0o777 == 0o644


def test_export_of_one_gpu(store: Store, tmp_path: Path) -> None:
    """One GPU's file holds its measurements and what they refer to, closed runs included."""
    a100 = Device(name="a100", cc=80, sms=108)
    store.add(*rows(), *rows(32, a100))
    store.finish(RUN, complete=True, counts={})
    export_jsonl(store, tmp_path / "a100.jsonl", device="a100")
    found = [json.loads(line) for line in (tmp_path / "a100.jsonl").read_text().splitlines()]
    assert [row["table"] for row in found] == [
        "meta", "device", "toolchain", "run", "run", "workload", "candidate", "measurement",
    ]  # fmt: skip
    assert found[1]["name"] == "a100"


def test_import_reports_lines(store: Store, tmp_path: Path) -> None:
    """Broken and dangling lines are named with file and number; the others are there."""
    lines = [row.line() for row in rows()]
    dangling = rows(32)[-1].line()
    text = "\n".join([lines[5], "{broken", dangling, *lines[:5]])
    (tmp_path / "x.jsonl").write_text(text)
    report = import_jsonl(store, tmp_path / "x.jsonl")
    assert (report.added, report.known) == (6, 0)
    assert report.problems[0].startswith("x.jsonl:2: is not JSON as it should be: ")
    assert report.problems[1].startswith("x.jsonl:3: measurement ")
    assert report.problems[1].endswith(", which is not there")
    assert set(store.rows()) == set(rows())


def test_merge_is_a_union(store: Store, new_place: Callable[[], Place]) -> None:
    """Another database's rows are added, the rest is known, and the other one stays as it is."""
    store.add(*rows(64), *rows(32))
    with Store(new_place()) as other:
        other.add(*rows(64), *rows(16))
        before = set(other.rows())
        assert merge(store, other.place) == ImportReport(added=2, known=6)
        assert set(store.rows()) == {*rows(64), *rows(32), *rows(16)}
        assert set(other.rows()) == before


def test_merge_takes_any_kind(new_place: Callable[[], Place], tmp_path: Path) -> None:
    """A file, a server's database and an exported text give the same set of rows."""
    with Store(tmp_path / "a.db") as one, Store(new_place()) as other:
        one.add(*rows(64))
        other.add(*rows(32))
        export_jsonl(one, tmp_path / "a.jsonl")
        assert merge(other, tmp_path / "a.jsonl").added == 2
        assert merge(one, other.place).added == 2
        assert set(one.rows()) == set(other.rows()) == {*rows(64), *rows(32)}


def test_merge_names_what_it_cannot_use(store: Store, tmp_path: Path) -> None:
    """A row that was changed by hand is not taken over, nor what refers to it; nothing to merge is
    an error."""
    with Store(tmp_path / "b.db") as other:
        other.add(*rows())
        other.link.run("UPDATE candidate SET params = ?", ('{"block_q":1}',))
    report = merge(store, tmp_path / "b.db")
    assert (report.added, report.skipped) == (4, 2)
    assert report.problems[0].endswith("is not what its id says")
    assert "refers to candidate" in report.problems[1]
    with pytest.raises(StoreError, match="is not there"):
        merge(store, tmp_path / "none.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreError, match="holds no tuning database"):
        merge(store, tmp_path / "empty.db")


def test_exports_keep_secrets(store: Store, tmp_path: Path) -> None:
    """No host name, home folder, serial number or password gets into a file."""
    host, home = socket.gethostname(), str(Path.home())
    serial = "GPU-5a1b2c3d-0000-1111-2222-333344445555"
    run = store.begin(
        "python -m autotune --storage postgresql://anna:hunter2@db.example.org/x "
        f"password=hunter2 host=db.example.org --out {home}/x /home/anna/y",
        host=host,
        card=serial,
    )
    given = rows(status="crash", reason=f"{serial} on {host} fell off", median_us=None)
    store.add(*given)
    export_jsonl(store, tmp_path / "x.jsonl")
    text = (tmp_path / "x.jsonl").read_text()
    for secret in ("anna", "hunter2", "example.org", "5a1b2c3d", home + "/", "/home"):
        assert secret not in text
    assert f'"{host}"' not in text
    assert f" {host} " not in text
    assert "GPU-*** on <host> fell off" in text
    assert run.card == store.pseudonym(serial) != run.host
    with Store(tmp_path / "other.db") as other:
        assert other.pseudonym(serial) != run.card
    with pytest.raises(StoreError, match="this command names a host"):
        store.add(Run(started="", command="--storage postgresql://anna@db/x"))


@pytest.mark.parametrize(
    "text",
    ["postgresql://a:b@c/d", "token: abc", "x host=h, y", "/home/me/x /Users/you", "plain text"],
)
def test_scrubbing_twice_is_scrubbing_once(text: str) -> None:
    """Otherwise a row would change its id on its second way in."""
    assert scrub(scrub(text)) == scrub(text)
    assert scrub("out of memory: 300 KiB asked, 227 KiB there") == (
        "out of memory: 300 KiB asked, 227 KiB there"
    )
