"""Rows in and out of a database: JSONL files and other databases.

Memory is bounded whatever the size of a file: a page of rows is held at a time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kdsl.autotune.store.database import PAGE, REFERENCES, ImportReport, Store
from kdsl.autotune.store.scrub import leaks
from kdsl.errors import StoreError
from kdsl.runtime.records import Place, jsonl, tables
from kdsl.runtime.records.form import Row
from kdsl.runtime.records.link import is_server
from kdsl.runtime.records.rows import TABLES


class Exported(NamedTuple):
    """How many rows were written, and how many kept back because they name a host or a password."""

    rows: int
    kept_back: int


def export_jsonl(store: Store, path: Path | str, *, device: str | None = None) -> Exported:
    """Write the rows of ``store`` to a JSONL file, sorted and in one step.

    With ``device`` only the measurements on that GPU and what they refer to. Free text was
    scrubbed when it was stored, hosts and cards have pseudonyms: see :mod:`.scrub`. Rows that came
    from elsewhere and say more are kept back, with what refers to them.
    """
    path = Path(path)
    back: set[str] = set()
    written = 0
    try:
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="ascii", newline="\n") as stream:
                stream.write(jsonl.HEAD)
                with store.snapshot():
                    for row in _harmless(store.rows(device=device), back):
                        stream.write(row.line() + "\n")
                        written += 1
            Path(draft).chmod(0o644)
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error
    return Exported(written, len(back))


def _harmless(rows: Iterable[Row], back: set[str]) -> Iterator[Row]:
    for row in rows:
        refers = {getattr(row, name, "") for name in (*REFERENCES, "closes", "part_of")}
        if leaks(row) or refers & back:
            back.add(row.id)
        else:
            yield row


def import_jsonl(store: Store, *paths: Path | str) -> ImportReport:
    """Add the rows of JSONL files to ``store``; what cannot be used is reported and skipped.

    Rows are added by the page, so that a kill leaves a part of them, which does no harm: the rest
    is added the next time.
    """
    report = ImportReport(0, 0)
    for measurements in (False, True):  # referents may stand behind those who refer to them
        for path in map(Path, paths):
            report += _paged(store, _read(path, measurements))
    return report


def _read(path: Path, measurements: bool) -> Iterator[tuple[str, Row] | str]:
    """Rows with their places, or what is wrong with a line; of the tables that are asked for."""
    if not path.is_file():
        what = "is not there" if not path.exists() else "is no file of rows"
        raise StoreError(f"{path} {what}", hint="a JSONL file, as export writes it")
    try:
        with path.open("rb") as stream:
            for number, found in jsonl.read_raw(stream, path.name):
                if isinstance(found, jsonl.Problem):
                    if not measurements:
                        yield str(found)
                elif (found.table == "measurement") == measurements:
                    try:
                        yield f"{path.name}:{number}", found.row()
                    except StoreError as error:
                        yield str(jsonl.Problem(path.name, number, error.what[:300]))
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def _paged(store: Store, found: Iterable[tuple[str, Row] | str]) -> ImportReport:
    report, page = ImportReport(0, 0), list[tuple[str, Row]]()
    for item in found:
        if isinstance(item, str):
            report += ImportReport.skip(item)
            continue
        page.append(item)
        if len(page) >= PAGE:
            report += store.insert(page)
            page.clear()
    return report + store.insert(page)


def merge(store: Store, place: Place) -> ImportReport:
    """Add the rows of another database, or of a JSONL file, to ``store``: a union of sets.

    The other one stays as it is. A row that is not what its id says is a problem and is skipped.
    """
    if is_jsonl(place):
        return import_jsonl(store, place)
    with reading(place) as other, other.snapshot():
        return _paged(store, _stored(other))


def _stored(store: Store) -> Iterator[tuple[str, Row] | str]:
    for table in TABLES:
        for values in store.values(table):
            said = str(values["id"])
            where = f"{store.name}, {table} {said[:8]}"
            try:
                row = tables.from_columns(table, values)
            except (StoreError, ValueError) as error:
                yield f"{where}: {error}"[:300]
                continue
            yield (where, row) if row.id == said else f"{where}: is not what its id says"


def is_jsonl(place: Place) -> bool:
    """Whether a place is a file of text."""
    return not is_server(place) and Path(place).suffix == ".jsonl"


@contextmanager
def reading(place: Place) -> Iterator[Store]:
    """A database to read, or a JSONL file as one: its rows in a temporary database.

    Raises :class:`~kdsl.errors.StoreError` for what is not there, and for a file with lines that
    cannot be used.
    """
    if not is_jsonl(place):
        if not is_server(place) and not Path(place).exists():
            raise StoreError(f"{place} is not there")
        with Store(place, write=False) as store:
            yield store
        return
    with tempfile.TemporaryDirectory(prefix="kdsl-") as folder, Store(Path(folder, "db")) as store:
        report = import_jsonl(store, place)
        if report.skipped:
            what = f"{place} has {report.skipped} lines that cannot be used"
            raise StoreError(what, where=report.problems[0])
        yield store
