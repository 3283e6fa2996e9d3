"""Where rows are read from: shipped files and the user's database, without writing either."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdsl.errors import StoreError
from kdsl.runtime.records import (
    Candidate,
    Device,
    Measurement,
    Row,
    Toolchain,
    Workload,
    jsonl,
    link,
    sources,
    sqlite,
)
from kdsl.runtime.records.sources import MemorySource, default_sources


def test_import_is_light() -> None:
    """Looking up needs the standard library alone: no numpy, torch, triton, cupy or optuna."""
    heavy = "{'numpy', 'torch', 'triton', 'cupy', 'optuna'}"
    code = f"import sys, kdsl.runtime.records; sys.exit(str({heavy} & set(sys.modules)) != 'set()')"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_where_the_database_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """KDSL_DB first, then the data folder that XDG names, if it is absolute, then ~/.local/share;
    never the cache folder, which people empty. A server's URL is kept as it is."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("KDSL_DB", "~/x.db")
    assert link.default_place() == Path("/h/x.db")
    monkeypatch.delenv("KDSL_DB")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    monkeypatch.setenv("XDG_DATA_HOME", "/d")
    assert link.default_place() == Path("/d/kdsl/tuning.db")
    monkeypatch.setenv("XDG_DATA_HOME", "d")
    assert link.default_place() == Path("/h/.local/share/kdsl/tuning.db")


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    """A folder where the database should be is called one, with the path that would work."""
    for write in (False, True):
        with pytest.raises(StoreError, match="is a folder") as caught:
            sqlite.SqliteLink(tmp_path, write=write)
        assert caught.value.hint == f"KDSL_DB={tmp_path / 'tuning.db'}"


def test_network_file_systems_are_refused(tmp_path: Path) -> None:
    """The innermost mount decides, spaces in its name or not, and the error names a way out."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "rootfs / ext4 rw 0 0\nserver:/a /net nfs4 rw 0 0\n/dev/sdb /net/disk xfs rw 0 0\n"
        "host:/b /with\\040space fuse.sshfs rw 0 0\nbroken\n"
    )
    sqlite.refuse_network(Path("/home/x.db"), mounts)
    sqlite.refuse_network(Path("/net/disk/x.db"), mounts)
    sqlite.refuse_network(Path("/network/x.db"), mounts)
    with pytest.raises(StoreError, match=r"network file system \(nfs4 at /net\)") as caught:
        sqlite.refuse_network(Path("/net/new/folder/x.db"), mounts)
    assert "KDSL_DB=" in caught.value.hint
    assert "postgresql://" in caught.value.hint
    with pytest.raises(StoreError, match=r"fuse\.sshfs at /with space"):
        sqlite.refuse_network(Path("/with space/x.db"), mounts)


def test_no_database_is_no_error(tmp_path: Path) -> None:
    """Without a file there is the shipped source alone, and none is made."""
    path = tmp_path / "none.db"
    with default_sources(path) as opened:
        assert opened == [sources.shipped()]
    assert not path.exists()


def test_shipped_files_are_sound() -> None:
    """Every line of every shipped file is a row under the id it claims, and refers to rows there.

    A look-up trusts shipped files for speed, so this is where they are checked.
    """
    assert sources.shipped().problems == ()
    for entry in sources.files("kdsl.tuning_db").iterdir():
        if entry.name.endswith(".jsonl"):
            with entry.open("rb") as stream:
                found = [row for _, row in jsonl.read(stream, entry.name)]
            rows = {row.id: row for row in found if isinstance(row, Row)}
            assert len(rows) == len(found), [p for p in found if isinstance(p, jsonl.Problem)]
            for row in rows.values():
                if isinstance(row, Measurement):
                    ids = (row.workload_id, row.device_id, row.toolchain_id, row.candidate_id)
                    assert {*ids, row.run_id} <= rows.keys()


def test_shipped_files_are_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All .jsonl files of the package count, other files do not, broken lines are kept apart."""
    rows = [Workload(op="attention", program=p, dtypes={}, dims={}) for p in "ab"]
    (tmp_path / "a.jsonl").write_text("".join(jsonl.write(rows[:1])))
    (tmp_path / "b.jsonl").write_text("{\n" + rows[1].line())
    (tmp_path / "README.md").write_text("{")
    monkeypatch.setattr(sources, "files", lambda package: tmp_path)
    source = sources.shipped.__wrapped__()
    assert set(source.workloads("attention")) == set(rows)
    assert [str(p).partition(": is")[0] for p in source.problems] == ["b.jsonl:1"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "a.jsonl", "b.jsonl"]


def test_dangling_rows_are_left_out() -> None:
    """A workload that nobody timed has no trials; an unknown one neither."""
    workload = Workload(op="attention", program="p", dtypes={}, dims={})
    source = MemorySource(
        [
            workload,
            Device(name="h100", cc=90, sms=132),
            Toolchain(kdsl="0"),
            Candidate(space_hash="", params={}),
        ]
    )
    assert source.trials(workload.id) == source.trials("no such id") == []


def test_a_row_in_two_files_is_one_row() -> None:
    """Reading the same lines twice, or as rows and as lines, gives each trial once."""
    device, tools = Device(name="h100", cc=90, sms=132), Toolchain(kdsl="0")
    workload = Workload(op="attention", program="p", dtypes={}, dims={})
    candidate = Candidate(space_hash="", params={})
    row = Measurement(
        workload_id=workload.id,
        device_id=device.id,
        toolchain_id=tools.id,
        candidate_id=candidate.id,
        run_id="0",
        kind="measured",
        status="wrong",
        reason="off",
        binary_hash="beef",
        created="",
    )
    rows: list[Row] = [device, tools, workload, candidate, row]
    raw = [jsonl.Raw(r.table, r.id, r.content()) for r in rows]
    unnamed = [line._replace(said_id="") for line in raw]
    source = MemorySource(rows, raw=[*raw, *unnamed, *raw])
    assert [t.measurement for t in source.trials(workload.id)] == [row]
    assert source.condemned() == {"beef"}
    assert MemorySource(raw=raw).trials(workload.id) == source.trials(workload.id)
