"""What can go wrong with a database: many writers, kills, full disks, broken and foreign files."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kdsl.autotune.store import Store
from kdsl.errors import StoreError
from kdsl.runtime.records import (
    Candidate,
    Device,
    Measurement,
    Row,
    Run,
    Toolchain,
    Workload,
    default_sources,
    link,
    sqlite,
    tables,
)

SHARED = (
    Workload(op="attention", program="p", dtypes={}, dims={}),
    Device(name="h100", cc=90, sms=132),
    Toolchain(kdsl="0.1"),
)
WRITER = """
import sys
from test_store_faults_writer import rows
from kdsl.autotune.store import Store
with Store(sys.argv[1]) as store:
    for n in range(int(sys.argv[3])):
        store.add(*rows(sys.argv[2], n))
        print(n, flush=True)
"""


def rows(writer: str, n: int) -> list[Row]:
    """The n-th measurement of a writer, with all that it refers to."""
    run = Run(started=writer)
    candidate = Candidate(space_hash="s", params={"n": n, "writer": writer})
    row = Measurement(
        workload_id=SHARED[0].id,
        device_id=SHARED[1].id,
        toolchain_id=SHARED[2].id,
        candidate_id=candidate.id,
        run_id=run.id,
        kind="measured",
        status="ok",
        created="",
        median_us=1.0 + n,
    )
    return [*SHARED, run, candidate, row]


def test_killed_writers_lose_nothing(tmp_path: Path) -> None:
    """8 processes write over 1,000 rows to one new file, 3 are killed with SIGKILL: every row a
    writer was told is stored is there, no row is there in part, and the file is sound."""
    (tmp_path / "test_store_faults_writer.py").write_text(Path(__file__).read_text())
    path, each = tmp_path / "t.db", 200
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    command = [sys.executable, "-c", WRITER, str(path)]
    counts = [10**9] * 3 + [each] * 5  # the first three write until they are killed
    writers = [
        subprocess.Popen([*command, str(i), str(n)], stdout=subprocess.PIPE, env=env, text=True)
        for i, n in enumerate(counts)
    ]
    rng = random.Random(0)
    while not path.exists() or _count(path) < 100:
        time.sleep(0.05)
    for writer in writers[:3]:
        time.sleep(rng.uniform(0.05, 0.4))
        writer.send_signal(signal.SIGKILL)
    told = [writer.communicate(timeout=300)[0].splitlines() for writer in writers]
    assert [w.returncode for w in writers] == [-signal.SIGKILL] * 3 + [0] * 5
    assert all(len(said) == each for said in told[3:])
    with Store(path) as store:
        stored = {row.id: row for row in store.rows()}
        assert store.link.raw.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert store.link.raw.execute("PRAGMA foreign_key_check").fetchall() == []
    for writer, said in enumerate(told):
        for n in range(len(said)):
            assert {row.id for row in rows(str(writer), n)} <= stored.keys()
    # At most one more a killed writer: stored in whole, but it died before it could say so.
    measurements = sum(isinstance(row, Measurement) for row in stored.values())
    assert sum(map(len, told)) <= measurements <= sum(map(len, told)) + 3
    assert sum(isinstance(row, Candidate) for row in stored.values()) == measurements


def _count(path: Path) -> int:
    link = sqlite3.connect(path, timeout=30)
    try:
        if sqlite.is_empty(link):
            return 0
        return int(link.execute("SELECT COUNT(*) FROM measurement").fetchone()[0])
    finally:
        link.close()


def test_an_interrupted_call_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception between two rows of one call, a Ctrl-C say, leaves the database as it was."""
    with Store(tmp_path / "t.db") as store:
        store.add(*rows("a", 0))
        real = tables.columns

        def interrupted(row: Row) -> dict[str, object]:
            if isinstance(row, Measurement):
                raise KeyboardInterrupt
            return real(row)

        monkeypatch.setattr(tables, "columns", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.add(*rows("a", 1))
        monkeypatch.undo()
        assert set(store.rows()) == set(rows("a", 0))
        store.add(*rows("a", 1))
        assert len(set(store.rows())) == 8


def _fill(store: Store, added: list[int]) -> None:
    for n in range(10_000):
        store.add(*rows("a" * 100, n))
        added.append(n)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """When there is no room left, the call says so, earlier rows stay, and later calls work."""
    with Store(tmp_path / "t.db") as store:
        store.add(*rows("a", 0))
        pages = store.link.raw.execute("PRAGMA page_count").fetchone()[0]
        store.link.raw.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match=r"the disk is full\. Every row stored before is"):
            _fill(store, [])
        stored = set(store.rows())
        assert set(rows("a", 0)) <= stored
        assert sum(isinstance(r, Candidate) for r in stored) == sum(
            isinstance(r, Measurement) for r in stored
        )
        store.link.raw.execute("PRAGMA max_page_count = 100000")
        store.add(*rows("b", 1))


