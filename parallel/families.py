"""Plans of each family, for given degrees.  What to choose among them is `chooser`'s matter.

Every function returns a `Plan` that passes its `check`, for any heads, lengths and ranks: more
ranks than heads or rows leave some without work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdsl.parallel import partition
from kdsl.parallel.mesh import Mesh
from kdsl.parallel.plan import Delivery, Panel, Plan, RankPlan
from kdsl.parallel.work import BlockWork, Longs, Runs


def ulysses(work: BlockWork, world: int, *, owner: Longs | None = None) -> Plan:
    """A: whole heads, as many on a rank as balance asks for.

    ``owner`` is the rank of each head; by default `partition.lpt_swap` with free counts.
    """
    if owner is None:
        owner = partition.lpt_swap(work.heads, world)
    every: Runs = ((0, work.shape.rows),)
    held: list[list[int]] = [[] for _ in range(world)]
    for head, rank in enumerate(owner.tolist()):
        held[rank].append(head)
    ranks = tuple(_panel(heads, every) for heads in held)
    return Plan("ulysses", work.shape, Mesh(world), ranks)


def rows(
    work: BlockWork,
    mesh: Mesh,
    *,
    owner: Longs | None = None,
    delivery: Delivery = "all",
    slack: float = 0.01,
) -> Plan:
    """C: heads over Ulysses groups, rows over their members; keys are gathered, none are passed on.

    ``mesh.ring`` ranks share a set of heads (with ``Mesh(1, world)`` all heads).  Rows are cut into
    contiguous runs by work, at most ``slack`` above the best, as near to equal counts as that
    allows: so most rows stay where they live.
    """
    shape = work.shape
    owner = _heads(work, mesh) if owner is None else owner
    ranks: list[RankPlan] = [()] * mesh.world
    near = partition.even_cuts(shape.rows, mesh.ring)
    for u in range(mesh.ulysses):
        heads = np.flatnonzero(owner == u)
        at = partition.cuts(work.rows[heads].sum(axis=0), mesh.ring, near, slack)
        for r in range(mesh.ring):
            ranks[mesh.rank_of(u, r)] = _panel(heads, _run(at[r], at[r + 1]))
    return Plan("rows", shape, mesh, tuple(ranks), delivery)


def ring(
    work: BlockWork,
    mesh: Mesh,
    *,
    owner: Longs | None = None,
    balanced: bool = True,
    slack: float = 0.01,
) -> Plan:
    """D: heads over Ulysses groups, rows and keys over rings; keys go around.

    Each ring cuts its own rows by the work of its own heads; without ``balanced`` all have equal
    counts, as plain USP.  Keys are cut into equal counts: their chunks stay where they live.
    """
    shape = work.shape
    owner = _heads(work, mesh) if owner is None else owner
    ranks: list[RankPlan] = [()] * mesh.world
    chunks: list[Runs] = [()] * mesh.world
    near = partition.even_cuts(shape.rows, mesh.ring)
    columns = partition.even_cuts(shape.columns, mesh.ring)
    for u in range(mesh.ulysses):
        heads = np.flatnonzero(owner == u)
        at = near
        if balanced:
            at = partition.cuts(work.rows[heads].sum(axis=0), mesh.ring, near, slack)
        for r in range(mesh.ring):
            rank = mesh.rank_of(u, r)
            ranks[rank] = _panel(heads, _run(at[r], at[r + 1]))
            chunks[rank] = _run(columns[r], columns[r + 1])
    return Plan("mesh", shape, mesh, tuple(ranks), "ring", tuple(chunks))


def plain(work: BlockWork, mesh: Mesh) -> Plan:
    """Plain Ulysses x ring (USP): equal counts of neighbouring heads, rows and keys."""
    owner = partition.contiguous(work.heads, mesh.ulysses)
    if mesh.ring == 1:
        return ulysses(work, mesh.world, owner=owner)
    return ring(work, mesh, owner=owner, balanced=False)


def _heads(work: BlockWork, mesh: Mesh) -> Longs:
    return partition.lpt_swap(work.heads, mesh.ulysses)


def _panel(heads: Longs | Sequence[int], runs: Runs) -> RankPlan:
    chosen = tuple(int(h) for h in heads)
    return (Panel(chosen, runs),) if chosen and runs else ()


def _run(first: int, end: int) -> Runs:
    return ((int(first), int(end)),) if first < end else ()
