"""Where a look-up reads: the user's database, and what was shipped with the library."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Protocol, cast

from kdsl.runtime.records import jsonl, sqlite
from kdsl.runtime.records.form import Row
from kdsl.runtime.records.rows import Candidate, Device, Measurement, Toolchain, Workload
from kdsl.runtime.records.select import Trial


class Source(Protocol):
    """What a look-up needs of a store; it only reads."""

    def workloads(self, op: str) -> Iterable[Workload]:
        """Every workload of an operation."""

    def trials(self, workload_id: str) -> Iterable[Trial]:
        """Every outcome for a workload, of both kinds and all statuses."""

    def condemned(self) -> Collection[str]:
        """Hashes of binaries that ever gave a wrong result."""


class MemorySource:
    """Rows in memory, as read from JSONL. A measurement that refers to nothing is left out."""

    def __init__(self, rows: Iterable[Row], problems: Iterable[jsonl.Problem] = ()) -> None:
        self.problems = tuple(problems)
        self._rows = {row.id: row for row in rows}
        self._of: defaultdict[str, list[Measurement]] = defaultdict(list)
        self._condemned: set[str] = set()
        for row in self._rows.values():
            if isinstance(row, Measurement):
                self._of[row.workload_id].append(row)
                if row.status == "wrong" and row.binary_hash:
                    self._condemned.add(row.binary_hash)

    def workloads(self, op: str) -> list[Workload]:
        """Every workload of an operation."""
        return [r for r in self._rows.values() if isinstance(r, Workload) and r.op == op]

    def trials(self, workload_id: str) -> list[Trial]:
        """Every outcome for a workload."""
        found = []
        for row in self._of.get(workload_id, ()):
            candidate = self._rows.get(row.candidate_id)
            device = self._rows.get(row.device_id)
            toolchain = self._rows.get(row.toolchain_id)
            if (
                isinstance(candidate, Candidate)
                and isinstance(device, Device)
                and isinstance(toolchain, Toolchain)
            ):
                found.append(Trial(row, candidate, device, toolchain))
        return found

    def condemned(self) -> set[str]:
        """Hashes of binaries that ever gave a wrong result."""
        return self._condemned


class DatabaseSource:
    """A tuning database behind an open connection."""

    def __init__(self, link: sqlite3.Connection, path: Path) -> None:
        self._link, self._path = link, path
        self._seen: dict[str, Row] = {}

    def _rows(self, table: str, where: str, value: str) -> list[Row]:
        text = sqlite.sql(f"SELECT * FROM {table} WHERE {where} = ?")
        with sqlite.guard(self._path):
            found = self._link.execute(text, (value,)).fetchall()
        return [sqlite.from_columns(table, row) for row in found]

    def _one(self, table: str, row_id: str) -> Row:
        if row_id not in self._seen:
            self._seen[row_id] = self._rows(table, "id", row_id)[0]
        return self._seen[row_id]

    def workloads(self, op: str) -> list[Workload]:
        """Every workload of an operation."""
        return cast(list[Workload], self._rows("workload", "op", op))

    def trials(self, workload_id: str) -> list[Trial]:
        """Every outcome for a workload."""
        found = cast(list[Measurement], self._rows("measurement", "workload_id", workload_id))
        return [
            Trial(
                row,
                cast(Candidate, self._one("candidate", row.candidate_id)),
                cast(Device, self._one("device", row.device_id)),
                cast(Toolchain, self._one("toolchain", row.toolchain_id)),
            )
            for row in found
        ]

    def condemned(self) -> set[str]:
        """Hashes of binaries that ever gave a wrong result."""
        text = "SELECT DISTINCT binary_hash FROM measurement WHERE status = ? AND binary_hash <> ?"
        with sqlite.guard(self._path):
            return {row[0] for row in self._link.execute(sqlite.sql(text), ("wrong", ""))}


@cache
def shipped() -> MemorySource:
    """The measurements that came with the library, read in place, once a process.

    Lines that cannot be used are in ``problems``.
    """
    rows: list[Row] = []
    problems: list[jsonl.Problem] = []
    try:
        folder = files("kdsl.tuning_db")
    except ModuleNotFoundError:
        return MemorySource(())
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".jsonl"):
            with entry.open("rb") as stream:
                for _, found in jsonl.read(stream, entry.name):
                    if isinstance(found, Row):
                        rows.append(found)
                    else:
                        problems.append(found)
    return MemorySource(rows, problems)


@contextmanager
def default_sources(path: Path | None = None) -> Iterator[list[Source]]:
    """The user's database (``path``, else where it always is) if there is one, and the shipped one.

    Raises :class:`~kdsl.errors.StoreError` for a database that is there and cannot be read.
    """
    path = path or sqlite.default_path()
    if not path.exists():
        yield [shipped()]
        return
    link = sqlite.connect(path, write=False)
    try:
        with sqlite.guard(path):
            started = not sqlite.is_empty(link)
        yield [DatabaseSource(link, path), shipped()] if started else [shipped()]
    finally:
        link.close()
