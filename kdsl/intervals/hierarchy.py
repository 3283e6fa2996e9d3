"""Refine what is undecided: from few large squares of the mask down to blocks, and inside them.

Pairs are read as arrays ``[query runs, key runs, squares]``: each side is gathered once a square,
and the operations run along the long last axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.intervals.reader import Reader

Array = npt.NDArray[Any]
CHUNK = 1 << 16
"""Pairs read at once: temporaries stay in the cache."""
FAN = 4
"""Runs of one level in a run of the level above."""
BUDGET = 1 << 25
"""Pairs read inside undecided blocks before the rest is left partial."""


@dataclass(frozen=True)
class Decided:
    """Kept blocks: row, column, and whether the block is partial."""

    row: Array
    column: Array
    partial: Array


ReaderAt = Callable[[int, int, bool], Reader]
"""A reader over runs of so many query and key tokens, as hulls or not."""
Sizes = tuple[tuple[int, int], ...]


def decide(
    rows: int, columns: int, block: tuple[int, int], reader: ReaderAt, parts: Sizes
) -> Decided:
    """Sort all blocks of ``rows`` x ``columns`` into full, partial and empty.

    ``parts`` are the sizes of runs to cut undecided blocks into, coarse to fine, ending with single
    tokens.
    """
    span = 1
    while max(rows, columns) > span * FAN:
        span *= FAN
    i, j = np.zeros(1, np.int64), np.zeros(1, np.int64)
    kept: list[tuple[Array, Array]] = []
    while True:
        runs = reader(block[0] * span, block[1] * span, True)
        must, open_ = _children(runs, i, j, -(-rows // span), -(-columns // span))
        kept.append(_spread(*must, span, rows, columns))
        i, j = open_
        if span == 1:
            break
        span //= FAN
    full, partial = _blocks(i, j, block, reader, parts)
    row = np.concatenate([k[0] for k in kept] + [i[full], i[partial]])
    column = np.concatenate([k[1] for k in kept] + [j[full], j[partial]])
    kinds = np.zeros(len(row), np.bool_)
    kinds[len(row) - int(partial.sum()) :] = True
    return Decided(row, column, kinds)


Pairs = tuple[Array, Array]


def _children(reader: Reader, i: Array, j: Array, rows: int, columns: int) -> tuple[Pairs, Pairs]:
    """Pairs of runs inside pairs of the level above: those that must hold, and the undecided."""
    found: tuple[list[Pairs], list[Pairs]] = ([], [])
    for _, a, b, may, must in squares(reader, i, j, (FAN, FAN)):
        for held, marks in zip(found, (must, may & ~must), strict=True):
            s, t, at = np.nonzero(marks)
            held.append((a[s, 0, at], b[0, t, at]))
    pairs = []
    for held in found:
        row, column = (np.concatenate(x) for x in zip(*held, strict=True)) if held else (i, j)
        inside = (row < rows) & (column < columns)
        pairs.append((row[inside], column[inside]))
    return pairs[0], pairs[1]


def squares(
    reader: Reader, i: Array, j: Array, parts: tuple[int, int]
) -> Iterator[tuple[slice, Array, Array, Array, Array]]:
    """Cut pairs of runs into so many parts each way and read them, some pairs at a time.

    Yields the pairs at hand, the numbers of the query parts ``[parts, 1, pairs]`` and of the key
    parts ``[1, parts, pairs]``, and (may, must) ``[parts, parts, pairs]``.  Parts past the end read
    as the last one: their numbers tell.
    """
    f, g = np.arange(parts[0])[:, None, None], np.arange(parts[1])[None, :, None]
    last = [len(reader.sides[s].low["s"]) - 1 for s in ("q", "k")]
    step = max(CHUNK // (parts[0] * parts[1]), 1)
    for first in range(0, len(i), step):
        at = slice(first, first + step)
        a, b = i[at] * parts[0] + f, j[at] * parts[1] + g
        may, must = reader.pairs(np.minimum(a, last[0]), np.minimum(b, last[1]))
        yield at, a, b, may, must


def _spread(i: Array, j: Array, span: int, rows: int, columns: int) -> Pairs:
    """All blocks inside pairs of runs of ``span`` blocks."""
    if span == 1 or not len(i):
        return i, j
    a, b = (x.reshape(-1) for x in np.indices((span, span)))
    row, column = (i[:, None] * span + a).reshape(-1), (j[:, None] * span + b).reshape(-1)
    inside = (row < rows) & (column < columns)
    return row[inside], column[inside]


def _blocks(
    i: Array, j: Array, block: tuple[int, int], reader: ReaderAt, parts: Sizes
) -> tuple[Array, Array]:
    """(full, partial) of blocks that hulls leave undecided."""
    if not len(i):
        return np.zeros(0, np.bool_), np.zeros(0, np.bool_)
    marks, open_ = _over_boxes(reader(*block, False), i, j)
    _inside(open_, i[open_], j[open_], reader, (block, *parts), marks)
    return marks.true & ~marks.false, marks.true & marks.false


@dataclass
class Marks:
    """Whether a kept pair, and one that is not, were seen in each block."""

    true: Array
    false: Array


def _over_boxes(reader: Reader, i: Array, j: Array) -> tuple[Marks, Array]:
    """What the boxes of each block show, and the blocks that they leave undecided."""
    marks = Marks(np.zeros(len(i), np.bool_), np.zeros(len(i), np.bool_))
    open_ = np.zeros(len(i), np.bool_)
    for start in range(0, len(i), CHUNK):
        at = slice(start, start + CHUNK)
        marks.true[at], marks.false[at], open_[at] = _box_pairs(reader, i[at], j[at])
    return marks, np.flatnonzero(open_)


def _box_pairs(reader: Reader, i: Array, j: Array) -> tuple[Array, Array, Array]:
    """(seen true, seen false, undecided) of some blocks, one pair of their boxes after the other.

    Where the readings are exact, a block that may and need not hold is decided: partial.
    """
    starts, counts = [], []
    for side, at in ((reader.sides["q"], i), (reader.sides["k"], j)):
        starts.append(side.first[at])
        counts.append(side.first[at + 1] - starts[-1])
    may_exact, must_exact = reader.exact
    may, must = (x.copy() for x in reader.pairs(starts[0], starts[1]))
    true = may.copy() if may_exact else must.copy()
    false = ~(must if must_exact else may)
    left = np.flatnonzero(~(true & false) & (counts[0] * counts[1] > 1))
    for s, t in np.ndindex(int(counts[0].max()), int(counts[1].max())):
        if s == t == 0:
            continue
        left = left[~(true[left] & false[left])]
        at = left[(counts[0][left] > s) & (counts[1][left] > t)]
        if not len(at):
            continue
        box_may, box_must = reader.pairs(starts[0][at] + s, starts[1][at] + t)
        may[at] |= box_may
        must[at] &= box_must
        true[at] |= box_may if may_exact else box_must
        false[at] |= ~(box_must if must_exact else box_may)
    return true, false, may & ~must & ~(true & false)


def _inside(block: Array, i: Array, j: Array, reader: ReaderAt, sizes: Sizes, marks: Marks) -> None:
    """Look inside undecided blocks for a pair that is kept and one that is not.

    What is left undecided when the budget ends has both marks set: partial is always safe.
    """
    spent = 0
    for outer, size in pairwise(sizes):
        if not len(block):
            return
        parts = outer[0] // size[0], outer[1] // size[1]
        spent += len(i) * parts[0] * parts[1]
        if spent > BUDGET:
            break
        runs = reader(*size, True)
        rows, columns = (len(runs.sides[s].low["s"]) for s in ("q", "k"))
        found: list[tuple[Array, Array, Array]] = []
        for at, a, b, may, must in squares(runs, i, j, parts):
            own = block[at]
            marks.true[own[must.any((0, 1))]] = True
            marks.false[own[~may.all((0, 1))]] = True
            both = marks.true[own] & marks.false[own]
            s, t, n = np.nonzero(may & ~must & ~both)
            row, column = a[s, 0, n], b[0, t, n]
            inside = (row < rows) & (column < columns)
            found.append((row[inside], column[inside], own[n[inside]]))
        i, j, block = (np.concatenate(x) for x in zip(*found, strict=True))
    marks.true[block] = marks.false[block] = True
