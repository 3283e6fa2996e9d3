"""A tuning database that is written: rows are added and never changed.

Any number of processes may write at once. :meth:`Store.add` returns when its rows are on the disk;
a process that dies before has added none of them, never half of one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from kdsl.autotune.store.migrations import MIGRATIONS
from kdsl.autotune.store.scrub import leaks, scrub
from kdsl.errors import StoreError
from kdsl.runtime.records import Place, default_place, tables
from kdsl.runtime.records.form import Row
from kdsl.runtime.records.link import (
    BUSY_S,
    VERSION,
    Link,
    TryAgain,
    connect,
    is_server,
    stored_version,
)
from kdsl.runtime.records.rows import SCHEMA_VERSION, TABLES, Measurement, Run, now
from kdsl.runtime.records.sources import DatabaseSource

REFERENCES = {f"{table}_id": table for table in TABLES if table != "measurement"}
"""Tables by the column of a measurement that refers to them."""
PAGE = 500
"""Rows that are held at a time."""
MOST_PROBLEMS = 100
_ON = "SELECT id FROM device WHERE name = ?"
_USED = f"SELECT %s_id FROM measurement WHERE device_id IN ({_ON})"
_RUNS = (
    f"SELECT r.id FROM run r WHERE r.id IN ({_USED % 'run'}) OR (r.part_of = '' AND r.id IN "
    f"(SELECT p.part_of FROM run p WHERE p.id IN ({_USED % 'run'})))"
)


@dataclass(frozen=True)
class ImportReport:
    """What came of an import: new rows, rows already there, and what was skipped.

    ``problems`` are the first 100 reasons, ``skipped`` counts all.
    """

    added: int
    known: int
    problems: tuple[str, ...] = ()
    skipped: int = 0

    def __add__(self, other: ImportReport) -> ImportReport:
        return ImportReport(
            self.added + other.added,
            self.known + other.known,
            (self.problems + other.problems)[:MOST_PROBLEMS],
            self.skipped + other.skipped,
        )

    @staticmethod
    def skip(problem: str) -> ImportReport:
        """The report of one thing that was skipped."""
        return ImportReport(0, 0, (problem,), 1)


class Best(NamedTuple):
    """The first of a group (workload, device, toolchain, kind)."""

    measurement_id: str
    candidate_id: str
    params: str
    median_us: float


class Store:
    """The database at ``place``, a path or ``postgresql://...``, by default the user's; made if it
    is not there. Without ``write`` it must be there, stays as it is, and every addition fails.

    Every method raises :class:`~kdsl.errors.StoreError` with what to do if the database cannot be
    used: unwritable, corrupt, of a newer version, locked, no room left, out of reach.
    """

    def __init__(self, place: Place | None = None, *, write: bool = True) -> None:
        place = default_place() if place is None else place
        self.place: Place = place if is_server(place) else Path(place)
        self.link: Link = connect(self.place, write=write)
        try:
            if write:
                with self.link.starting():
                    self._prepare()
            elif self.link.is_new():
                raise StoreError(f"{self.name} holds no tuning database")
        except BaseException:
            self.link.close()
            raise

    def _prepare(self) -> None:
        if self.link.is_new():
            for statement in tables.schema():
                self.link.run(statement)
            meta = {"schema_version": str(SCHEMA_VERSION), "salt": secrets.token_hex(32)}
            for item in meta.items():
                self.link.run("INSERT INTO meta (key, value) VALUES (?, ?)", item)
        if self.version >= SCHEMA_VERSION:
            return
        for statement in tables.without_views():
            self.link.run(statement)
        while (version := self.version) < SCHEMA_VERSION:
            for statement in MIGRATIONS[version]:
                self.link.run(statement)
            text = "UPDATE meta SET value = ? WHERE key = 'schema_version'"
            self.link.run(text, (str(version + 1),))
        for statement in tables.views():
            self.link.run(statement)

    @property
    def name(self) -> str:
        """What the database is called in messages: never with a password."""
        return self.link.name

    @property
    def version(self) -> int:
        """Of the schema."""
        return stored_version(self.link.fetch(VERSION))

    def close(self) -> None:
        """Let go of the database."""
        self.link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def source(self) -> DatabaseSource:
        """The same database for a look-up."""
        return DatabaseSource(self.link)

    def pseudonym(self, name: str) -> str:
        """A name for a host or a card that says nothing outside this database."""
        salt = bytes.fromhex(
            self.link.fetch("SELECT value FROM meta WHERE key = 'salt'")[0]["value"]
        )
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
        part_of: str = "",
    ) -> Run:
        """Add and return the row of a run that starts now.

        ``host`` and ``card`` (a GPU's serial) become pseudonyms, ``command`` is scrubbed.
        """
        run = Run(
            started=now("microseconds"),
            command=scrub(command),
            host=self.pseudonym(host) if host else "",
            card=self.pseudonym(card) if card else "",
            nonce=secrets.token_hex(8),
            budget=budget,
            sampler=sampler,
            seed=seed,
            git_rev=git_rev,
            git_dirty=git_dirty,
            part_of=part_of,
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
                part_of=run.part_of,
            )
        )

    def add(self, *rows: Row) -> tuple[str, ...]:
        """Add rows in one transaction, whatever their order, and return their ids.

        Reasons of failures are scrubbed. A row that is there already stays as it is. Referring to
        a row that is neither there nor among ``rows`` is an error, and nothing is added.
        """
        clean = [
            replace(row, reason=scrub(row.reason)) if isinstance(row, Measurement) else row
            for row in rows
        ]
        for row in clean:
            if leaks(row):
                what = "this command" if isinstance(row, Run) else f"a row of {row.table}"
                raise StoreError(f"{what} names a host, a password or a home", hint="scrub()")
        self.insert([("", row) for row in clean], strict=True)
        return tuple(row.id for row in clean)

    def insert(self, rows: Iterable[tuple[str, Row]], *, strict: bool = False) -> ImportReport:
        """Insert rows as they are, with their places of origin, in one transaction.

        A measurement that refers to a row that is not there is a problem, or with ``strict`` an
        error that leaves everything out. A server that goes away is waited for, up to half a
        minute: rows are named by their content, so inserting them again is the same as once.
        """
        order = list(TABLES)
        # The same order everywhere, or two writers could wait for each other's rows.
        given = sorted(rows, key=lambda item: (order.index(item[1].table), item[1].id))
        end, pause = time.monotonic() + BUSY_S, 0.1
        while True:
            try:
                with self.link.transaction():
                    return self._inserted(given, strict)
            except TryAgain:
                if time.monotonic() + pause > end:
                    raise
                time.sleep(pause)
                pause *= 2

    def _inserted(self, given: list[tuple[str, Row]], strict: bool) -> ImportReport:
        report = ImportReport(0, 0)
        present: set[str] = set()
        for place, row in given:
            missing = self._missing(row, present)
            if missing:
                what = f"measurement {row.id[:8]} refers to {missing}, which is not there"
                if strict:
                    raise StoreError(what, where=self.name)
                report += ImportReport.skip(f"{place}: {what}")
                continue
            values = tables.columns(row)
            marks = ", ".join("?" * len(values))
            text = f"INSERT INTO {row.table} ({', '.join(values)}) VALUES ({marks})"
            done = self.link.run(f"{text} ON CONFLICT (id) DO NOTHING", tuple(values.values()))
            report += ImportReport(done, 1 - done)
        return report

    def _missing(self, row: Row, present: set[str]) -> str:
        """What a row refers to that is not in the database; ``present`` remembers what is."""
        if not isinstance(row, Measurement):
            return ""
        for name, table in REFERENCES.items():
            row_id = getattr(row, name)
            if row_id not in present:
                if not self.link.fetch(f"SELECT 1 FROM {table} WHERE id = ?", (row_id,)):
                    return f"{table} {row_id[:8]}"
                present.add(row_id)
        return ""

    def snapshot(self) -> AbstractContextManager[None]:
        """Within it everything that is read is of one moment."""
        return self.link.snapshot()

    def rows(self, *, device: str | None = None) -> Iterator[Row]:
        """Every row by table and id, referents first, a page of them held at a time.

        With ``device`` the measurements on that GPU and what they refer to.
        """
        for table in TABLES:
            for values in self.values(table, device=device):
                yield tables.from_columns(table, values)

    def values(self, table: str, *, device: str | None = None) -> Iterator[dict[str, Any]]:
        """The rows of one table, by id, as they are stored."""
        test, names = _of_device(table, device)
        last = ""
        while True:
            page = self.link.fetch(
                f"SELECT * FROM {table} WHERE id > ? AND {test} ORDER BY id LIMIT {PAGE}",
                (last, *names),
            )
            yield from page
            if len(page) < PAGE:
                return
            last = page[-1]["id"]

    def bests(self) -> dict[tuple[str, str, str, str], Best]:
        """The best of every group, by workload, device, toolchain and kind."""
        found = self.link.fetch("SELECT * FROM standing WHERE place = 1")
        return {
            (r["workload_id"], r["device_id"], r["toolchain_id"], r["kind"]): Best(
                r["measurement_id"], r["candidate_id"], r["params"], r["median_us"]
            )
            for r in found
        }


def _of_device(table: str, device: str | None) -> tuple[str, tuple[str, ...]]:
    """A condition on rows of ``table``, and its values."""
    if device is None:
        return "1 = 1", ()
    if table == "measurement":
        return f"device_id IN ({_ON})", (device,)
    if table == "run":
        return f"(id IN ({_RUNS}) OR closes IN ({_RUNS}))", (device,) * 4
    return f"id IN ({_USED % table})", (device,)
