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
import tracemalloc
from pathlib import Path

import pytest

from kdsl.autotune.store import Store, import_jsonl
from kdsl.autotune.store.checkup import examine
from kdsl.errors import StoreError
from kdsl.runtime.records import (
    Candidate,
    Measurement,
    Place,
    Row,
    default_sources,
    link,
    tables,
)
from kdsl.runtime.records.form import dumps
from tests.autotune.writer import rows

ROOT = Path(__file__).parents[2]
WRITER = [sys.executable, "-m", "tests.autotune.writer"]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}


def test_killed_writers_lose_nothing(place: Place) -> None:
    """8 processes write over 1,000 rows to one new database, 3 are killed with SIGKILL: every row a
    writer was told is stored is there, no row is there in part or twice, the best is the fastest of
    them, and the database is sound."""
    each = 200
    counts = [10**9] * 3 + [each] * 5  # the first three write until they are killed
    writers = [
        subprocess.Popen(
            [*WRITER, "count", str(place), str(i), str(n)],
            stdout=subprocess.PIPE, env=_environment(), text=True,
        )
        for i, n in enumerate(counts)
    ]  # fmt: skip
    rng = random.Random(0)
    with Store(place) as store:
        while _count(store) < 100:
            time.sleep(0.05)
        for writer in writers[:3]:
            time.sleep(rng.uniform(0.05, 0.4))
            writer.send_signal(signal.SIGKILL)
        told = [writer.communicate(timeout=300)[0].splitlines() for writer in writers]
        assert [w.returncode for w in writers] == [-signal.SIGKILL] * 3 + [0] * 5
        assert all(len(said) == each for said in told[3:])
        stored = {row.id: row for row in store.rows()}
        for writer, said in enumerate(told):
            for n in range(len(said)):
                assert {row.id for row in rows(str(writer), n)} <= stored.keys()
        # At most one more a killed writer: stored in whole, but it died before it could say so.
        measurements = [row for row in stored.values() if isinstance(row, Measurement)]
        assert sum(map(len, told)) <= len(measurements) <= sum(map(len, told)) + 3
        assert sum(isinstance(row, Candidate) for row in stored.values()) == len(measurements)
        (best,) = store.bests().values()
        tied = [m for m in measurements if m.median_us == 1.0]
        assert best.candidate_id == min(
            (stored[m.candidate_id] for m in tied),
            key=lambda c: (len(dumps(c.params)), c.id),  # type: ignore[attr-defined]
        ).id  # fmt: skip
        assert [s.said for s in examine(store) if not s.sound and s.subject in OURS] == []


OURS = ("pages", "references", "rows", "referents", "secrets", "bests")
"""What of a database's health depends on us; a test's server may run without fsync."""


def _count(store: Store) -> int:
    return int(store.link.fetch("SELECT COUNT(*) AS n FROM measurement")[0]["n"])


def test_a_kill_between_any_two_writes(place: Place) -> None:
    """A process that is killed before each statement in turn of adding a row, before the first and
    after the last, leaves the row whole or not at all; what was acknowledged before is there, and
    the database can be used at once."""
    Store(place).close()
    done = subprocess.run(
        [*WRITER, "die", str(place)], env=_environment(), capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    deaths = len([line for line in said if line.startswith("stored")]) - 1
    assert deaths >= 8, "begin, a statement for each row, commit"
    assert said[-1] == f"through died-{deaths}"
    with Store(place) as store:
        stored = {row.id for row in store.rows()}
        for n in range(deaths + 1):
            assert {row.id for row in rows(f"died-{n}", 0)} <= stored
            last = rows(f"died-{n}", 1)
            own = {row.id for row in last[4:]}  # candidate and measurement are of this call alone
            assert own <= stored or not own & stored
            assert (own <= stored) == (n == deaths)
        store.add(*rows("after", 0))
        assert [s.said for s in examine(store) if not s.sound and s.subject in OURS] == []


def test_an_interrupted_call_adds_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception between two rows of one call, a Ctrl-C say, leaves the database as it was."""
    with Store(place) as store:
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
    with pytest.raises(StoreError, match="is a folder") as caught:
        Store(tmp_path)
    assert caught.value.hint == f"KDSL_DB={tmp_path / 'tuning.db'}"


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


def test_a_large_import_is_held_by_the_page(tmp_path: Path) -> None:
    """A file of many rows and more broken lines, its measurements in front of what they refer to,
    is imported whole in memory that does not grow with it; the first hundred problems are told, the
    others counted."""
    count = 4000
    with (tmp_path / "x.jsonl").open("w") as stream:
        for n in range(count):
            *referents, outcome = rows("large", n)
            stream.write("\n".join(row.line() for row in (outcome, *referents[-1:])) + "\n{\n")
        stream.writelines(row.line() + "\n" for row in referents[:4])
    size = (tmp_path / "x.jsonl").stat().st_size
    with Store(tmp_path / "t.db") as store:
        tracemalloc.start()
        try:
            report = import_jsonl(store, tmp_path / "x.jsonl")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (report.added, report.known, report.skipped) == (2 * count + 4, 0, count)
        assert len(report.problems) == 100
        assert report.problems[0].startswith("x.jsonl:3: ")
        assert peak < 3_000_000 < 3 * size


@pytest.mark.parametrize("place", [Path("/dev/zero"), Path("/dev"), Path("/nowhere.jsonl")])
def test_what_is_no_file_is_not_read(tmp_path: Path, place: Path) -> None:
    """A device would never end."""
    with (
        Store(tmp_path / "t.db") as store,
        pytest.raises(StoreError, match=r"no file|not there"),
    ):
        import_jsonl(store, place)
