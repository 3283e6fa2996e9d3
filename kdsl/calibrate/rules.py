"""Which blocks to keep: rules from the mass of blocks to boolean maps.

``mass`` is ``[heads, rows, columns]``, the share of its row's attention in every block (rows sum to
1), in the head's stored order; ``weights [rows]`` are each row's share of all queries (the last row
is ragged), so that ``mass * weights[:, None]`` sums to 1 over a head.  ``forced`` blocks are kept
whatever they hold (text), and so is the heaviest block of each row: no row is ever empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError
from kdsl.grid import Grid
from kdsl.statistics import block_sizes, text_blocks

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


def row_weights(tokens: int, size: int) -> npt.NDArray[np.float64]:
    """Each block row's share of all queries, ``[rows]``."""
    return block_sizes(tokens, size) / tokens


def dense_text(grid: Grid, block: tuple[int, int]) -> Bools:
    """Blocks ``[rows, columns]`` that stay because a row or column of theirs holds text."""
    return np.logical_or.outer(text_blocks(grid, block[0]), text_blocks(grid, block[1]))


def keep_rows(mass: Floats, keep: float, forced: Bools | None = None) -> Bools:
    """The fewest blocks of every row that hold ``keep`` of it."""
    _share(keep, "keep")
    always = _always(mass, forced)
    held = np.where(always, mass, 0).sum(-1, dtype=np.float64)
    free = np.where(always, 0, mass)
    heaviest = np.argsort(-free, axis=-1, kind="stable")
    total = np.take_along_axis(free, heaviest, -1).cumsum(-1, dtype=np.float64)
    before = np.concatenate([np.zeros((*total.shape[:-1], 1)), total[..., :-1]], -1)
    # An error of rounding must not take in another block.
    wanted = keep * mass.sum(-1, dtype=np.float64) * (1 - 1e-12)
    kept = np.zeros(mass.shape, np.bool_)
    # Blocks without mass are not needed even for all of it.
    needed = (held[..., None] + before < wanted[..., None]) & (
        np.take_along_axis(free, heaviest, -1) > 0
    )
    np.put_along_axis(kept, heaviest, needed, -1)
    return kept | always


def keep_heads(
    mass: Floats,
    weights: npt.NDArray[np.float64],
    keep: float | npt.NDArray[np.float64],
    forced: Bools | None = None,
) -> Bools:
    """The fewest blocks of every head that hold ``keep`` (one share, or one a head) of its mass.

    A quality budget: the density is what comes out.  Rows that spread their attention get more
    blocks than in `keep_rows`, and peaked ones fewer, for the same mass of the head.
    """
    shares = np.broadcast_to(np.asarray(keep, np.float64), len(mass))
    for share in shares:
        _share(float(share), "keep")
    always = _always(mass, forced)
    out = []
    for head, fixed, share in zip(mass, always, shares, strict=True):
        values, held = _curve(head * weights[:, None], fixed)
        count = int(np.searchsorted(held, share * held[-1] * (1 - 1e-12)))
        out.append(_heaviest(values, fixed, min(count, int((values > 0).sum()))))
    return np.stack(out) if out else always


def block_sum(
    mass: Floats, weights: npt.NDArray[np.float64], density: float, forced: Bools | None = None
) -> Bools:
    """PAROAttention's mask: the blocks of largest sum, ``density`` of all blocks in every head.

    A threshold on a block's sum set to hit the wanted density (arXiv 2506.16054, section on sparse
    attention).
    """
    _share(density, "density")
    always = _always(mass, forced)
    out = []
    for head, fixed in zip(mass, always, strict=True):
        values, _ = _curve(head * weights[:, None], fixed)
        out.append(_heaviest(values, fixed, max(int(density * head.size) - int(fixed.sum()), 0)))
    return np.stack(out) if out else always


