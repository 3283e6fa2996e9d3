"""Rows as text: one JSON object a line, sorted, so that a diff can be read and merged.

Nothing in a file is ever evaluated or unpickled, and no name in it becomes a path. A line that
cannot be used is reported with its number and skipped; the others count.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from kdsl.errors import StoreError
from kdsl.runtime.records.form import Row, dumps
from kdsl.runtime.records.rows import SCHEMA_VERSION, TABLES, from_content

LINE_LIMIT = 1 << 21
"""Bytes; a longer line is skipped without being held in memory."""


HEAD = dumps({"table": "meta", "schema_version": SCHEMA_VERSION}) + "\n"
"""The first line of a file."""


@dataclass(frozen=True)
class Problem:
    """A line that was skipped."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def write(rows: Iterable[Row]) -> Iterator[str]:
    """The lines of a file: the schema version, then the rows by table and id, each once."""
    yield HEAD
    order = list(TABLES)
    for row in sorted(set(rows), key=lambda r: (order.index(r.table), r.id)):
        yield row.line() + "\n"


class Raw(NamedTuple):
    """A line taken apart, its content not yet looked at."""

    table: str
    said_id: str
    content: dict[str, Any]

    def row(self) -> Row:
        """The row; raises :class:`~kdsl.errors.StoreError` if it is none, or not of that id."""
        row = from_content(self.table, self.content)
        if self.said_id not in ("", row.id):
            raise StoreError(f"{self.table}: content and id do not belong together")
        return row


def read(stream: IO[bytes], file: str) -> Iterator[tuple[int, Row | Problem]]:
    """Line numbers with their rows, or with what is wrong with the line.

    Raises :class:`~kdsl.errors.StoreError` for a file that a newer version wrote.
    """
    for number, found in read_raw(stream, file):
        try:
            yield number, found if isinstance(found, Problem) else found.row()
        except StoreError as error:
            yield number, Problem(file, number, error.what[:300])


def read_raw(stream: IO[bytes], file: str) -> Iterator[tuple[int, Raw | Problem]]:
    """Like :func:`read`, but leaves rows unmade and unchecked."""
    for number, line in enumerate(_lines(stream), start=1):
        if line is None:
            yield number, Problem(file, number, f"longer than {LINE_LIMIT} bytes")
            continue
        if not line.strip():
            continue
        try:
            content = json.loads(
                line.decode(), object_pairs_hook=_pairs, parse_constant=_no_constant
            )
            table, said = content.pop("table"), content.pop("id", "")
        except UnicodeDecodeError:
            yield number, Problem(file, number, "is not UTF-8")
        except (ValueError, RecursionError) as error:
            yield number, Problem(file, number, f"is not JSON as it should be: {error}"[:300])
        except (AttributeError, TypeError, KeyError):
            yield number, Problem(file, number, "is no JSON object that names its table")
        else:
            if table == "meta":
                check_version(content.get("schema_version"), file)
            elif isinstance(table, str) and isinstance(said, str):
                yield number, Raw(table, said, content)
            else:
                yield number, Problem(file, number, "names table or id by something else than text")


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    while raw := stream.readline(LINE_LIMIT):
        if len(raw) == LINE_LIMIT and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(LINE_LIMIT)
            yield None
        else:
            yield raw


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def check_version(version: Any, where: str) -> None:
    """Raise :class:`~kdsl.errors.StoreError` if ``version`` is newer than this code, or none."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise StoreError(
            f"no tuning database: schema version {str(version)[:20]!r}",
            where=where,
            hint="KDSL_DB=<the path of a tuning database, or of no file yet>",
        )
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"written by a newer kdsl: schema version {version}, this one reads {SCHEMA_VERSION}",
            where=where,
            hint="upgrade kdsl, or let KDSL_DB name another database",
        )
