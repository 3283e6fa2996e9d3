"""What leads from one version of the schema to the next, on SQLite and PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MIGRATIONS: Mapping[int, Sequence[str]] = {
    # A run on several GPUs has a row for each, which names the whole.
    1: ("ALTER TABLE run ADD COLUMN part_of TEXT NOT NULL DEFAULT ''",),
    # Who was timed once is held against those that were timed again on a warm card: a view.
    2: (),
}
"""Statements by the version that they start from. A released one is never changed again.

Views are removed before the first and made anew behind the last."""
