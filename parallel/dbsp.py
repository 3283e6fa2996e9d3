"""E: db-SP's own placement (arXiv 2511.23113), as a baseline.

Heads by load to the least loaded Ulysses rank, equal counts; then rows and, by themselves, columns
of blocks to the least loaded chunk of the ring, equal counts, with a bonus for staying put.  One
order of rows and columns serves every ring: loads are summed over all heads.
"""

from __future__ import annotations

import numpy as np

from kdsl.parallel import partition
from kdsl.parallel.mesh import Mesh
from kdsl.parallel.plan import Panel, Plan, runs_of
from kdsl.parallel.work import BlockWork, Longs

BONUS = 2.0
"""Their default: a block's own chunk counts as lighter by twice the block's load."""
REPLAN = 1.10
"""They keep the plan of the step before while its imbalance ratio stays at or below this."""


def dbsp(work: BlockWork, mesh: Mesh, *, bonus: float = BONUS) -> Plan:
    """Their plan for a mesh.  Where heads or blocks do not divide, counts differ by one at most:
    theirs would stop there, or fill up with empty blocks, which is the same."""
    shape = work.shape
    cap = -(-shape.heads // mesh.ulysses)
    owner = partition.lpt(work.heads, mesh.ulysses, cap)
    every: tuple[Longs, ...] = (np.arange(shape.rows),)
    columns: tuple[Longs, ...] = (np.arange(shape.columns),)
    if mesh.ring > 1:
        by_row = work.rows.sum(axis=0)
        by_column = work.by_column.sum(axis=0, dtype=np.float64).astype(np.int64)
        row_owner = stay_put(by_row, mesh.ring, bonus)
        column_owner = stay_put(by_column, mesh.ring, bonus)
        every = tuple(np.flatnonzero(row_owner == r) for r in range(mesh.ring))
        columns = tuple(np.flatnonzero(column_owner == r) for r in range(mesh.ring))
    ranks = []
    for rank in range(mesh.world):
        heads = tuple(np.flatnonzero(owner == mesh.u_of(rank)).tolist())
        runs = runs_of(every[mesh.r_of(rank)])
        ranks.append((Panel(heads, runs),) if heads and runs else ())
    if mesh.ring == 1:
        return Plan("dbsp", shape, mesh, tuple(ranks))
    chunks = tuple(runs_of(columns[mesh.r_of(p)]) for p in range(mesh.world))
    return Plan("dbsp", shape, mesh, tuple(ranks), "ring", chunks)


def stay_put(weights: Longs, parts: int, bonus: float) -> Longs:
    """Heaviest first to the lightest chunk with room, its own taken as lighter by bonus x weight.

    Equal counts: blocks of no weight fill up the last chunk to a multiple of the chunks, and are
    dropped at the end.
    """
    size = -(-len(weights) // parts)
    padded = np.zeros(size * parts, np.int64)
    padded[: len(weights)] = weights
    order = np.argsort(-padded, kind="stable").tolist()
    held, count = [0.0] * parts, [0] * parts
    owner = np.empty(len(padded), np.int64)
    for item in order:
        own, weight = item // size, int(padded[item])
        best, least = -1, float("inf")
        for part in range(parts):
            if count[part] == size:
                continue
            score = held[part] - (bonus * weight if part == own else 0.0)
            if score < least:
                best, least = part, score
        owner[item] = best
        held[best] += weight
        count[best] += 1
    return owner[: len(weights)]
