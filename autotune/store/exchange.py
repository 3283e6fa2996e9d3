"""Rows in and out of a database: JSONL files and other databases."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from kdsl.autotune.store.database import ImportReport, Store
from kdsl.errors import StoreError
from kdsl.runtime.records import jsonl, sqlite
from kdsl.runtime.records.form import Row
from kdsl.runtime.records.rows import TABLES


def export_jsonl(store: Store, path: Path | str, *, device: str | None = None) -> int:
    """Write the rows of ``store`` to a JSONL file, sorted and in one step; returns how many.

    With ``device`` only the measurements on that GPU and what they refer to. Free text was
    scrubbed when it was stored, hosts and cards have pseudonyms: see :mod:`.scrub`.
    """
    path, rows = Path(path), list(store.rows(device=device))
    try:
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="ascii", newline="\n") as stream:
                stream.writelines(jsonl.write(rows))
            Path(draft).chmod(0o644)
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error
    return len(rows)


def import_jsonl(store: Store, *paths: Path | str) -> ImportReport:
    """Add the rows of JSONL files to ``store``; what cannot be used is reported and skipped."""
    rows: list[tuple[str, Row]] = []
    problems: list[str] = []
    for path in map(Path, paths):
        try:
            with path.open("rb") as stream:
                for number, found in jsonl.read(stream, path.name):
                    if isinstance(found, Row):
                        rows.append((f"{path.name}:{number}", found))
                    else:
                        problems.append(str(found))
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    report = store.insert(rows)
    return replace(report, problems=(*problems, *report.problems))


def merge(store: Store, path: Path | str) -> ImportReport:
    """Add the rows of another database file to ``store``; the other one stays as it is."""
    path = Path(path)
    if not path.exists():
        raise StoreError(f"{path} is not there")
    link = sqlite.connect(path, write=False)
    try:
        with sqlite.guard(path):
            rows = [
                (f"{path.name}, {table} {values['id'][:8]}", sqlite.from_columns(table, values))
                for table in TABLES
                if not sqlite.is_empty(link)
                for values in link.execute(f"SELECT * FROM {table}")
            ]
    finally:
        link.close()
    return store.insert(rows)
