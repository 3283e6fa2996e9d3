"""Rows to columns of the database's tables and back, and the statements that make the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib.resources import files
from typing import Any

from kdsl.runtime.records.form import Row, dumps
from kdsl.runtime.records.rows import TABLES


def statements(script: str) -> list[str]:
    """The statements of a .sql file, without comments."""
    lines = [line for line in script.splitlines() if not line.lstrip().startswith("--")]
    return [part.strip() for part in "\n".join(lines).split(";\n") if part.strip()]


def schema() -> list[str]:
    """The statements that make an empty database a tuning database."""
    return [*_script("schema.sql"), *views()]


def views() -> list[str]:
    """The statements that make the views."""
    return _script("views.sql")


def without_views() -> list[str]:
    """The statements that remove the views, those that rest on others first."""
    names = [line.split()[2] for line in views()]
    return [f"DROP VIEW IF EXISTS {name}" for name in reversed(names)]


def _script(name: str) -> list[str]:
    return statements(files("kdsl.runtime.records").joinpath(name).read_text() + "\n")


@cache
def kinds(table: str) -> dict[str, str]:
    """Types by column, the id aside."""
    return {spec.name: str(spec.type) for spec in fields(TABLES[table])}


def columns(row: Row) -> dict[str, Any]:
    """A row as values for its table, id included."""
    values: dict[str, Any] = {"id": row.id}
    for name, kind in kinds(row.table).items():
        value = getattr(row, name)
        if kind.startswith(("Mapping", "tuple")):
            value = dumps(value)
        values[name] = int(value) if kind == "bool" else value
    return values


def from_columns(table: str, values: Mapping[str, Any]) -> Row:
    """The row that :func:`columns` took apart.

    Columns that an older database lacks have their defaults.
    """
    content = {
        name: json.loads(values[name]) if kind.startswith(("Mapping", "tuple")) else values[name]
        for name, kind in kinds(table).items()
        if name in values
    }
    return TABLES[table](**content)
