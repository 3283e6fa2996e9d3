"""Refine what is undecided: from few large squares of the mask down to blocks, and inside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.intervals.boxes import Boxes
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


ReaderAt = Callable[[tuple[int, int], bool], Reader]
"""A reader over runs of so many (query, key) tokens, as hulls or not."""
Sizes = tuple[tuple[int, int], ...]


def decide(
    rows: int, columns: int, block: tuple[int, int], reader: ReaderAt, parts: Sizes
) -> Decided:
    """Sort all blocks of ``rows`` x ``columns`` into full, partial and empty.

    ``parts`` are the sizes of runs to cut undecided blocks into, coarse to fine, ending with single
    tokens.
    """
    span = 1
    while max(rows, columns) > span * 32:
        span *= FAN
    i, j = (a.reshape(-1) for a in np.indices((-(-rows // span), -(-columns // span))))
    kept: list[tuple[Array, Array]] = []
    while True:
        may, must = read(reader((block[0] * span, block[1] * span), True), i, j)
        kept.append(_spread(i[must], j[must], span, rows, columns))
        open_ = may & ~must
        i, j = i[open_], j[open_]
        if span == 1:
            break
        i, j = _children(i, j, rows, columns, span)
        span //= FAN
    full, partial = _blocks(i, j, block, reader, parts)
    row = np.concatenate([k[0] for k in kept] + [i[full], i[partial]])
    column = np.concatenate([k[1] for k in kept] + [j[full], j[partial]])
    kinds = np.zeros(len(row), np.bool_)
    kinds[len(row) - int(partial.sum()) :] = True
    return Decided(row, column, kinds)


def read(reader: Reader, i: Array, j: Array) -> tuple[Array, Array]:
    """(may, must) for pairs of runs, in chunks."""
    may, must = np.empty(len(i), np.bool_), np.empty(len(i), np.bool_)
    for at in range(0, len(i), CHUNK):
        part = slice(at, at + CHUNK)
        may[part], must[part] = reader.pairs(i[part], j[part])
    return may, must


def _children(i: Array, j: Array, rows: int, columns: int, span: int) -> tuple[Array, Array]:
    """The FAN x FAN pairs of runs inside each pair, those beyond the edges left out."""
    step, inner = np.arange(FAN), span // FAN
    a = np.repeat((i[:, None] * FAN + step).reshape(-1, FAN, 1), FAN, axis=2).reshape(-1)
    b = np.repeat((j[:, None] * FAN + step).reshape(-1, 1, FAN), FAN, axis=1).reshape(-1)
    inside = (a < -(-rows // inner)) & (b < -(-columns // inner))
    return a[inside], b[inside]


def _spread(i: Array, j: Array, span: int, rows: int, columns: int) -> tuple[Array, Array]:
    """All blocks inside pairs of runs of ``span`` blocks."""
    if span == 1:
        return i, j
    a, b = (x.reshape(-1) for x in np.indices((span, span)))
    row, column = (i[:, None] * span + a).reshape(-1), (j[:, None] * span + b).reshape(-1)
    inside = (row < rows) & (column < columns)
    return row[inside], column[inside]


def _blocks(
    i: Array, j: Array, block: tuple[int, int], reader: ReaderAt, parts: Sizes
) -> tuple[Array, Array]:
    """(full, partial) of blocks that hulls leave undecided."""
    n = len(i)
    seen_true, seen_false = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    if not n:
        return seen_true, seen_false
    boxes = reader(block, False)
    may, must = _over_boxes(boxes, i, j, seen_true, seen_false)
    may_exact, must_exact = boxes.exact
    seen_true |= may & may_exact
    seen_false |= ~must & must_exact
    open_ = np.flatnonzero(may & ~must & ~(seen_true & seen_false))
    _inside(open_, i[open_], j[open_], reader, (block, *parts), seen_true, seen_false)
    full = must | (seen_true & ~seen_false & may)
    empty = ~may | (seen_false & ~seen_true)
    return full, ~full & ~empty


def _over_boxes(
    reader: Reader, i: Array, j: Array, seen_true: Array, seen_false: Array
) -> tuple[Array, Array]:
    """(may, must) of blocks from their boxes; notes blocks with a box that is all true or all false."""
    queries, keys = reader.sides["q"], reader.sides["k"]
    if len(queries.first) - 1 == len(queries.low["s"]) and len(keys.first) - 1 == len(
        keys.low["s"]
    ):
        return read(reader, i, j)
    may, must = np.empty(len(i), np.bool_), np.empty(len(i), np.bool_)
    for at in range(0, len(i), CHUNK // 4):
        part = slice(at, at + CHUNK // 4)
        a, b, first = _box_pairs(queries, keys, i[part], j[part])
        box_may, box_must = reader.pairs(a, b)
        may[part] = np.logical_or.reduceat(box_may, first)
        must[part] = np.logical_and.reduceat(box_must, first)
        seen_true[part] = np.logical_or.reduceat(box_must, first)
        seen_false[part] = ~np.logical_and.reduceat(box_may, first)
    return may, must


def _box_pairs(queries: Boxes, keys: Boxes, i: Array, j: Array) -> tuple[Array, Array, Array]:
    """Every pair of boxes of each pair of runs, and where each run's pairs begin."""
    n_q = queries.first[i + 1] - queries.first[i]
    n_k = keys.first[j + 1] - keys.first[j]
    count = n_q * n_k
    first = np.cumsum(count) - count
    owner = np.repeat(np.arange(len(i)), count)
    step = np.arange(len(owner)) - first[owner]
    inner = n_k[owner]
    return queries.first[i][owner] + step // inner, keys.first[j][owner] + step % inner, first


def _inside(
    block: Array,
    i: Array,
    j: Array,
    reader: ReaderAt,
    sizes: Sizes,
    seen_true: Array,
    seen_false: Array,
) -> None:
    """Look inside undecided blocks for a pair that is kept and one that is not.

    What is left undecided when the budget ends has both marks set: partial is always safe.
    """
    spent = 0
    for outer, size in pairwise(sizes):
        f, g = outer[0] // size[0], outer[1] // size[1]
        spent += len(i) * f * g
        if spent > BUDGET:
            break
        runs = reader(size, True)
        limit = tuple(len(runs.sides[s].low["s"]) for s in "qk")
        a = np.repeat(i[:, None] * f + np.arange(f), g, axis=1).reshape(-1)
        b = np.tile(j[:, None] * g + np.arange(g), (1, f)).reshape(-1)
        own = np.repeat(block, f * g)
        some = (a < limit[0]) & (b < limit[1])
        a, b, own = a[some], b[some], own[some]
        may, must = read(runs, a, b)
        seen_true[own[must]] = True
        seen_false[own[~may]] = True
        open_ = may & ~must & ~(seen_true[own] & seen_false[own])
        i, j, block = a[open_], b[open_], own[open_]
        if not len(block):
            return
    seen_true[block] = seen_false[block] = True
