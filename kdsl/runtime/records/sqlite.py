"""One SQLite file: where it is, how it is opened, what its errors mean, rows to columns and back.

SQL is plain text with ``?`` for values; :func:`sql` is the one place that turns it into another
database's dialect.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from kdsl.errors import StoreError
from kdsl.runtime.records.form import Row, dumps
from kdsl.runtime.records.jsonl import check_version
from kdsl.runtime.records.rows import TABLES

BUSY_S = 30.0
"""How long a reader or writer waits for another before it gives up."""
_NETWORK = frozenset(
    (
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs",
        "glusterfs", "orangefs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs",
        "fuse.gcsfuse", "fuse.rclone",
    )
)  # fmt: skip


def default_path() -> Path:
    """``KDSL_DB``, else ``kdsl/tuning.sqlite`` in the user's data folder.

    Not the cache folder, which people empty: rows are hours of a GPU.
    """
    named = os.environ.get("KDSL_DB")
    if named:
        return Path(named).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        given = os.environ.get("XDG_DATA_HOME", "")
        base = Path(given) if given.startswith("/") else Path.home() / ".local" / "share"
    return base / "kdsl" / "tuning.sqlite"


def sql(text: str, dialect: Literal["sqlite", "postgresql"] = "sqlite") -> str:
    """``text`` with the placeholders of ``dialect``."""
    return text if dialect == "sqlite" else text.replace("%", "%%").replace("?", "%s")


def statements(script: str) -> list[str]:
    """The statements of a .sql file, without comments."""
    lines = [line for line in script.splitlines() if not line.lstrip().startswith("--")]
    return [part.strip() for part in "\n".join(lines).split(";\n") if part.strip()]


def schema() -> list[str]:
    """The statements that make an empty database a tuning database."""
    return statements(files("kdsl.runtime.records").joinpath("schema.sql").read_text() + "\n")


def refuse_network(path: Path, mounts: Path = Path("/proc/mounts")) -> None:
    """Raise :class:`~kdsl.errors.StoreError` if ``path`` is on a network file system.

    SQLite's locks and its shared index do not work there, and rows would be lost in silence.
    """
    if not mounts.exists():
        return
    place, kind = Path("/"), ""
    target = path.absolute().resolve()
    for line in mounts.read_text(errors="replace").splitlines():
        _, folder, this_kind, *_ = (*line.split(), "", "", "")
        mounted = Path(folder.replace(r"\040", " "))
        if target.is_relative_to(mounted) and len(mounted.parts) >= len(place.parts):
            place, kind = mounted, this_kind
    if kind in _NETWORK:
        raise StoreError(
            f"{path} is on a network file system ({kind} at {place}), where SQLite loses rows",
            hint="KDSL_DB=<a path on a local disk>; to share rows between machines, export them "
            "to JSONL and import that, or use --storage postgresql://...",
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
        "move the file away, then run again; import exported JSONL to get rows back",
    ),
    "SQLITE_CORRUPT": (
        "is corrupt or no database at all",
        "move the file away, then run again; `sqlite3 FILE .recover` may save its rows",
    ),
    "SQLITE_BUSY": (
        f"is locked by another process for over {BUSY_S:.0f} s",
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


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """Open the database. Without ``write`` the file must be there and stays as it is.

    Raises :class:`~kdsl.errors.StoreError` for network file systems, unwritable paths, files that
    are no database, and databases of a newer version.
    """
    if path.is_dir():
        raise StoreError(
            f"the tuning database {path} is a folder", hint=f"KDSL_DB={path / 'tuning.sqlite'}"
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
        f"{path.absolute().as_uri()}?{query}", uri=True, timeout=BUSY_S, isolation_level=None
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
    found = link.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    return int(found[0]) if found and str(found[0]).isdecimal() else 0


def is_empty(link: sqlite3.Connection) -> bool:
    """Whether the database has no tables yet."""
    return not link.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]


@cache
def _kinds(table: str) -> dict[str, str]:
    return {spec.name: str(spec.type) for spec in fields(TABLES[table])}


def columns(row: Row) -> dict[str, Any]:
    """A row as values for its table, id included."""
    values: dict[str, Any] = {"id": row.id}
    for name, kind in _kinds(row.table).items():
        value = getattr(row, name)
        if kind.startswith(("Mapping", "tuple")):
            value = dumps(value)
        values[name] = int(value) if kind == "bool" else value
    return values


def from_columns(table: str, values: Mapping[str, Any]) -> Row:
    """The row that :func:`columns` took apart."""
    content = {
        name: json.loads(values[name]) if kind.startswith(("Mapping", "tuple")) else values[name]
        for name, kind in _kinds(table).items()
    }
    return TABLES[table](**content)
