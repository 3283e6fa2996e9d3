"""Rows from files: JSONL, databases, or what a user's builds look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from kdsl.errors import StoreError
from kdsl.runtime.records import MemorySource, Run, Workload, default_path, jsonl, sqlite
from kdsl.runtime.records.form import Row
from kdsl.runtime.records.rows import TABLES


@dataclass(frozen=True)
class Held:
    """Rows in memory. ``problems`` are lines that could not be used."""

    source: MemorySource
    workloads: tuple[Workload, ...]
    runs: tuple[Run, ...]
    problems: tuple[str, ...] = ()

    @staticmethod
    def of(rows: Iterable[Row], problems: Iterable[str] = ()) -> Held:
        """From rows in any order, each counted once."""
        unique = {row.id: row for row in rows}
        ordered = [unique[row_id] for row_id in sorted(unique)]
        workloads = tuple(row for row in ordered if isinstance(row, Workload))
        runs = tuple(row for row in ordered if isinstance(row, Run))
        return Held(MemorySource(ordered), workloads, runs, tuple(problems))


def read(paths: Sequence[Path] = (), storage: Path | None = None, *, own: bool = True) -> Held:
    """The rows of JSONL files and databases; without any those of the user's database (``storage``)
    and the shipped ones, or without ``own`` the shipped ones alone.

    StoreError for a file that cannot be read at all.
    """
    rows: list[Row] = []
    problems: list[str] = []
    usual = storage or default_path()
    databases = [p for p in paths if p.suffix != ".jsonl"]
    if not paths and own and usual.exists():
        databases = [usual]
    texts: list[Traversable] = [p for p in paths if p.suffix == ".jsonl"]
    for text in texts if paths else shipped_files():
        for found in _lines(text):
            if isinstance(found, Row):
                rows.append(found)
            else:
                problems.append(str(found))
    for path in databases:
        rows += _database(path)
    return Held.of(rows, problems)


def shipped_files() -> list[Traversable]:
    """The JSONL files that came with the library."""
    try:
        folder = files("kdsl.tuning_db")
    except ModuleNotFoundError:
        return []
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".jsonl")]
    return sorted(found, key=lambda entry: entry.name)


def _lines(text: Traversable) -> Iterator[Row | jsonl.Problem]:
    try:
        with text.open("rb") as stream:
            yield from (found for _, found in jsonl.read(stream, text.name))
    except OSError as error:
        raise StoreError(f"{text} cannot be read: {error.strerror}") from error


def _database(path: Path) -> Iterator[Row]:
    if not path.exists():
        raise StoreError(f"{path} is not there", hint="a .jsonl file, or a database")
    link = sqlite.connect(path, write=False)
    try:
        with sqlite.guard(path):
            if sqlite.is_empty(link):
                return
            for table in TABLES:
                for values in link.execute(f"SELECT * FROM {table}"):
                    yield sqlite.from_columns(table, values)
    finally:
        link.close()
