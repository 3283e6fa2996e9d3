"""Smallest and largest table entry over a range of indices."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdsl.expr.evaluate import table_values
from kdsl.expr.nodes import Expr
from kdsl.intervals.algebra import Range

if TYPE_CHECKING:
    from kdsl.intervals.reader import Reader

Array = npt.NDArray[Any]


class RangeTables:
    """The tables of one mask, prepared for range queries; shared by all readers of that mask."""

    def __init__(self, tables: Mapping[str, Array] | None) -> None:
        self.tables = tables
        self.values: dict[str, Array] = {}
        self.extremes: dict[tuple[str, tuple[int, ...]], Extremes] = {}
        self.sums: dict[tuple[str, tuple[int, ...]], Array] = {}

    def read(self, reader: Reader, node: Expr) -> Range:
        """Range of a table entry whose indices run through ranges."""
        name = node.data.name
        if name not in self.values:
            self.values[name] = table_values(node.data, self.tables)
        values, at = self.values[name], [reader.read(a) for a in node.args]
        names = frozenset().union(*(a.names for a in at))
        fixed = tuple(int(a.low) if a.where == "c" and a.low == a.high else -1 for a in at)
        free = [i for i, f in enumerate(fixed) if f < 0]
        cut = np.asarray(values[tuple(f if f >= 0 else slice(None) for f in fixed)])
        if not free:
            return Range("c", np.int64(cut), np.int64(cut), names, True, True)
        dense = all(at[i].dense for i in free)
        # Between two neighbouring values none is missing.
        binary = node.data.low >= 0 and node.data.high <= 1
        where, parts = reader.together(*(at[i] for i in free))
        bounds = [_clip(p, size) for p, size in zip(parts, cut.shape, strict=True)]
        if len(free) == 1:
            if (name, fixed) not in self.extremes:
                self.extremes[name, fixed] = Extremes(cut)
            low, high = self.extremes[name, fixed].over(*bounds[0])
            return Range(where, low, high, names, dense, dense and binary)
        if len(free) == 2 and binary:
            low, high = self._rectangle(name, fixed, cut, bounds)
            apart = len(names) == sum(len(at[i].names) for i in free)
            return Range(where, low, high, names, dense and apart, dense and apart)
        point: Any = reduce(np.logical_and, (np.equal(low, high) for low, high in bounds))
        entry = cut[tuple(low for low, _ in bounds)].astype(np.int64)
        least, most = np.int64(cut.min()), np.int64(cut.max())
        ends = np.where(point, entry, least), np.where(point, entry, most)
        return Range(where, *ends, names, False, False)

    def _rectangle(
        self, name: str, fixed: tuple[int, ...], cut: Array, bounds: list[tuple[Array, Array]]
    ) -> tuple[Array, Array]:
        """(all set, any set) over rectangles of a 0/1 map, from its summed areas."""
        if (name, fixed) not in self.sums:
            total = np.zeros((cut.shape[0] + 1, cut.shape[1] + 1), np.int64)
            total[1:, 1:] = cut.astype(np.int64).cumsum(0).cumsum(1)
            self.sums[name, fixed] = total
        total = self.sums[name, fixed]
        (a, b), (c, d) = bounds
        b, d = b + 1, d + 1
        count = total[b, d] - total[a, d] - total[b, c] + total[a, c]
        return (count == (b - a) * (d - c)).astype(np.int64), (count > 0).astype(np.int64)


def _clip(r: Range, size: int) -> tuple[Array, Array]:
    last = max(size - 1, 0)
    return np.clip(r.low, 0, last), np.clip(r.high, 0, last)


class Extremes:
    """Sparse table: extremes of all windows of 1, 2, 4, ... entries, made as they are needed."""

    def __init__(self, values: Array) -> None:
        self.low, self.high = [values.astype(np.int64)], [values.astype(np.int64)]

    def over(self, first: Array, last: Array) -> tuple[Array, Array]:
        """Smallest and largest entry of each inclusive range."""
        first, last = np.broadcast_arrays(first, last)
        level = np.frexp((last - first + 1).astype(np.float64))[1] - 1
        low, high = np.empty(first.shape, np.int64), np.empty(first.shape, np.int64)
        for n in np.unique(level):
            self._grow(int(n))
            at = level == n
            a, b = first[at], last[at] - (1 << int(n)) + 1
            low[at] = np.minimum(self.low[n][a], self.low[n][b])
            high[at] = np.maximum(self.high[n][a], self.high[n][b])
        return low, high

    def _grow(self, level: int) -> None:
        while len(self.low) <= level:
            half = 1 << (len(self.low) - 1)
            a, b = self.low[-1], self.high[-1]
            self.low.append(np.minimum(a[:-half], a[half:]))
            self.high.append(np.maximum(b[:-half], b[half:]))
