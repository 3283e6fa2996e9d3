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

from kdsl.errors import SpecError
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
    """Kept blocks: row, column, and whether the block is partial.

    ``first`` gives for each row the first one that keeps the very same blocks; only those are
    listed.
    """

    row: Array
    column: Array
    partial: Array
    first: Array


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
    kept: list[Squares] = []
    while True:
        runs = reader(block[0] * span, block[1] * span, True)
        must, open_ = _children(runs, i, j, -(-rows // span), -(-columns // span))
        kept.append((span, *must))
        i, j = open_
        if span == 1:
            break
        span //= FAN
    full, partial = _blocks(i, j, block, reader, parts)
    kept += [(1, i[full], j[full]), (1, i[partial], j[partial])]
    first = _first_alike(kept, rows)
    listed = np.flatnonzero(first == np.arange(rows))
    count = sum(_entries(squares, listed) for squares in kept)
    if count >= 2**31:
        raise SpecError(f"{count} kept blocks", hint="larger blocks, or a sparser mask")
    spread = [_spread(squares, listed, columns) for squares in kept]
    row, column = (np.concatenate(x) for x in zip(*spread, strict=True))
    kinds = np.zeros(len(row), np.bool_)
    kinds[len(row) - len(spread[-1][0]) :] = True
    return Decided(row, column, kinds, first)


Pairs = tuple[Array, Array]
Squares = tuple[int, Array, Array]
"""Blocks a side, and the squares' rows and columns in units of that."""


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


def _first_alike(kept: list[Squares], rows: int) -> Array:
    """For each row of blocks the first one that is covered by the same squares.

    Rows are told apart by sums of 2 x 64 bits that hash what covers them: nothing is spread out.
    """
    sums = np.zeros((rows, 2), np.uint64)
    for tag, (span, i, j) in enumerate(kept):
        if len(i):
            runs = np.zeros((-(-rows // span), 2), np.uint64)
            for half in range(2):
                np.add.at(runs[:, half], i, _scattered(j, 2 * tag + half + 1))
            sums += runs[np.arange(rows) // span]
    _, index, inverse = np.unique(sums, axis=0, return_index=True, return_inverse=True)
    return index[inverse.reshape(-1)]


def _scattered(x: Array, seed: int) -> Array:
    """64 well mixed bits of each number (the finaliser of SplitMix64: Steele et al., 2014)."""
    z = x.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = z ^ (z >> np.uint64(31))
    return mixed


def _covered(squares: Squares, listed: Array) -> tuple[Array, Array]:
    """Where in ``listed`` the rows of each square begin, and how many they are."""
    span, i, _ = squares
    begin = np.searchsorted(listed, i * span)
    return begin, np.searchsorted(listed, (i + 1) * span) - begin


def _entries(squares: Squares, listed: Array) -> int:
    """Blocks that `_spread` lists, those beyond the last column included."""
    return int(_covered(squares, listed)[1].sum()) * squares[0]


def _spread(squares: Squares, listed: Array, columns: int) -> Pairs:
    """All blocks of squares that lie in some rows."""
    span, _, j = squares
    begin, count = _covered(squares, listed)
    square = np.repeat(np.arange(len(j)), count)
    step = np.arange(len(square)) - np.repeat(np.cumsum(count) - count, count)
    row = listed[begin[square] + step]
    if span == 1:
        return row, j[square]
    column = (j[square, None] * span + np.arange(span)).reshape(-1)
    inside = column < columns
    return np.repeat(row, span)[inside], column[inside]


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
