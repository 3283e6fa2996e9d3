"""B: whole heads where they fit, and a few heads cut between ranks."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from kdsl.parallel import partition
from kdsl.parallel.mesh import Mesh
from kdsl.parallel.plan import Delivery, Panel, Plan, RankPlan
from kdsl.parallel.work import BlockWork, Longs

SCALE = 64
"""Steps of one kept block in which ``byte_weight`` is counted."""


def split(
    work: BlockWork,
    world: int,
    *,
    tolerance: float = 0.005,
    byte_weight: float = 0.0,
    delivery: Delivery = "all",
) -> Plan:
    """Longest heads first to the least loaded rank while it stays within ``tolerance`` of the mean;
    what does not fit is cut, by rows, into the room that is left.

    ``byte_weight`` is what a row of blocks of a head costs beside its kept blocks, in kept blocks:
    with it ranks are balanced by work and traffic, and sparse heads do not pile up on one of them.
    """
    shape, scale = work.shape, SCALE if byte_weight else 1
    extra = round(byte_weight * SCALE)
    weights = (work.heads * scale + extra * shape.rows).tolist()
    total = sum(weights)
    most = max(int(total / world * (1 + tolerance)), -(-total // world))
    loads = [(0, p) for p in range(world)]
    whole: list[list[int]] = [[] for _ in range(world)]
    left = []
    for head in sorted(range(shape.heads), key=lambda h: (-weights[h], h)):
        load, part = loads[0]
        if load + weights[head] > most:
            left.append(head)
            continue
        whole[part].append(head)
        heapq.heapreplace(loads, (load + weights[head], part))
    pieces = _filled(work, scale, extra, sorted(loads), left) if left else {}
    ranks: list[RankPlan] = []
    for p in range(world):
        panels = [Panel(tuple(sorted(whole[p])), ((0, shape.rows),))] if whole[p] else []
        panels += pieces.get(p, [])
        ranks.append(tuple(panels))
    return Plan("split", shape, Mesh(world), tuple(ranks), delivery)


def _filled(
    work: BlockWork, scale: int, extra: int, loads: list[tuple[int, int]], left: list[int]
) -> dict[int, list[Panel]]:
    """Pieces of the heads that are left, for the ranks with room, by rank.

    All rows of these heads stand in a row, heads with heavy rows first, and are cut where the room
    of each rank ends under the lowest water line that leaves none over.
    """
    count = work.shape.rows
    tallest = work.rows.max(axis=1)
    order = sorted(left, key=lambda h: (-int(tallest[h]), h))
    flat = work.rows[order].reshape(-1)
    prefix = np.cumsum(flat * scale + extra if extra or scale > 1 else flat)
    level = _level([load for load, _ in loads], int(prefix[-1]))
    # The fullest first: what rounding leaves over falls to the emptiest, where it weighs least.
    room = [(level - load, part) for load, part in reversed(loads) if load < level]
    ends = _nearest(prefix, np.cumsum([space for space, _ in room]))
    ends[-1] = len(flat)
    out: dict[int, list[Panel]] = {}
    at = 0
    for (_, part), end in zip(room, ends.tolist(), strict=True):
        panels = []
        while at < end:
            number, first = divmod(at, count)
            last = min(end - number * count, count)
            panels.append(Panel((order[number],), ((first, last),)))
            at = number * count + last
        out[part] = panels
    return out


def _level(loads: list[int], amount: int) -> float:
    """Height to which the lowest loads rise when an amount is poured over them; loads ascend."""
    below = 0
    for count, load in enumerate(loads, start=1):
        below += load
        if count == len(loads) or (amount + below) / count <= loads[count]:
            return (amount + below) / count
    return 0.0


def _nearest(prefix: Longs, targets: npt.NDArray[np.float64]) -> Longs:
    """How many leading weights come nearest to each target; ``prefix`` are their sums."""
    at = np.searchsorted(prefix, targets)
    above = prefix[np.minimum(at, len(prefix) - 1)] - targets
    below = targets - np.where(at > 0, prefix[at - 1], 0)
    return np.minimum(at + (above < below), len(prefix))


def wrapped(work: BlockWork, world: int, *, delivery: Delivery = "all") -> Plan:
    """McNaughton's wrap-around: rows of all heads in a row, cut at equal shares of the work."""
    shape = work.shape
    at = partition.wrap(work.rows.reshape(-1), world)
    ranks = tuple(_stretch(at[p], at[p + 1], shape.rows) for p in range(world))
    return Plan("split", shape, Mesh(world), ranks, delivery)


def _stretch(first: int, end: int, rows: int) -> RankPlan:
    """Panels of the tiles ``[first, end)``, head by head: a tail, whole heads, a beginning."""
    if first >= end:
        return ()
    (a, i), (b, j) = divmod(first, rows), divmod(end, rows)
    if a == b:
        return (Panel((a,), ((i, j),)),)
    panels = [Panel((a,), ((i, rows),))] if i else []
    whole = tuple(range(a + (i > 0), b))
    panels += [Panel(whole, ((0, rows),))] if whole else []
    panels += [Panel((b,), ((0, j),))] if j else []
    return tuple(panels)


def fragments(plan: Plan) -> int:
    """Pieces of heads that some rank computes on its own: the heads where none is cut."""
    return sum(len(panel.heads) for panels in plan.ranks for panel in panels)
