"""How even a plan is, and how even it could be."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from kdsl.parallel import partition
from kdsl.parallel.mesh import Mesh
from kdsl.parallel.plan import Plan
from kdsl.parallel.timeline import ring_end
from kdsl.parallel.work import BlockWork, Longs


def rank_ratio(loads: Longs) -> float:
    """The fullest rank over the mean; 1 where there is nothing to do."""
    total = int(loads.sum())
    return float(Fraction(int(loads.max(initial=0)) * len(loads), total)) if total else 1.0


def imbalance_ratio(cells: Longs) -> float:
    """db-SP's sparse imbalance ratio (2511.23113): step by step the fullest rank, over the mean.

    ``cells``: kept blocks ``[ranks, steps]`` of any number of ranks and steps (`Plan.cells`): every
    remainder row counts.  It is the loss of a ring whose steps all ranks begin together.
    """
    total = int(cells.sum())
    return float(Fraction(int(cells.max(axis=0).sum()) * len(cells), total)) if total else 1.0


def imbalance_ratio_by_ring(cells: Longs, mesh: Mesh) -> float:
    """The same as their scripts count it: steps are waited for within each ring, then the slowest
    ring counts."""
    total = int(cells.sum())
    rings = [list(mesh.ring_group(mesh.rank_of(u, 0))) for u in range(mesh.ulysses)]
    slowest = max(int(cells[ring].max(axis=0).sum()) for ring in rings)
    return float(Fraction(slowest * len(cells), total)) if total else 1.0


def timeline_ratio(cells: Longs, mesh: Mesh) -> float:
    """The longest path through a ring that couples neighbours alone, over the mean load.

    A rank enters its next step when it and both neighbours have entered and it has finished the
    one before; passing keys on takes no time.
    """
    total = int(cells.sum())
    if not total:
        return 1.0
    ends = ring_end(cells.astype(np.float64), mesh, np.zeros_like(cells, np.float64))
    return float(ends.max() * len(cells) / total)


@dataclass(frozen=True)
class Bounds:
    """Loads that no plan's fullest rank is below, in kept blocks.

    ``mean`` holds always; ``rows`` where rows of blocks stay whole; ``heads`` where heads do.
    """

    mean: float
    rows: int
    heads: int


def bounds(work: BlockWork, world: int) -> Bounds:
    """Lower bounds of the fullest rank."""
    tallest = int(work.rows.max(initial=0))
    return Bounds(
        work.total / world,
        max(-(-work.total // world), tallest),
        partition.lower_bound(work.heads, world),
    )


def gap(plan: Plan, work: BlockWork) -> float:
    """The fullest rank over the least that any plan of its kind could reach; 1 is proven best.

    Families that keep heads whole on a single rank are held against `Bounds.heads`, others against
    `Bounds.rows`.
    """
    found = bounds(work, plan.world)
    whole = plan.mesh.ring == 1 and plan.family in ("ulysses", "dbsp", "mesh")
    least = found.heads if whole else found.rows
    return int(plan.loads(work).max()) / least if least else 1.0


def moved_rows(plan: Plan) -> float:
    """Share of (head, row block) tiles outside the chunk that equal counts would give their ring
    rank: what a plan moves of q and output beyond the plain one."""
    shape, mesh = plan.shape, plan.mesh
    at = partition.even_cuts(shape.rows, mesh.ring)
    stayed = 0
    for rank, panels in enumerate(plan.ranks):
        low, high = at[mesh.r_of(rank)], at[mesh.r_of(rank) + 1]
        for panel in panels:
            kept = sum(max(min(end, high) - max(first, low), 0) for first, end in panel.rows)
            stayed += kept * len(panel.heads)
    return 1 - stayed / (shape.heads * shape.rows)