def test_a_really_full_disk() -> None:
    """The same on a file system of 512 KiB, where making one is allowed."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "kdsl-test", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system is not allowed here")
        try:
            with Store(Path(folder) / "t.db") as store:
                added: list[int] = []
                with pytest.raises(StoreError, match="the disk is full") as caught:
                    _fill(store, added)
                assert "free some space" in caught.value.hint
            link = sqlite3.connect(Path(folder) / "t.db")
            assert link.execute("SELECT COUNT(*) FROM measurement").fetchone() == (len(added),)
            link.close()
            assert len(added) > 10
        finally:
            subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to be one" * 99, b"\0" * 4096]
)
def test_corrupt_files(tmp_path: Path, content: bytes) -> None:
    """A file of something else is named, left alone, and a way out is given."""
    path = tmp_path / "t.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is corrupt or no database at all") as caught:
        Store(path)
    assert str(path) in caught.value.what
    assert "move the file away" in caught.value.hint
    with pytest.raises(StoreError, match="is corrupt"), default_sources(path):
        pass
    assert path.read_bytes() == content


def test_a_damaged_database(tmp_path: Path) -> None:
    """A database with garbage in its middle is an error when it is read, not a wrong answer."""
    path = tmp_path / "t.db"
    with Store(path) as store:
        for n in range(50):
            store.add(*rows("a", n))
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is corrupt"), default_sources(path) as opened:
        list(opened[0].workloads("attention"))


def test_somebody_elses_database(tmp_path: Path) -> None:
    """An SQLite file of another program is not written to."""
    path = tmp_path / "t.db"
    link = sqlite3.connect(path)
    link.execute("CREATE TABLE notes (text)")
    link.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="no tuning database"):
        Store(path)
    assert path.read_bytes() == before


def test_a_newer_database(tmp_path: Path) -> None:
    """A schema of a later version is refused, for reading and for writing."""
    path = tmp_path / "t.db"
    with Store(path) as store:
        store.link.raw.execute("UPDATE meta SET value = '7' WHERE key = 'schema_version'")
    for use in (lambda: Store(path), lambda: default_sources(path).__enter__()):
        with pytest.raises(StoreError, match="newer kdsl: schema version 7") as caught:
            use()
        assert caught.value.hint == "upgrade kdsl, or let KDSL_DB name another database"


def test_unwritable_paths(tmp_path: Path) -> None:
    """A folder that cannot be made, and a folder where a file should be."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"the folder of the tuning database .* cannot be made"):
        Store(tmp_path / "file" / "t.db")
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        Store(tmp_path)
    assert caught.value.hint == "KDSL_DB=<a path in a folder you may write to>"


def test_a_file_of_somebody_else() -> None:
    """A database that this user may read but not write says so at once, without waiting."""
    if os.geteuid() != 0:
        pytest.skip("changes the effective user, which takes root")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.db"
        Store(path).close()
        Path(folder).chmod(0o755)
        os.seteuid(65534)
        started = time.monotonic()
        try:
            with pytest.raises(StoreError, match=r"cannot be (written|opened)"):
                Store(path)
        finally:
            os.seteuid(0)
        assert time.monotonic() - started < 5


def test_a_locked_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that waits in vain says that another process holds the file."""
    path = tmp_path / "t.db"
    Store(path).close()
    monkeypatch.setattr(link, "BUSY_S", 0.2)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StoreError, match="is locked by another process"):
            Store(path)
        with default_sources(path) as opened:
            assert opened[0].workloads("attention") == []
    finally:
        holder.close()
