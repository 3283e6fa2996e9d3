"""What two databases have in common, and where their answers differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

from kdsl.autotune.store.database import Best, Store
from kdsl.runtime.records import Device, Toolchain, Workload, tables
from kdsl.runtime.records.rows import TABLES


class Counts(NamedTuple):
    """Rows of one table."""

    both: int
    only_a: int
    only_b: int


@dataclass(frozen=True)
class Disagreement:
    """A group whose best is another one in each, or that only one of them knows."""

    workload: Workload
    device: Device
    toolchain: Toolchain
    kind: str
    a: Best | None
    b: Best | None


@dataclass(frozen=True)
class Comparison:
    """Rows by table, the groups that both rank alike, and the others."""

    counts: Mapping[str, Counts]
    agreed: int
    disagreements: tuple[Disagreement, ...]

    @property
    def same(self) -> bool:
        """Whether both hold the same rows."""
        return not any(c.only_a or c.only_b for c in self.counts.values())


def compare(a: Store, b: Store) -> Comparison:
    """Compare two databases as they are at this moment."""
    with a.snapshot(), b.snapshot():
        counts = {}
        for table in TABLES:
            ours, theirs = ({row["id"] for row in _ids(s, table)} for s in (a, b))
            counts[table] = Counts(len(ours & theirs), len(ours - theirs), len(theirs - ours))
        bests = a.bests(), b.bests()
        differing = sorted(
            (
                key
                for key in bests[0] | bests[1]
                if not _alike(bests[0].get(key), bests[1].get(key))
            ),
            key=lambda key: (key not in bests[0], key not in bests[1], key),
        )
        found = tuple(_told((a, b), key, bests[0].get(key), bests[1].get(key)) for key in differing)
    return Comparison(counts, len(bests[0] | bests[1]) - len(found), found)


def _ids(store: Store, table: str) -> list[dict[str, str]]:
    return store.link.fetch(f"SELECT id FROM {table}")


def _alike(a: Best | None, b: Best | None) -> bool:
    return a is not None and b is not None and a.candidate_id == b.candidate_id


def _told(
    stores: tuple[Store, Store], key: tuple[str, str, str, str], a: Best | None, b: Best | None
) -> Disagreement:
    holder = stores[0] if a is not None else stores[1]
    referents = []
    for table, row_id in zip(("workload", "device", "toolchain"), key, strict=False):
        (values,) = holder.link.fetch(f"SELECT * FROM {table} WHERE id = ?", (row_id,))
        referents.append(tables.from_columns(table, values))
    workload, device, toolchain = referents
    return Disagreement(
        cast(Workload, workload), cast(Device, device), cast(Toolchain, toolchain), key[3], a, b
    )