def under_budget(
    masses: Sequence[Floats],
    weights: npt.NDArray[np.float64],
    density: float,
    forced: Bools | None = None,
    give: float = 0.005,
) -> Iterator[Bools]:
    """Maps of all layers under one density: the most mass in sum, no head far below its own share.

    ``masses`` has an entry ``[heads, rows, columns]`` a layer (and range of steps), and is read
    three times, one entry at a time.  ``density`` of all blocks of all of them is kept; no head
    keeps less mass than ``density`` of its own blocks would hold, less ``give``.  Where forced
    blocks and that floor alone need more, they are what is kept.

    This is optimal: with a head's blocks in order of mass, what n of them hold is concave in n, so
    once each head has the blocks of its floor, exchanging any further kept block for a dropped one
    of a larger mass gains; there is none to exchange when all of those above one threshold, common
    to all heads, are kept.
    """
    _share(density, "density")
    if not 0 <= give < 1:
        raise InputError(f"give={give}", hint="mass that a head may lose to others, such as 0.005")
    floors: list[list[int]] = []
    blocks, spent = 0, 0
    for mass in masses:
        always = _always(mass, forced)
        of_layer = []
        for head, fixed in zip(mass, always, strict=True):
            _, held = _curve(head * weights[:, None], fixed)
            own = max(int(density * head.size) - int(fixed.sum()), 0)
            least = int(np.searchsorted(held, held[own] - give))
            of_layer.append(least)
            spent += int(fixed.sum()) + least
        blocks += mass.size
        floors.append(of_layer)
    left = max(int(density * blocks) - spent, 0)

    def spare(number: int) -> Iterator[tuple[npt.NDArray[np.float32], Bools, int]]:
        """Values of a layer's free blocks by head, what is fixed, and how many have a place."""
        always = _always(masses[number], forced)
        for head, fixed, least in zip(masses[number], always, floors[number], strict=True):
            yield _curve(head * weights[:, None], fixed)[0], fixed, least

    def above_floor() -> Iterator[npt.NDArray[np.float32]]:
        for number in range(len(floors)):
            for values, _, least in spare(number):
                yield np.sort(values, axis=None)[::-1][least:]

    threshold, ties = largest(above_floor, left)
    for number in range(len(floors)):
        out = []
        for values, fixed, least in spare(number):
            rest = np.sort(values, axis=None)[::-1][least:]
            equal = min(int((rest == threshold).sum()), ties)
            ties -= equal
            out.append(_heaviest(values, fixed, least + int((rest > threshold).sum()) + equal))
        yield np.stack(out)


def largest(
    parts: Callable[[], Iterator[npt.NDArray[np.float32]]], count: int
) -> tuple[float, int]:
    """(threshold, ties): ``count`` numbers are above the threshold, or among ``ties`` equal to it.

    ``parts()`` yields numbers of at least 0 and is called twice; nothing is kept but two histograms
    (positive floats sort as their bits do).  Numbers of 0 are never counted.
    """
    if count <= 0:
        return np.inf, 0
    prefix, wanted = 0, count
    for shift in (16, 0):
        bins = np.zeros(1 << 16, np.int64)
        for part in parts():
            bits = np.ascontiguousarray(part[part > 0], np.float32).view(np.uint32)
            if not shift:
                bits = bits[bits >> 16 == prefix] & 0xFFFF
            bins += np.bincount(bits >> shift, minlength=1 << 16)
        over = np.cumsum(bins[::-1])
        if over[-1] < wanted:
            return 0.0, 0
        at = int(np.searchsorted(over, wanted))
        wanted -= int(over[at - 1]) if at else 0
        prefix = prefix << 16 | (len(bins) - 1 - at)
    return float(np.array([prefix], np.uint32).view(np.float32)[0]), wanted


def held(mass: Floats, kept: Bools, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The share of each head's mass that kept blocks hold, ``[heads]``."""
    return np.asarray((mass * kept).sum(-1, dtype=np.float64) @ weights)


def _always(mass: Floats, forced: Bools | None) -> Bools:
    """Forced blocks, and the heaviest of every row that would keep nothing else."""
    if not np.isfinite(mass).all():
        raise InputError("the mass of blocks is not finite", hint="q and k without NaN")
    out = np.zeros(mass.shape, np.bool_)
    if forced is not None:
        out |= forced
    first = mass.argmax(-1)[..., None]
    np.put_along_axis(out, first, True, -1)
    return out


def _curve(mass: Floats, fixed: Bools) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Mass of one head's free blocks (0 for fixed ones), and what the n heaviest hold with them.

    The second has an entry for each n from 0 on.
    """
    values = np.where(fixed, 0, mass).astype(np.float32)
    ordered = np.sort(values, axis=None)[::-1].cumsum(dtype=np.float64)
    return values, mass[fixed].sum(dtype=np.float64) + np.concatenate([[0.0], ordered])


def _heaviest(values: npt.NDArray[np.float32], fixed: Bools, count: int) -> Bools:
    """Fixed blocks and so many of the others, heaviest first, among equals in reading order."""
    out = fixed.reshape(-1).copy()
    count = min(count, int(out.size - out.sum()))
    if count > 0:
        free = np.where(out, -1, values.reshape(-1))
        # A partition costs a tenth of a sort, and a model has thousands of heads and steps.
        least = np.partition(free, -count)[-count]
        above = free > least
        out |= above
        out[np.flatnonzero(free == least)[: count - int(above.sum())]] = True
    return out.reshape(fixed.shape)


def _share(value: float, what: str) -> None:
    if not 0 < value <= 1:
        raise InputError(f"{what}={value}", hint="above 0, at most 1")
