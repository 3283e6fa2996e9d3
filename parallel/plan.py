"""A plan: which rank computes which rows of which heads, and where the keys come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, reading
from kdsl.parallel.mesh import Mesh
from kdsl.parallel.work import BlockWork, Longs, Runs, Shape
from kdsl.specs import digest
from kdsl.specs.common import whole

Family = Literal["ulysses", "split", "rows", "mesh", "dbsp"]
Delivery = Literal["all", "needed", "ring"]
FAMILIES: tuple[Family, ...] = ("ulysses", "split", "rows", "mesh", "dbsp")
"""A whole heads, B heads of which some are cut, C rows of all heads with gathered keys, D a mesh
with a ring, E db-SP's own placement."""
DELIVERIES: tuple[Delivery, ...] = ("all", "needed", "ring")


@dataclass(frozen=True, slots=True)
class Panel:
    """Query heads x rows of blocks that one rank computes in one kernel call.

    Ascending query heads; ``rows`` are runs ``[first, end)`` of row blocks, in stored order.
    """

    heads: tuple[int, ...]
    rows: Runs

    @property
    def tiles(self) -> int:
        """Rows of blocks times heads."""
        return len(self.heads) * sum(end - first for first, end in self.rows)


RankPlan = tuple[Panel, ...]
"""What one rank computes; no panel where it has nothing to do."""


