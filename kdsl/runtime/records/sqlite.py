"""One SQLite file: how it is opened, where it may not be, and what its errors mean."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdsl.errors import StoreError
from kdsl.runtime.records import link as links
from kdsl.runtime.records.jsonl import check_version
from kdsl.runtime.records.link import Symptom

_NETWORK = frozenset(
    (
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs",
        "glusterfs", "orangefs", "ncpfs", "coda", "acfs", "pvfs2", "fuse.sshfs",
        "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.juicefs",
        "fuse.mount-s3", "fuse.blobfuse", "fuse.blobfuse2", "fuse.weed", "fuse.moosefs",
    )
)  # fmt: skip


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> tuple[str, Path]:
    """Kind and mount point of the file system that ``path`` is or would be on; empty if unknown."""
    place, kind = Path("/"), ""
    if not mounts.exists():
        return kind, place
    target = path.absolute().resolve()
    for line in mounts.read_text(errors="replace").splitlines():
        _, folder, this_kind, *_ = (*line.split(), "", "", "")
        mounted = Path(folder.replace(r"\040", " "))
        if target.is_relative_to(mounted) and len(mounted.parts) >= len(place.parts):
            place, kind = mounted, this_kind
    return kind, place


def refuse_network(path: Path, mounts: Path = Path("/proc/mounts")) -> None:
    """Raise :class:`~kdsl.errors.StoreError` if ``path`` is on a network file system.

    SQLite's locks and its shared index do not work there, and rows would be lost in silence.
    """
    kind, place = file_system(path, mounts)
    if kind in _NETWORK:
        raise StoreError(
            f"{path} is on a network file system ({kind} at {place}), where SQLite loses rows",
            hint="KDSL_DB=<a path on a local disk>; to share rows between machines, export them "
            "to JSONL and merge that, or use --storage postgresql://...",
        )


_ERRORS = {
    "SQLITE_CANTOPEN": ("cannot be opened", "KDSL_DB=<a path in a folder you may write to>"),
    "SQLITE_READONLY": ("cannot be written", "KDSL_DB=<a path in a folder you may write to>"),
    "SQLITE_PERM": ("cannot be written", "KDSL_DB=<a path in a folder you may write to>"),
    "SQLITE_FULL": (
        "has no room left: the disk is full. Every row stored before is safe",
        "free some space and run the same command again; it goes on from there",
    ),
    "SQLITE_NOTADB": (
        "is corrupt or no database at all",
        "move the file away, then run again; merge exported JSONL to get rows back",
    ),
    "SQLITE_CORRUPT": (
        "is corrupt or no database at all",
        "move the file away, then run again; `sqlite3 FILE .recover` may save its rows",
    ),
    "SQLITE_BUSY": (
        f"is locked by another process for over {links.BUSY_S:.0f} s",
        "wait for the other process, or end it",
    ),
    "SQLITE_IOERR": ("cannot be read or written: the disk fails", "another disk: KDSL_DB=<path>"),
}


@contextmanager
def guard(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into a :class:`~kdsl.errors.StoreError` that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        primary = "_".join(name.split("_")[:2])
        what, hint = _ERRORS.get(primary, ("cannot be used", ""))
        raise StoreError(
            f"the tuning database {path} {what}", where=f"SQLite: {error}", hint=hint
        ) from error


class SqliteLink:
    """A file, in write-ahead mode once somebody opened it to write."""

    def __init__(self, path: Path, *, write: bool) -> None:
        self.path = path
        if path.is_dir():
            raise StoreError(
                f"the tuning database {path} is a folder", hint=f"KDSL_DB={path / 'tuning.db'}"
            )
        refuse_network(path)
        if write:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(
                    f"the folder of the tuning database {path} cannot be made: {error.strerror}",
                    hint="KDSL_DB=<a path in a folder you may write to>",
                ) from error
        with guard(path):
            self.raw = _opened(path, write)
        try:
            if write:
                with guard(path):
                    self._write_ahead()
        except BaseException:
            self.raw.close()
            raise

    def _write_ahead(self) -> None:
        deadline = time.monotonic() + links.BUSY_S
        while True:  # this change does not wait for other processes by itself
            try:
                self.raw.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
                if not busy or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self.raw.execute("PRAGMA synchronous = FULL")

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def fetch(self, text: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows that a query finds."""
        with guard(self.path):
            return [dict(row) for row in self.raw.execute(links.sql(text), tuple(values))]

    def run(self, text: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement; how many rows it touched."""
        with guard(self.path):
            return self.raw.execute(links.sql(text), tuple(values)).rowcount

    @contextmanager
    def _within(self, begin: str) -> Iterator[None]:
        self.run(begin)
        try:
            with guard(self.path):
                yield
            self.run("COMMIT")
        except BaseException:
            if self.raw.in_transaction:
                self.run("ROLLBACK")
            raise

    def transaction(self) -> Any:
        """All that is written within happens, or nothing; other writers wait."""
        return self._within("BEGIN IMMEDIATE")

    def snapshot(self) -> Any:
        """All that is read within is of one moment."""
        return self._within("BEGIN")

    def starting(self) -> Any:
        """A transaction: there is one writer at a time anyway."""
        return self.transaction()

    def alone(self) -> Any:
        """A transaction: there is one writer at a time anyway."""
        return self.transaction()

    def compact(self) -> None:
        """Make the file as small as its rows are."""
        self.run("VACUUM")
        self.fetch("PRAGMA wal_checkpoint(TRUNCATE)")

    def health(self) -> list[Symptom]:
        """File system, write-ahead mode, the file's own check of its pages."""
        kind, place = file_system(self.path)
        with guard(self.path):
            mode = self.raw.execute("PRAGMA journal_mode").fetchone()[0]
            pages = [row[0] for row in self.raw.execute("PRAGMA integrity_check(5)")]
            dangling = self.raw.execute("PRAGMA foreign_key_check").fetchall()
        size = self.path.stat().st_size
        return [
            Symptom("file", True, f"{size / 2**20:.1f} MiB, SQLite {sqlite3.sqlite_version}"),
            Symptom("file system", kind not in _NETWORK, f"{kind or 'unknown'} at {place}"),
            Symptom("write-ahead mode", mode == "wal", mode),
            Symptom("pages", pages == ["ok"], "; ".join(map(str, pages))[:300]),
            Symptom("references", not dangling, f"{len(dangling)} lead nowhere"),
        ]

    def is_new(self) -> bool:
        """Whether the file has no tables."""
        with guard(self.path):
            return is_empty(self.raw)

    def close(self) -> None:
        """Let go of the file."""
        self.raw.close()


def _opened(path: Path, write: bool) -> sqlite3.Connection:
    try:
        return _open(path, "mode=rwc" if write else "mode=ro")
    except sqlite3.OperationalError as error:
        # Write-ahead mode wants files beside the database even to read. Where nobody may make
        # them and nobody left any, the file is all there is.
        barred = error.sqlite_errorname.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))
        if write or not barred or Path(f"{path}-wal").exists() or not path.is_file():
            raise
        return _open(path, "mode=ro&immutable=1")


def _open(path: Path, query: str) -> sqlite3.Connection:
    link = sqlite3.connect(
        f"{path.absolute().as_uri()}?{query}", uri=True, timeout=links.BUSY_S, isolation_level=None
    )
    try:
        link.row_factory = sqlite3.Row
        link.execute("PRAGMA foreign_keys = ON")
        if not is_empty(link):
            check_version(_version(link), str(path))
    except BaseException:
        link.close()
        raise
    return link


def _version(link: sqlite3.Connection) -> int:
    """The schema version, 0 in somebody else's database."""
    if not link.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
        return 0
    return links.stored_version(link.execute(links.VERSION).fetchall())


def is_empty(link: sqlite3.Connection) -> bool:
    """Whether the database has no tables yet."""
    return not link.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
