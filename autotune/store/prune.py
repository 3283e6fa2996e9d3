"""Take old losers out of a database. What any view answers stays the same.

This is the one place where rows are removed. It removes outcomes that are old and neither wrong
(those condemn a binary for good), nor of a default, nor of a candidate that leads its group: the
first places, and everything that is tied with the best. What they alone referred to goes with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from kdsl.autotune.store.database import REFERENCES, Store
from kdsl.errors import StoreError
from kdsl.runtime.records.rows import TABLES

_GROUP = ("workload_id", "device_id", "toolchain_id", "kind", "candidate_id")


class Pruned(NamedTuple):
    """What went, or would go: rows by table, and the outcomes among them by status."""

    rows: Mapping[str, int]
    statuses: Mapping[str, int]
    kept: int
    """Outcomes that stay."""


class _Trial(Exception):
    """Takes a trial back."""


def prune(store: Store, *, older_days: float, keep: int, apply: bool) -> Pruned:
    """Remove outcomes that are older than ``older_days`` and behind the first ``keep`` places.

    Without ``apply`` everything is tried and taken back. StoreError, and nothing is removed, if a
    best would change.
    """
    if keep < 1 or older_days < 0:
        raise StoreError("prune keeps 1 place or more, and outcomes of 0 days or more")
    moment = datetime.now(UTC) - timedelta(days=min(older_days, 36500.0))
    cutoff = moment.isoformat(timespec="seconds")
    found: list[Pruned] = []
    try:
        with store.link.alone():
            before = store.bests(), set(store.source.condemned())
            found.append(_remove(store, cutoff, keep))
            if (store.bests(), set(store.source.condemned())) != before:
                raise StoreError("removing these rows would change a best", where=store.name)
            if not apply:
                raise _Trial
    except _Trial:
        return found[0]
    store.link.compact()
    return found[0]


def _remove(store: Store, cutoff: str, keep: int) -> Pruned:
    text = (
        f"SELECT {', '.join(_GROUP)} FROM standing WHERE place <= ? OR tied = 1 OR ever_default = 1"
    )
    leading = {tuple(row.values()) for row in store.link.fetch(text, (keep,))}
    referents: dict[str, set[str]] = {column: set() for column in REFERENCES}
    statuses: Counter[str] = Counter()
    doomed, kept = [], 0
    for row in store.values("measurement"):
        stays = row["created"] >= cutoff or row["status"] == "wrong" or row["is_default"]
        if stays or tuple(row[name] for name in _GROUP) in leading:
            kept += 1
            continue
        doomed.append(row["id"])
        statuses[row["status"]] += 1
        for column, ids in referents.items():
            ids.add(row[column])
    gone: Counter[str] = Counter()
    for row_id in doomed:
        gone["measurement"] += store.link.run("DELETE FROM measurement WHERE id = ?", (row_id,))
    for column, table in REFERENCES.items():
        for row_id in sorted(referents[column]):
            if table == "run":
                gone[table] += _remove_run(store, row_id)
            else:
                gone[table] += store.link.run(
                    f"DELETE FROM {table} WHERE id = ? AND NOT EXISTS "
                    f"(SELECT 1 FROM measurement WHERE {column} = ?)",
                    (row_id, row_id),
                )
    return Pruned({t: gone[t] for t in TABLES if gone[t]}, dict(statuses), kept)


def _remove_run(store: Store, row_id: str) -> int:
    """A run that no outcome names any more, with the row that closes it; its whole with its last
    part."""
    found = store.link.fetch("SELECT part_of FROM run WHERE id = ?", (row_id,))
    if not found:
        return 0
    for text in (
        "SELECT 1 FROM measurement WHERE run_id = ?",
        "SELECT 1 FROM run WHERE part_of = ? AND closes = ''",
    ):
        if store.link.fetch(f"{text} LIMIT 1", (row_id,)):
            return 0
    gone = store.link.run("DELETE FROM run WHERE id = ? OR closes = ?", (row_id, row_id))
    whole = found[0]["part_of"]
    return gone + (_remove_run(store, whole) if whole else 0)