@dataclass(frozen=True)
class Plan:
    """A way to compute one attention on ``mesh.world`` ranks.  The same on every rank.

    ``ranks[p]`` are the panels of rank p; all panels together hold every (head, row block) exactly
    once, and the rank that holds one computes its whole softmax, so no partial results travel
    between ranks.  ``delivery`` says which keys and values (always of the panels' key heads only,
    see `key_heads`) come to a rank before it starts:

    - ``"all"``: every key block;
    - ``"needed"``: the key blocks that its rows of that key head visit (`BlockWork` with blocks);
    - ``"ring"``: the key blocks ``chunks[p]``; then the ranks of a ring, which all have the same
      heads, pass their chunks on: in step s rank p works on ``chunks[mesh.source(p, s)]`` and
      merges its results.  The chunks of a ring hold every key block exactly once.

    ``predicted_us`` is the time that chose the plan; it counts for neither `hash` nor equality.
    """

    family: Family
    shape: Shape
    mesh: Mesh
    ranks: tuple[RankPlan, ...]
    delivery: Delivery = "all"
    chunks: tuple[Runs, ...] = ()
    predicted_us: float | None = field(default=None, compare=False)

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.mesh.world

    def heads_of(self, rank: int) -> tuple[int, ...]:
        """Query heads that a rank works on, ascending, each once."""
        return tuple(sorted({h for panel in self.ranks[rank] for h in panel.heads}))

    def key_heads(self, rank: int) -> tuple[int, ...]:
        """Key heads that a rank is given, ascending: those its query heads read."""
        return self.shape.kv_of(self.heads_of(rank))

    def keys_of(self, rank: int, work: BlockWork | None = None) -> tuple[Longs, ...]:
        """Key blocks that come to a rank before it starts, ascending, for each of `key_heads`.

        ``work`` with blocks is asked for by delivery ``"needed"``.  A ring's later chunks come
        from the neighbour and are not among them.
        """
        kv_heads = self.key_heads(rank)
        if self.delivery == "ring":
            return (indices(self.chunks[rank]),) * len(kv_heads)
        if self.delivery == "all":
            return (np.arange(self.shape.columns, dtype=np.int64),) * len(kv_heads)
        if work is None:
            raise InputError(
                "which keys are needed depends on the mask", hint="work=BlockWork.of(...)"
            )
        found = needed(self.ranks[rank], work)
        return tuple(found[kv] for kv in kv_heads)

    def loads(self, work: BlockWork) -> Longs:
        """Kept blocks that each rank computes."""
        out = np.zeros(self.world, np.int64)
        cut = np.zeros((self.shape.heads, self.shape.rows + 1), np.int64)
        np.cumsum(work.rows, axis=1, out=cut[:, 1:])
        for rank, panels in enumerate(self.ranks):
            for panel in panels:
                heads = list(panel.heads)
                runs = np.asarray(panel.rows, np.int64).reshape(-1, 2)
                out[rank] += int((cut[heads][:, runs[:, 1]] - cut[heads][:, runs[:, 0]]).sum())
        return out

    def cells(self, work: BlockWork) -> Longs:
        """Kept blocks of each rank in each step, int64 ``[world, steps]``.

        One step unless there is a ring, which needs a ``work`` that knows its blocks.
        """
        if self.delivery != "ring":
            return self.loads(work)[:, None]
        out = np.zeros((self.world, self.mesh.ring), np.int64)
        for u in range(self.mesh.ulysses):
            ring = self.mesh.ring_group(self.mesh.rank_of(u, 0))
            chunk_of = np.zeros((self.shape.columns, len(ring)), np.float32)
            for r, rank in enumerate(ring):
                chunk_of[indices(self.chunks[rank]), r] = 1
            by_heads: dict[tuple[int, ...], npt.NDArray[np.float32]] = {}
            for rank in ring:
                for panel in self.ranks[rank]:
                    if panel.heads not in by_heads:
                        by_heads[panel.heads] = work.grouped(panel.heads) @ chunk_of
                    rows = by_heads[panel.heads][indices(panel.rows)]
                    by_chunk = rows.sum(axis=0, dtype=np.float64)
                    for step in range(len(ring)):
                        source = self.mesh.r_of(self.mesh.source(rank, step))
                        out[rank, step] += round(float(by_chunk[source]))
        return out

    def check(self, work: BlockWork | None = None) -> None:
        """InputError unless every tile is computed exactly once and every ring can turn.

        ``work`` must have the plan's shape.
        """
        if work is not None and work.shape != self.shape:
            raise InputError(
                "the plan was made for other sizes", where=f"{self.shape} and {work.shape}"
            )
        if self.family not in FAMILIES or self.delivery not in DELIVERIES:
            raise InputError(f"a plan of family {self.family!r}, delivery {self.delivery!r}")
        if len(self.ranks) != self.world:
            raise InputError(f"panels of {len(self.ranks)} ranks", hint=f"{self.world} ranks")
        times = np.zeros((self.shape.heads, self.shape.rows), np.int64)
        for rank, panels in enumerate(self.ranks):
            for panel in panels:
                _check_panel(panel, self.shape, rank)
                for first, end in panel.rows:
                    times[list(panel.heads), first:end] += 1
        if (times != 1).any():
            head, row = (int(n) for n in np.argwhere(times != 1)[0])
            raise InputError(
                f"row block {row} of head {head} is computed {int(times[head, row])} times",
                hint="exactly once, over all ranks",
            )
        self._check_chunks()

    def _check_chunks(self) -> None:
        if self.delivery != "ring":
            if self.chunks:
                raise InputError(f"chunks of keys with delivery {self.delivery!r}")
            return
        if len(self.chunks) != self.world:
            raise InputError(f"chunks of {len(self.chunks)} ranks", hint=f"{self.world} ranks")
        for u in range(self.mesh.ulysses):
            ring = self.mesh.ring_group(self.mesh.rank_of(u, 0))
            times = np.zeros(self.shape.columns, np.int64)
            for rank in ring:
                _check_runs(self.chunks[rank], self.shape.columns, f"chunk of rank {rank}")
                times[indices(self.chunks[rank])] += 1
            if (times != 1).any():
                column = int(np.argmax(times != 1))
                raise InputError(
                    f"key block {column} is held {int(times[column])} times in ring {ring}",
                    hint="exactly once",
                )
            held = {self.key_heads(rank) for rank in ring} - {()}
            if len(held) > 1:
                raise InputError(
                    f"the ranks of ring {ring} read other key heads: {sorted(held)}",
                    hint="one set of heads a ring, since its keys go all around",
                )

    def ring_heads(self, rank: int) -> tuple[int, ...]:
        """Key heads that travel around a rank's ring, also past ranks with nothing to compute."""
        for other in self.mesh.ring_group(rank):
            if self.ranks[other]:
                return self.key_heads(other)
        return ()

    def to_json(self) -> dict[str, Any]:
        """The canonical form, without the prediction."""
        return {
            "family": self.family,
            "shape": self.shape.to_json(),
            "mesh": self.mesh.to_json(),
            "ranks": [[[list(p.heads), _listed(p.rows)] for p in panels] for panels in self.ranks],
            "delivery": self.delivery,
            "chunks": [_listed(runs) for runs in self.chunks],
        }

    @staticmethod
    @reading("plan")
    def from_json(value: Mapping[str, Any]) -> Plan:
        """The plan written by `to_json`; checked."""
        whole(value, {"family", "shape", "mesh", "ranks", "delivery", "chunks"}, "plan")
        plan = Plan(
            value["family"],
            Shape.from_json(value["shape"]),
            Mesh.from_json(value["mesh"]),
            tuple(
                tuple(Panel(tuple(heads), _pairs(rows)) for heads, rows in panels)
                for panels in value["ranks"]
            ),
            value["delivery"],
            tuple(_pairs(runs) for runs in value["chunks"]),
        )
        plan.check()
        return plan

    @cached_property
    def hash(self) -> str:
        """Identity: equal on ranks that agree.  Compare it before the first call."""
        return digest(self.to_json())


