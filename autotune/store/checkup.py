"""Is a database sound? Every row is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from kdsl.autotune.store.database import REFERENCES, Store
from kdsl.autotune.store.scrub import leaks
from kdsl.errors import StoreError
from kdsl.runtime.records import Trial, ranked, tables
from kdsl.runtime.records.link import Symptom
from kdsl.runtime.records.rows import SCHEMA_VERSION, TABLES

_SHOWN = 3


def examine(store: Store) -> Iterator[Symptom]:
    """What is right and what is wrong with a database, which may be open to read alone."""
    yield from store.link.health()
    yield _version(store)
    with store.snapshot():
        yield _rows(store)
        yield _references(store)
        yield _secrets(store)
        yield _order(store)
        yield _runs(store)


def _version(store: Store) -> Symptom:
    version = store.version
    note = "" if version == SCHEMA_VERSION else f"; it becomes {SCHEMA_VERSION} when next written"
    return Symptom("schema", True, f"version {version}{note}")


def _rows(store: Store) -> Symptom:
    """Ids are hashes of content, so no row can be changed unnoticed."""
    wrong, counts = [], dict.fromkeys(TABLES, 0)
    for table in TABLES:
        for values in store.values(table):
            counts[table] += 1
            try:
                sound = tables.from_columns(table, values).id == values["id"]
            except (StoreError, ValueError, TypeError):
                sound = False
            if not sound:
                wrong.append(f"{table} {str(values['id'])[:8]}")
    if wrong:
        return Symptom("rows", False, f"{len(wrong)} are not what their ids say: {_some(wrong)}")
    return Symptom("rows", True, ", ".join(f"{n} {table}" for table, n in counts.items()))


def _references(store: Store) -> Symptom:
    dangling = []
    for column, table in REFERENCES.items():
        found = store.link.fetch(
            f"SELECT m.id FROM measurement m LEFT JOIN {table} r ON r.id = m.{column} "
            "WHERE r.id IS NULL"
        )
        dangling += [f"measurement {row['id'][:8]} to a {table}" for row in found]
    if dangling:
        return Symptom("referents", False, f"{len(dangling)} are missing: {_some(dangling)}")
    return Symptom("referents", True, "all there")


def _secrets(store: Store) -> Symptom:
    naming = []
    for table in TABLES:
        for values in store.values(table):
            try:
                if leaks(tables.from_columns(table, values)):
                    naming.append(f"{table} {values['id'][:8]}")
            except (StoreError, ValueError, TypeError):
                continue  # reported already
    if naming:
        said = f"{len(naming)} rows name a host, a password or a home: {_some(naming)}"
        return Symptom("secrets", False, f"{said}; an export keeps them back")
    return Symptom("secrets", True, "none found")


def _order(store: Store) -> Symptom:
    """The view and the function that ranks in a look-up must agree."""
    if store.version < SCHEMA_VERSION:
        return Symptom("bests", True, "the view is an older version's, and look-ups do not use it")
    bests, source = store.bests(), store.source
    condemned = source.condemned()
    differing = []
    for values in store.values("workload"):
        groups: defaultdict[tuple[str, str], list[Trial]] = defaultdict(list)
        try:
            for trial in source.trials(values["id"]):
                groups[trial.measurement.device_id, trial.measurement.toolchain_id].append(trial)
        except (StoreError, IndexError, ValueError):
            continue  # reported already
        for (device, tools), trials in groups.items():
            for kind in ("measured", "predicted"):
                of_kind = [
                    t
                    for t in trials
                    if t.measurement.kind == kind or t.measurement.status == "wrong"
                ]
                first = [s.trial.measurement.id for s in ranked(of_kind, condemned)][:1]
                said = bests.get((values["id"], device, tools, kind))
                if first != ([said.measurement_id] if said else []):
                    differing.append(f"{values['op']} {values['id'][:8]}")
    if differing:
        return Symptom(
            "bests", False, f"{len(differing)} differ from the rules: {_some(differing)}"
        )
    return Symptom("bests", True, f"{len(bests)} groups, each ranked as the rules say")


def _runs(store: Store) -> Symptom:
    text = (
        "SELECT COUNT(*) AS n FROM run r WHERE r.closes = '' "
        "AND NOT EXISTS (SELECT 1 FROM run c WHERE c.closes = r.id AND c.complete = 1)"
    )
    (row,) = store.link.fetch(text)
    return Symptom(
        "runs", True, f"{row['n']} cut off or still going on; --resume goes on with them"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
