"""A connection to a tuning database: the same for an SQLite file and a PostgreSQL server.

SQL is plain text with ``?`` for values, and the same text for both; :func:`sql` is the one place
that turns it into a server's dialect. Rows come as mappings by column.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from kdsl.errors import StoreError

Place = Path | str
"""Where a database is: the path of a file, or ``postgresql://...``."""
BUSY_S = 30.0
"""How long a reader or writer waits for another before it gives up."""
SERVERS = ("postgresql://", "postgres://")


class TryAgain(StoreError):
    """A transaction that came to nothing through no fault of its own: the server went away, or
    another process was in the way. What was committed before is safe, and doing it again is right.
    """


class Symptom(NamedTuple):
    """Something about a database that is as it should be, or not."""

    subject: str
    sound: bool
    said: str


class Link(Protocol):
    """An open database. Its faults are :class:`~kdsl.errors.StoreError` that say what to do."""

    @property
    def name(self) -> str:
        """What messages call it: never with a password."""

    def fetch(self, text: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows that a query finds."""

    def run(self, text: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement; how many rows it touched."""

    def transaction(self) -> AbstractContextManager[None]:
        """All that is written within happens, or nothing."""

    def snapshot(self) -> AbstractContextManager[None]:
        """All that is read within is of one moment."""

    def starting(self) -> AbstractContextManager[None]:
        """A transaction in which tables are made or changed: one process at a time."""

    def alone(self) -> AbstractContextManager[None]:
        """A transaction during which nobody else writes."""

    def compact(self) -> None:
        """Give back the space of rows that were removed, as far as that takes asking."""

    def health(self) -> list[Symptom]:
        """What the database says of itself."""

    def is_new(self) -> bool:
        """Whether there is no tuning database yet, and nothing in the way of making one."""

    def close(self) -> None:
        """Let go of it."""


def is_server(place: Place) -> bool:
    """Whether a place names a server instead of a file."""
    return isinstance(place, str) and place.startswith(SERVERS)


def default_place() -> Place:
    """``KDSL_DB``, else ``kdsl/tuning.db`` in the user's data folder."""
    named = os.environ.get("KDSL_DB")
    if named:
        return named if is_server(named) else Path(named).expanduser()
    return data_folder() / "tuning.db"


def data_folder() -> Path:
    """``kdsl`` in the folder where this system keeps a user's data."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        given = os.environ.get("XDG_DATA_HOME", "")
        base = Path(given) if given.startswith("/") else Path.home() / ".local" / "share"
    return base / "kdsl"


def connect(place: Place, *, write: bool) -> Link:
    """Open a database. Without ``write`` it must be there and stays as it is.

    Raises :class:`~kdsl.errors.StoreError` for network file systems, unwritable paths, files that
    are no database, servers that cannot be reached, and databases of a newer version.
    """
    if isinstance(place, str) and is_server(place):
        from kdsl.runtime.records.postgres import PostgresLink

        return PostgresLink(place, write=write)
    from kdsl.runtime.records.sqlite import SqliteLink

    return SqliteLink(Path(place), write=write)


def sql(text: str, dialect: Literal["sqlite", "postgresql"] = "sqlite") -> str:
    """``text`` with the placeholders of ``dialect``."""
    return text if dialect == "sqlite" else text.replace("%", "%%").replace("?", "%s")


def stored_version(rows: Sequence[Mapping[str, Any]]) -> int:
    """The schema version among the rows of ``meta``, 0 where nothing of the kind is there."""
    found = str(rows[0]["value"]) if rows else ""
    return int(found) if found.isdecimal() else 0


VERSION = "SELECT value FROM meta WHERE key = 'schema_version'"