def needed(panels: RankPlan, work: BlockWork) -> dict[int, Longs]:
    """Key blocks that some panels visit, ascending, by key head: the union over their rows."""
    shape = work.shape
    found: dict[int, npt.NDArray[np.uint8]] = {}
    for panel in panels:
        for head in panel.heads:
            bits = work.bits_of(head)
            for first, end in panel.rows:
                seen = np.bitwise_or.reduce(bits[first:end], axis=0)
                kv = head // shape.group
                found[kv] = found[kv] | seen if kv in found else seen
    return {
        kv: np.flatnonzero(np.unpackbits(bits, count=shape.columns, bitorder="little")).astype(
            np.int64
        )
        for kv, bits in found.items()
    }


def indices(runs: Runs) -> Longs:
    """Every block of some runs, ascending."""
    if len(runs) == 1:
        return np.arange(*runs[0], dtype=np.int64)
    parts = [np.arange(first, end, dtype=np.int64) for first, end in runs]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def runs_of(blocks: npt.ArrayLike) -> Runs:
    """Runs that hold just these blocks, given in ascending order."""
    at = np.asarray(blocks, np.int64)
    if not at.size:
        return ()
    breaks = np.flatnonzero(np.diff(at) != 1) + 1
    firsts = at[np.concatenate([[0], breaks])].tolist()
    ends = (at[np.concatenate([breaks - 1, [len(at) - 1]])] + 1).tolist()
    return tuple(zip(firsts, ends, strict=True))


def _check_panel(panel: Panel, shape: Shape, rank: int) -> None:
    heads = panel.heads
    if (
        not heads
        or list(heads) != sorted(set(heads))
        or not 0 <= heads[0] <= heads[-1] < shape.heads
    ):
        raise InputError(
            f"heads {heads} in a panel of rank {rank}",
            hint=f"ascending heads below {shape.heads}, each once",
        )
    if not panel.rows:
        raise InputError(f"a panel without rows on rank {rank}", hint="no panel at all")
    _check_runs(panel.rows, shape.rows, f"panel of rank {rank}")


def _check_runs(runs: Sequence[tuple[int, int]], size: int, where: str) -> None:
    before = 0
    for first, end in runs:
        if not before <= first < end <= size:
            raise InputError(
                f"run [{first}, {end}) of {size} blocks after {before}",
                where=where,
                hint="ascending, disjoint runs, none empty",
            )
        before = end


def _listed(runs: Iterable[tuple[int, int]]) -> list[list[int]]:
    return [[first, end] for first, end in runs]


def _pairs(value: Iterable[Sequence[int]]) -> Runs:
    return tuple((first, end) for first, end in value)
