"""Where a look-up reads: the user's database, and what was shipped with the library."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Protocol, cast

from kdsl.runtime.records import jsonl, tables
from kdsl.runtime.records.form import Row
from kdsl.runtime.records.link import Link, Place, connect, default_place, is_server
from kdsl.runtime.records.rows import (
    Candidate,
    Device,
    Measurement,
    Toolchain,
    Workload,
    from_content,
)
from kdsl.runtime.records.select import Trial


class Source(Protocol):
    """What a look-up needs of a store; it only reads."""

    def workloads(self, op: str, program: str | None = None) -> Iterable[Workload]:
        """Every workload of an operation, or of one program of it."""

    def trials(self, workload_id: str) -> Iterable[Trial]:
        """Every outcome for a workload, of both kinds and all statuses."""

    def condemned(self) -> Collection[str]:
        """Hashes of binaries that ever gave a wrong result."""


class MemorySource:
    """Rows in memory. A measurement that refers to nothing is left out.

    Rows of ``raw`` lines are made when they are asked for, under the ids that they claim.
    """

    def __init__(
        self,
        rows: Iterable[Row] = (),
        *,
        raw: Iterable[jsonl.Raw] = (),
        problems: Iterable[jsonl.Problem] = (),
    ) -> None:
        self.problems = tuple(problems)
        self._made: dict[str, Row] = {}
        self._raw: dict[str, jsonl.Raw] = {}
        self._of: defaultdict[str, list[str]] = defaultdict(list)
        self._condemned: set[str] = set()
        for row in rows:
            self._made[row.id] = row
            self._put(jsonl.Raw(row.table, row.id, row.content()))
        for line in raw:
            self._put(line if line.said_id else line._replace(said_id=line.row().id))

    def _put(self, line: jsonl.Raw) -> None:
        if line.said_id in self._raw:
            return
        self._raw[line.said_id] = line
        if line.table == "measurement":
            self._of[line.content.get("workload_id", "")].append(line.said_id)
            if line.content.get("status") == "wrong" and line.content.get("binary_hash"):
                self._condemned.add(line.content["binary_hash"])

    def _get(self, table: str, row_id: str) -> Row | None:
        if row_id not in self._raw or self._raw[row_id].table != table:
            return None
        if row_id not in self._made:
            line = self._raw[row_id]
            self._made[row_id] = from_content(line.table, line.content)
        return self._made[row_id]

    def workloads(self, op: str, program: str | None = None) -> list[Workload]:
        """Every workload of an operation, or of one program of it."""
        ids = [
            row_id
            for row_id, line in self._raw.items()
            if line.table == "workload"
            and line.content.get("op") == op
            and program in (None, line.content.get("program"))
        ]
        return [cast(Workload, self._get("workload", row_id)) for row_id in ids]

    def trials(self, workload_id: str) -> list[Trial]:
        """Every outcome for a workload."""
        found = []
        for row_id in self._of.get(workload_id, ()):
            row = cast(Measurement, self._get("measurement", row_id))
            candidate = self._get("candidate", row.candidate_id)
            device = self._get("device", row.device_id)
            toolchain = self._get("toolchain", row.toolchain_id)
            if candidate and device and toolchain:
                found.append(
                    Trial(
                        row,
                        cast(Candidate, candidate),
                        cast(Device, device),
                        cast(Toolchain, toolchain),
                    )
                )
        return found

    def condemned(self) -> set[str]:
        """Hashes of binaries that ever gave a wrong result."""
        return self._condemned


class DatabaseSource:
    """A tuning database behind an open connection, of a file or of a server."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._seen: dict[str, Row] = {}

    def _rows(self, table: str, **where: str) -> list[Row]:
        tests = " AND ".join(f"{name} = ?" for name in where)
        found = self._link.fetch(f"SELECT * FROM {table} WHERE {tests}", tuple(where.values()))
        return [tables.from_columns(table, row) for row in found]

    def _one(self, table: str, row_id: str) -> Row:
        if row_id not in self._seen:
            self._seen[row_id] = self._rows(table, id=row_id)[0]
        return self._seen[row_id]

    def workloads(self, op: str, program: str | None = None) -> list[Workload]:
        """Every workload of an operation, or of one program of it."""
        where = {"op": op} if program is None else {"op": op, "program": program}
        return cast(list[Workload], self._rows("workload", **where))

    def trials(self, workload_id: str) -> list[Trial]:
        """Every outcome for a workload."""
        found = cast(list[Measurement], self._rows("measurement", workload_id=workload_id))
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
        return {row["binary_hash"] for row in self._link.fetch(text, ("wrong", ""))}


@cache
def shipped() -> MemorySource:
    """The measurements that came with the library, read in place, once a process.

    Lines that cannot be used are in ``problems``.
    """
    lines: list[jsonl.Raw] = []
    problems: list[jsonl.Problem] = []
    try:
        folder = files("kdsl.tuning_db")
    except ModuleNotFoundError:
        return MemorySource()
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".jsonl"):
            with entry.open("rb") as stream:
                for _, found in jsonl.read_raw(stream, entry.name):
                    if isinstance(found, jsonl.Raw):
                        lines.append(found)
                    else:
                        problems.append(found)
    return MemorySource(raw=lines, problems=problems)


@contextmanager
def default_sources(place: Place | None = None) -> Iterator[list[Source]]:
    """The user's database (at ``place``, else where it always is) if it is there, and the shipped
    one.

    Raises :class:`~kdsl.errors.StoreError` for a database that is there and cannot be read.
    """
    place = default_place() if place is None else place
    if not is_server(place) and not Path(place).exists():
        yield [shipped()]
        return
    link = connect(place, write=False)
    try:
        yield [shipped()] if link.is_new() else [DatabaseSource(link), shipped()]
    finally:
        link.close()
