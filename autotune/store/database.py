"""A tuning database that is written: rows are added and never changed.

Any number of processes may write to one file at once. :meth:`Store.add` returns when its rows are
on the disk; a process that dies before has added none of them, never half of one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from kdsl.autotune.store.scrub import scrub
from kdsl.errors import StoreError
from kdsl.runtime.records import sqlite
from kdsl.runtime.records.form import Row
from kdsl.runtime.records.rows import SCHEMA_VERSION, TABLES, Measurement, Run, now
from kdsl.runtime.records.sources import DatabaseSource

MIGRATIONS: Mapping[int, Sequence[str]] = {}
"""Statements that lead from a schema version to the next."""
_REFERENCES = {f"{table}_id": table for table in TABLES if table != "measurement"}


def _closed_by(row: Row) -> str:
    return row.closes if isinstance(row, Run) else ""


@dataclass(frozen=True)
class ImportReport:
    """What came of an import: new rows, rows already there, and lines that were skipped."""

    added: int
    known: int
    problems: tuple[str, ...] = ()


class Store:
    """The database at ``path``, by default the user's; made if it is not there.

    Every method raises :class:`~kdsl.errors.StoreError` with what to do if the file cannot be
    used: unwritable, corrupt, of a newer version, locked, no room left.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Path(path) if path is not None else sqlite.default_path()
        self._link = sqlite.connect(self.path, write=True)
        try:
            with sqlite.guard(self.path):
                self._prepare()
        except BaseException:
            self._link.close()
            raise

    def _prepare(self) -> None:
        deadline = time.monotonic() + sqlite.BUSY_S
        while True:  # the change to write-ahead mode does not wait for other processes by itself
            try:
                self._link.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
                if not busy or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self._link.execute("PRAGMA synchronous = FULL")
        with self._transaction():
            if sqlite.is_empty(self._link):
                for statement in sqlite.schema():
                    self._link.execute(statement)
                meta = {"schema_version": str(SCHEMA_VERSION), "salt": secrets.token_hex(32)}
                text = sqlite.sql("INSERT INTO meta (key, value) VALUES (?, ?)")
                self._link.executemany(text, meta.items())
            self._migrate()

    def _migrate(self) -> None:
        version = int(self._meta("schema_version"))
        while version < SCHEMA_VERSION:
            for statement in MIGRATIONS[version]:
                self._link.execute(statement)
            version += 1
            text = sqlite.sql("UPDATE meta SET value = ? WHERE key = 'schema_version'")
            self._link.execute(text, (str(version),))

    def _meta(self, key: str) -> str:
        text = sqlite.sql("SELECT value FROM meta WHERE key = ?")
        return str(self._link.execute(text, (key,)).fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with sqlite.guard(self.path):
            self._link.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._link.execute("COMMIT")
            except BaseException:
                if self._link.in_transaction:
                    self._link.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Let go of the file."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def source(self) -> DatabaseSource:
        """The same database for a look-up."""
        return DatabaseSource(self._link, self.path)

    def pseudonym(self, name: str) -> str:
        """A name for a host or a card that says nothing outside this database."""
        salt = bytes.fromhex(self._meta("salt"))
        return hmac.new(salt, name.encode(), hashlib.sha256).hexdigest()[:16]

    def begin(
        self,
        command: str,
        *,
        host: str = "",
        card: str = "",
        budget: str = "",
        sampler: str = "",
        seed: int | None = None,
        git_rev: str = "",
        git_dirty: bool = False,
    ) -> Run:
        """Add and return the row of a run that starts now.

        ``host`` and ``card`` (a GPU's serial) become pseudonyms, ``command`` is scrubbed.
        """
        run = Run(
            started=now(),
            command=scrub(command),
            host=self.pseudonym(host) if host else "",
            card=self.pseudonym(card) if card else "",
            nonce=secrets.token_hex(8),
            budget=budget,
            sampler=sampler,
            seed=seed,
            git_rev=git_rev,
            git_dirty=git_dirty,
        )
        self.add(run)
        return run

    def finish(self, run: Run, *, complete: bool, counts: Mapping[str, int]) -> None:
        """Add the row that closes ``run``; ``complete`` says that its budget was not cut off."""
        self.add(
            Run(
                started=run.started,
                closes=run.id,
                ended=now(),
                complete=complete,
                counts=counts,
            )
        )

    def add(self, *rows: Row) -> tuple[str, ...]:
        """Add rows in one transaction, whatever their order, and return their ids.

        Reasons of failures are scrubbed. A row that is there already stays as it is. Referring to
        a row that is neither there nor among ``rows`` is an error, and nothing is added.
        """
        for row in rows:
            if isinstance(row, Run) and scrub(row.command) != row.command:
                raise StoreError("this command names a host, a password or a home", hint="begin()")
        clean = [
            replace(row, reason=scrub(row.reason)) if isinstance(row, Measurement) else row
            for row in rows
        ]
        self.insert([("", row) for row in clean], strict=True)
        return tuple(row.id for row in clean)

    def insert(self, rows: Iterable[tuple[str, Row]], *, strict: bool = False) -> ImportReport:
        """Insert rows as they are, with their places of origin, in one transaction.

        A measurement that refers to a row that is not there is a problem, or with ``strict`` an
        error that leaves everything out.
        """
        order = list(TABLES)
        present: set[str] = set()
        problems: list[str] = []
        added = known = 0
        with self._transaction():
            for place, row in sorted(rows, key=lambda item: order.index(item[1].table)):
                missing = self._missing(row, present)
                if missing:
                    what = f"measurement {row.id[:8]} refers to {missing}, which is not there"
                    if strict:
                        raise StoreError(what, where=str(self.path))
                    problems.append(f"{place}: {what}")
                    continue
                values = sqlite.columns(row)
                marks = ", ".join("?" * len(values))
                text = f"INSERT INTO {row.table} ({', '.join(values)}) VALUES ({marks})"
                done = self._link.execute(
                    sqlite.sql(f"{text} ON CONFLICT (id) DO NOTHING"), tuple(values.values())
                )
                added += done.rowcount
                known += 1 - done.rowcount
        return ImportReport(added, known, tuple(problems))

    def _missing(self, row: Row, present: set[str]) -> str:
        """What a row refers to that is not in the database; ``present`` remembers what is."""
        if not isinstance(row, Measurement):
            return ""
        for name, table in _REFERENCES.items():
            row_id = getattr(row, name)
            if row_id not in present:
                text = sqlite.sql(f"SELECT 1 FROM {table} WHERE id = ?")
                if not self._link.execute(text, (row_id,)).fetchone():
                    return f"{table} {row_id[:8]}"
                present.add(row_id)
        return ""

    def rows(self, *, device: str | None = None) -> Iterator[Row]:
        """Every row; with ``device`` the measurements on that GPU and what they refer to."""
        wanted: set[str] = set()
        for table in reversed(list(TABLES)):
            with sqlite.guard(self.path):
                found = self._link.execute(f"SELECT * FROM {table}").fetchall()
                devices = self._devices(device)
            for row in (sqlite.from_columns(table, values) for values in found):
                if isinstance(row, Measurement):
                    if device is None or row.device_id in devices:
                        wanted.update(getattr(row, name) for name in _REFERENCES)
                        yield row
                elif device is None or row.id in wanted or _closed_by(row) in wanted:
                    yield row

    def _devices(self, name: str | None) -> set[str]:
        text = sqlite.sql("SELECT id FROM device WHERE name = ?")
        return {row[0] for row in self._link.execute(text, (name,))}
