"""A PostgreSQL server, for a fleet: how it is reached, and what its errors mean.

``psycopg`` is asked for when the first server is named. A password that stands in the URL stays in
this process: messages carry the URL without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from kdsl.errors import StoreError, UnsupportedError
from kdsl.runtime.records import link as links
from kdsl.runtime.records.jsonl import check_version
from kdsl.runtime.records.link import Symptom, TryAgain
from kdsl.runtime.records.rows import TABLES

CONNECT_S = 10
_LOCK = 0x6B64736C
"""Number of the advisory lock under which tables are made; "kdsl" in ASCII."""
_SETTINGS = (
    # Acknowledged means on the disk, whatever the server's default.
    "SET synchronous_commit = on",
    f"SET lock_timeout = '{links.BUSY_S:.0f}s'",
    # A machine that vanishes must not keep others waiting for the rows it was writing.
    "SET idle_in_transaction_session_timeout = '60s'",
    "SET tcp_keepalives_idle = 30",
    "SET client_min_messages = warning",
)
_ERRORS = {
    "08": ("cannot be reached", "look whether the server runs; then run the same command again"),
    "28": ("refuses this user", "PGPASSWORD or ~/.pgpass hold a password better than a URL"),
    "3D": ("is not there", "createdb NAME"),
    "42501": (
        "may not be changed by this user",
        "GRANT CREATE, USAGE ON SCHEMA public TO the user",
    ),
    "25006": ("may only be read here", "the primary server's address, not a replica's"),
    "53": (
        "has no room or no connection left. Every row stored before is safe",
        "free some, and run the same command again; it goes on from there",
    ),
    "55P03": (
        f"is locked by another process for over {links.BUSY_S:.0f} s",
        "wait for the other process, or end it",
    ),
    "57": ("is being shut down", "run the same command again; it goes on from there"),
}

_TRANSIENT = ("08", "57", "40", "23503")
"""Lost connections, shutdowns, deadlocks, and a referent that was pruned in between."""


def shown(place: str) -> str:
    """A URL that can be read by anybody: without password and options."""
    try:
        parts = urlsplit(place)
        user = f"{parts.username}{':***' if parts.password else ''}@" if parts.username else ""
        port = f":{parts.port}" if parts.port else ""
        return f"postgresql://{user}{parts.hostname or ''}{port}{parts.path}"
    except ValueError:
        return "postgresql://***"


def _secrets(place: str) -> list[str]:
    """What must not be repeated of a URL, as it stands there and decoded; the longest first."""
    found = {place}
    with contextlib.suppress(ValueError):
        parts = urlsplit(place)
        found |= {parts.password or "", unquote(parts.password or ""), parts.query}
        found |= {
            value for key, value in parse_qsl(parts.query) if key in ("password", "sslpassword")
        }
        # An unescaped "@" or "/" in a password: libpq takes the rest of it for a host or port.
        found |= {place.partition("://")[2], parts.netloc}
    return sorted((text for text in found if text), key=len, reverse=True)


class PostgresLink:
    """A connection that is made again when the server drops it between two statements."""

    def __init__(self, place: str, *, write: bool) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise UnsupportedError(
                f"a PostgreSQL database needs psycopg, which cannot be imported: {error}",
                hint="pip install 'kdsl-kernels[postgres]'",
            ) from error
        self._psycopg: Any = psycopg
        self._place, self._write, self._hidden = place, write, _secrets(place)
        self._inside = False
        self._raw: Any = None
        self._open()

    @property
    def name(self) -> str:
        """The URL without password."""
        return shown(self._place)

    def _open(self) -> None:
        from psycopg.rows import dict_row

        with self._guard():
            given = {} if "connect_timeout=" in self._place else {"connect_timeout": CONNECT_S}
            self._raw = self._psycopg.connect(
                self._place,
                autocommit=True,
                row_factory=dict_row,
                prepare_threshold=None,  # poolers hand out another session each time
                application_name="kdsl",
                **given,
            )
        try:
            for setting in _SETTINGS:
                self.run(setting)
            if not self._write:
                self.run("SET default_transaction_read_only = on")
            encoding = self._raw.info.parameter_status("server_encoding")
            if encoding != "UTF8":
                raise StoreError(
                    f"the database {self.name} has encoding {encoding}",
                    hint="createdb --encoding UTF8 --template template0 NAME",
                )
            if not self.is_new():
                check_version(links.stored_version(self.fetch(links.VERSION)), self.name)
        except BaseException:
            self._raw.close()
            raise

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.Error as error:
            state = error.sqlstate or ("08000" if self._gone() else "")
            known = (_ERRORS[k] for k in (state, state[:2]) if k in _ERRORS)
            what, hint = next(known, ("cannot be used", ""))
            transient = state[:2] in _TRANSIENT or state in _TRANSIENT or self._gone()
            kind = TryAgain if transient else StoreError
            said = f"PostgreSQL: {self._harmless(str(error))}"
            # The driver's own error may hold the password, so it is not passed on.
            raise kind(f"the tuning database {self.name} {what}", where=said, hint=hint) from None

    def _gone(self) -> bool:
        return self._raw is None or self._raw.closed

    def _harmless(self, text: str) -> str:
        for secret in self._hidden:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:500]

    def _execute(self, text: str, values: Sequence[Any]) -> Any:
        if self._gone():
            if self._inside:
                raise TryAgain(f"the tuning database {self.name} went away")
            self._open()
        with self._guard():
            return self._raw.execute(links.sql(text, "postgresql"), tuple(values))

    def fetch(self, text: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows that a query finds; asked once more if the server had dropped the connection."""
        try:
            found: list[dict[str, Any]] = self._execute(text, values).fetchall()
        except TryAgain:
            if self._inside:
                raise
            found = self._execute(text, values).fetchall()
        return found

    def run(self, text: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement; how many rows it touched."""
        return int(self._execute(text, values).rowcount)

    @contextmanager
    def _within(self, *statements: str) -> Iterator[None]:
        self.run(statements[0])
        self._inside = True
        try:
            for statement in statements[1:]:
                self.run(statement)
            yield
            self.run("COMMIT")
        except BaseException:
            if not self._gone():
                with contextlib.suppress(StoreError):
                    self.run("ROLLBACK")
            raise
        finally:
            self._inside = False

    def transaction(self) -> Any:
        """All that is written within happens, or nothing."""
        return self._within("BEGIN")

    def snapshot(self) -> Any:
        """All that is read within is of one moment."""
        return self._within("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def starting(self) -> Any:
        """A transaction in which tables are made or changed: one process at a time."""
        return self._within("BEGIN", f"SELECT pg_advisory_xact_lock({_LOCK})")

    def alone(self) -> Any:
        """A transaction during which nobody else writes."""
        names = ", ".join(TABLES)  # in the order in which writers come to them
        return self._within("BEGIN", f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")

    def compact(self) -> None:
        """Nothing: the server does it by itself."""

    def health(self) -> list[Symptom]:
        """What the server is set to."""
        said = {}
        for name in ("server_version", "server_encoding", "synchronous_commit", "fsync"):
            (row,) = self.fetch(f"SHOW {name}")
            said[name] = str(next(iter(row.values())))
        durable = said["fsync"] == "on" and said["synchronous_commit"] != "off"
        promise = f"fsync {said['fsync']}, synchronous_commit {said['synchronous_commit']}"
        return [
            Symptom("server", True, f"PostgreSQL {said['server_version']}"),
            Symptom("encoding", said["server_encoding"] == "UTF8", said["server_encoding"]),
            Symptom("rows survive a power cut", durable, promise),
        ]

    def is_new(self) -> bool:
        """Whether none of the tables is there; those of others, such as Optuna's, may be."""
        names = ("meta", *TABLES)
        marks = ", ".join("?" * len(names))
        text = (
            "SELECT table_name FROM information_schema.tables "
            f"WHERE table_schema = current_schema() AND table_name IN ({marks})"
        )
        return not self.fetch(text, names)

    def close(self) -> None:
        """End the connection."""
        if self._raw is not None:
            self._raw.close()
