"""Numbers into parts of equal sum: the algorithms, on weights alone.

Weights are non-negative integers, so that every rank and machine finds the same parts.  Ties go to
the lower number, of items as of parts.  All but `cuts` and `wrap` return the part of each item,
int64 ``[items]``.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError
from kdsl.parallel.work import Longs

MOST_SWAPS = 200


def checked(weights: npt.ArrayLike, parts: int) -> Longs:
    """The weights as int64; InputError for what no algorithm here takes."""
    given = np.asarray(weights)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise InputError(f"weights of shape {given.shape}, dtype {given.dtype}", hint="integers")
    if given.size and int(given.min()) < 0:
        raise InputError("a weight is negative")
    if parts < 1:
        raise InputError(f"{parts} parts", hint="1 or more")
    return given.astype(np.int64, copy=False)


def sums(weights: npt.ArrayLike, owner: Longs, parts: int) -> Longs:
    """The sum of each part."""
    out = np.zeros(parts, np.int64)
    np.add.at(out, owner, np.asarray(weights, np.int64))
    return out


def even_cuts(items: int, parts: int) -> tuple[int, ...]:
    """Cut positions of parts of equal counts; the first ones are one longer where it is uneven."""
    base, extra = divmod(items, parts)
    return tuple(p * base + min(p, extra) for p in range(parts + 1))


def contiguous(weights: npt.ArrayLike, parts: int) -> Longs:
    """Equal counts of neighbours: what sequence parallelism does without looking at the mask."""
    given = checked(weights, parts)
    return np.repeat(np.arange(parts), np.diff(even_cuts(len(given), parts)))


def snake(weights: npt.ArrayLike, parts: int) -> Longs:
    """Sorted and dealt forth and back: xDiT's head order and PyTorch's PTRR."""
    given = checked(weights, parts)
    turn, place = np.divmod(np.arange(len(given)), parts)
    owner = np.empty(len(given), np.int64)
    owner[_descending(given)] = np.where(turn % 2 == 0, place, parts - 1 - place)
    return owner


def lpt(weights: npt.ArrayLike, parts: int, cap: int | None = None) -> Longs:
    """Longest first, each to the least loaded part (Graham 1969).

    At most ``4/3 - 1/(3 parts)`` of the least possible maximum without ``cap``, the most items that
    a part takes.
    """
    given = checked(weights, parts)
    _room(len(given), parts, cap)
    order = _descending(given)
    free = [(0, p, 0) for p in range(parts)]
    owner = np.empty(len(given), np.int64)
    for item, weight in zip(order.tolist(), given[order].tolist(), strict=True):
        load, part, count = free[0]
        owner[item] = part
        if cap is not None and count + 1 == cap:
            heapq.heappop(free)
        else:
            heapq.heapreplace(free, (load + weight, part, count + 1))
    return owner


def lpt_swap(weights: npt.ArrayLike, parts: int, cap: int | None = None) -> Longs:
    """`lpt`, then exchanges and moves out of the fullest part while they make it emptier.

    Never worse than `lpt`.  With ``cap`` counts stay below it.
    """
    given = checked(weights, parts)
    owner = lpt(given, parts, cap)
    load = sums(given, owner, parts)
    counts = np.bincount(owner, minlength=parts)
    for _ in range(MOST_SWAPS):
        full = int(load.argmax())
        inside = np.flatnonzero(owner == full)
        if len(inside) < 2:
            break  # whoever takes its one item, alone or not, is at least as full
        outside = np.flatnonzero(owner != full)
        # The last columns stand for empty places: moves without return.
        takers = np.arange(parts)
        takers = takers[(takers != full) & (counts < (len(given) if cap is None else cap))]
        back = np.concatenate([given[outside], np.zeros(len(takers), np.int64)])
        to = np.concatenate([owner[outside], takers])
        if not len(to):
            break
        shift = given[inside][:, None] - back[None]
        height = np.maximum(load[full] - shift, load[to][None] + shift)
        height[shift <= 0] = load[full]
        best = int(height.argmin())
        i, j = divmod(best, len(to))
        if int(height[i, j]) >= int(load[full]):
            break
        amount, other = int(shift[i, j]), int(to[j])
        owner[inside[i]] = other
        if j < len(outside):
            owner[outside[j]] = full
        else:
            counts[full] -= 1
            counts[other] += 1
        load[full] -= amount
        load[other] += amount
    return owner


def karmarkar_karp(weights: npt.ArrayLike, parts: int) -> Longs:
    """Largest differencing: two partial partitions are joined heavy against light."""
    given = checked(weights, parts)
    owner = np.zeros(len(given), np.int64)
    if not len(given):
        return owner
    heap: list[tuple[int, int, list[tuple[int, list[int]]]]] = []
    for item, weight in enumerate(given.tolist()):
        sets: list[tuple[int, list[int]]] = [(0, []) for _ in range(parts - 1)]
        heapq.heappush(heap, (-weight, item, [*sets, (weight, [item])]))
    number = len(given)
    while len(heap) > 1:
        (_, _, a), (_, _, b) = heapq.heappop(heap), heapq.heappop(heap)
        joined = [(x + y, m + n) for (x, m), (y, n) in zip(a, reversed(b), strict=True)]
        joined.sort(key=lambda part: part[0])
        low = joined[0][0]
        joined = [(load - low, members) for load, members in joined]
        heapq.heappush(heap, (-joined[-1][0], number, joined))
        number += 1
    for part, (_, members) in enumerate(heap[0][2]):
        owner[members] = part
    return owner


def cuts(
    weights: npt.ArrayLike, parts: int, prefer: tuple[int, ...] = (), slack: float = 0.0
) -> tuple[int, ...]:
    """Cut positions ``[parts + 1]`` of runs of neighbours whose largest sum is least possible.

    By parametric search over the largest sum, exactly.  Among cuts with that sum, or one up to
    ``slack`` (a share) larger, those nearest to ``prefer`` from left to right, or to equal sums.
    Runs may be empty.
    """
    given = checked(weights, parts)
    prefix = np.concatenate([[0], np.cumsum(given)]).tolist()
    total, items = prefix[-1], len(given)
    low = max(-(-total // parts), int(given.max(initial=0)))
    high = max(low, total // parts + int(given.max(initial=0)))
    while low < high:
        middle = (low + high) // 2
        if _reaches(prefix, parts, middle):
            high = middle
        else:
            low = middle + 1
    most = low + int(low * slack)
    earliest = [items] * (parts + 1)
    for p in range(parts - 1, 0, -1):
        earliest[p] = bisect_left(prefix, prefix[earliest[p + 1]] - most)
    wanted = prefer or tuple(_nearest(prefix, total * p // parts) for p in range(parts + 1))
    out = [0]
    for p in range(1, parts):
        latest = bisect_right(prefix, prefix[out[-1]] + most) - 1
        out.append(max(out[-1], earliest[p], min(wanted[p], latest)))
    return (*out, items)


def wrap(weights: npt.ArrayLike, parts: int) -> tuple[int, ...]:
    """Cut positions at equal shares of the total (McNaughton 1959): one look, no search.

    No sum is larger than total / parts plus the largest weight.
    """
    given = checked(weights, parts)
    prefix = np.concatenate([[0], np.cumsum(given)])
    at = np.searchsorted(prefix, prefix[-1] * np.arange(1, parts) // parts)
    return (0, *np.minimum(at, len(given)).tolist(), len(given))


def lower_bound(weights: npt.ArrayLike, parts: int, cap: int | None = None) -> int:
    """A largest sum that no partition into whole items is below.

    The mean; the largest item; of the ``k parts + 1`` largest items, ``k + 1`` must meet, at best
    the smallest of them (k up to 3).  With ``cap`` times ``parts`` = items every part holds exactly
    ``cap``, so the largest item meets at best the ``cap - 1`` smallest.
    """
    given = checked(weights, parts)
    if not len(given):
        return 0
    falling = np.sort(given)[::-1]
    bounds = [-(-int(falling.sum()) // parts), int(falling[0])]
    crowds = [k for k in range(1, 4) if k * parts < len(falling)]
    bounds += [int(falling[k * parts - k : k * parts + 1].sum()) for k in crowds]
    if cap is not None and cap * parts == len(falling):
        bounds.append(int(falling[0] + falling[len(falling) - cap + 1 :].sum()))
    return max(bounds)


Partitioner = Callable[[npt.ArrayLike, int], Longs]


def _descending(weights: Longs) -> Longs:
    return np.argsort(-weights, kind="stable")


def _room(items: int, parts: int, cap: int | None) -> None:
    if cap is not None and cap * parts < items:
        raise InputError(f"{items} items do not fit into {parts} parts of at most {cap}")


def _reaches(prefix: list[int], parts: int, most: int) -> bool:
    """Whether that many runs of at most that sum hold everything."""
    at, end = 0, len(prefix) - 1
    for _ in range(parts):
        at = bisect_right(prefix, prefix[at] + most) - 1
        if at >= end:
            return True
    return False


def _nearest(prefix: list[int], value: int) -> int:
    """The position whose prefix is nearest to a value."""
    at = bisect_left(prefix, value)
    if at and value - prefix[at - 1] <= prefix[min(at, len(prefix) - 1)] - value:
        return at - 1
    return min(at, len(prefix) - 1)
