"""B: whole heads where they fit, and a few heads cut between ranks."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import replace

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


def chopped(
    work: BlockWork,
    world: int,
    *,
    each: int | None = None,
    byte_weight: float = 0.0,
    delivery: Delivery = "all",
) -> Plan:
    """Equal numbers of pieces on every rank, the heaviest heads in several pieces.

    ``each`` pieces a rank, by default as few as there are heads for; what they are more than heads
    goes to the heads whose pieces are largest, which are cut at equal work.  So no rank is given
    the keys of more heads than another, which is what split heads pay for elsewhere.  One piece a
    rank follows the sequence: whose rows come first is on the first ranks, where they live.
    """
    shape = work.shape
    count = each or -(-shape.heads // world)
    weights = (work.heads + byte_weight * shape.rows).tolist()
    parts = _apportioned(weights, count * world, shape.rows)
    cut = [head for head, number in enumerate(parts) if number > 1]
    found: list[tuple[float, int, int, int]] = [
        (weights[head], head, 0, shape.rows) for head, number in enumerate(parts) if number == 1
    ]
    if cut:
        found += _cut_evenly(work, cut, [parts[head] for head in cut], byte_weight)
    if count == 1:
        found.sort(key=lambda piece: (piece[2] + piece[3], piece[1]))
        owner = list(range(len(found)))
    else:
        whole = np.asarray([round(piece[0] * SCALE) for piece in found], np.int64)
        owner = partition.lpt(whole, world, count).tolist()
    pieces: list[list[tuple[int, int, int]]] = [[] for _ in range(world)]
    for rank, (_, head, first, end) in zip(owner, found, strict=True):
        pieces[rank].append((head, first, end))
    ranks = tuple(_panels(sorted(held), shape.rows) for held in pieces)
    return Plan("split", shape, Mesh(world), ranks, delivery)


def _cut_evenly(
    work: BlockWork, heads: list[int], parts: list[int], byte_weight: float
) -> Iterator[tuple[float, int, int, int]]:
    """(weight, head, first, end) of so many pieces a head, cut at equal shares of its work."""
    count, number = work.shape.rows, np.asarray(parts)
    prefix = np.concatenate([[0], np.cumsum(work.rows[heads].reshape(-1))])
    line = np.repeat(np.arange(len(heads)), number)
    piece = np.arange(len(line)) - np.repeat(np.cumsum(number) - number, number)
    edges = prefix[::count]
    shares = edges[line] + (edges[line + 1] - edges[line]) * piece // number[line]
    # The first piece of a head begins where the head does, also behind rows without work.
    begins = np.where(piece > 0, np.searchsorted(prefix, shares), line * count)
    begins = np.maximum(begins, line * count)
    ends = np.append(begins[1:], len(heads) * count)
    loads = prefix[ends] - prefix[begins] + byte_weight * (ends - begins)
    columns = (loads, begins - line * count, ends - line * count)
    for at, load, first, end in zip(line.tolist(), *(c.tolist() for c in columns), strict=True):
        if first < end:
            yield load, heads[at], first, end


def _apportioned(weights: list[float], pieces: int, most: int) -> list[int]:
    """In how many pieces each head goes: one more always to the one whose pieces are largest."""
    parts = [1] * len(weights)
    heap = [(-weight, head) for head, weight in enumerate(weights)]
    heapq.heapify(heap)
    for _ in range(pieces - len(weights)):
        size, head = heap[0]
        if not size or parts[head] == most:
            break
        parts[head] += 1
        heapq.heapreplace(heap, (-weights[head] / parts[head], head))
    return parts


def _panels(held: list[tuple[int, int, int]], rows: int) -> RankPlan:
    """Whole heads together, each piece by itself."""
    whole = tuple(head for head, first, end in held if (first, end) == (0, rows))
    panels = [Panel(whole, ((0, rows),))] if whole else []
    cut = (piece for piece in held if piece[1:] != (0, rows))
    return (*panels, *(Panel((head,), ((first, end),)) for head, first, end in cut))


def in_nodes(
    work: BlockWork,
    world: int,
    node: int,
    *,
    byte_weight: float = 0.0,
    delivery: Delivery = "all",
) -> Plan:
    """Rows cut over nodes of so many ranks by work, heads split inside each node.

    Queries and results then hardly leave their node; keys of all heads come to every node.
    """
    shape, nodes = work.shape, world // node
    near = partition.even_cuts(shape.rows, nodes)
    at = partition.cuts(work.rows.sum(axis=0), nodes, near, 0.01)
    ranks: list[RankPlan] = []
    for first, end in itertools.pairwise(at):
        if first == end:
            ranks += [()] * node
            continue
        size = replace(shape, queries=(end - first) * shape.block[0])
        part = split(BlockWork(size, work.rows[:, first:end]), node, byte_weight=byte_weight)
        for panels in part.ranks:
            moved = (tuple((a + first, b + first) for a, b in p.rows) for p in panels)
            ranks.append(tuple(Panel(p.heads, rows) for p, rows in zip(panels, moved, strict=True)))
    return Plan("split", shape, Mesh(world), tuple(ranks), delivery)


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
