"""Runs of stored tokens as boxes of coordinates.

An original token is ``base + sum(stride[i] * coord[i])``: ``base`` is where the grid starts, or the
token itself for text (whose coordinates read 0).  Over a box every variable runs through an
interval independently of the others, which is what makes the reader exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.grid import Grid
from kdsl.orders import Axes, Cubes, Order, identity

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Boxes:
    """Boxes of several runs, those of a run side by side.

    ``first[r]`` is the first box of run ``r`` (one more entry closes the last).  ``low`` and
    ``high`` hold inclusive ranges by variable: ``base``, ``0``, ``1``, ``2`` (coordinates on
    ``grid``), ``s`` (stored position), ``visual`` (0 or 1).  ``tight`` says that each box is
    exactly the product of its ranges (but for ``s``); otherwise it may hold less.
    """

    first: Ints
    low: Mapping[str, npt.NDArray[Any]]
    high: Mapping[str, npt.NDArray[Any]]
    grid: Grid
    tight: bool

    @property
    def single(self) -> bool:
        """Whether each run is one box."""
        return len(self.first) - 1 == len(self.low["s"])

    def hull(self) -> Boxes:
        """One box for each run: the smallest around its boxes."""
        if self.single:
            return self
        at = self.first[:-1]
        low = {name: np.minimum.reduceat(v, at) for name, v in self.low.items()}
        high = {name: np.maximum.reduceat(v, at) for name, v in self.high.items()}
        return Boxes(np.arange(len(at) + 1), low, high, self.grid, False)

    def narrow(self) -> Boxes:
        """The same in 32-bit integers, which halves what a reader moves."""
        low, high = ({n: v.astype(np.int32) for n, v in d.items()} for d in (self.low, self.high))
        return Boxes(self.first, low, high, self.grid, self.tight)


@dataclass(frozen=True)
class Side:
    """Query or key tokens in stored order, to be cut into runs."""

    grid: Grid
    order: Order
    coordinates: bool
    """Whether the mask speaks of coordinates on `grid`."""
    tables: Mapping[str, npt.NDArray[Any]]

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.grid.tokens

    def boxes(self, size: int) -> Boxes:
        """Boxes of all runs of ``size`` stored tokens; the last run may be shorter."""
        start = np.arange(0, self.tokens, size, dtype=np.int64)
        end = np.minimum(start + size, self.tokens)
        order = identity(self.grid) if self.order.is_identity else self.order
        if order.is_identity and not self.coordinates:
            return _plain(start, end, self.grid)
        same = (order.grid.shape, order.grid.visual_start) == (
            self.grid.shape,
            self.grid.visual_start,
        )
        if isinstance(order, Axes | Cubes) and (same or not self.coordinates):
            return _order_boxes(start, end, order)
        return self._listed(start, end)

    @cached_property
    def _values(self) -> dict[str, Ints]:
        """The variables of every stored token, from the order written out."""
        index, grid = self.order.index(self.tables), self.grid
        inside = (index >= grid.visual_start) & (index < grid.visual_start + grid.visual)
        values: dict[str, Ints] = {"visual": inside.astype(np.int64)}
        if not self.coordinates:
            return {**values, "base": index}
        values["base"] = np.where(inside, grid.visual_start, index)
        coordinates = grid.coordinates().astype(np.int64)
        return values | {str(i): c[index] for i, c in enumerate(coordinates)}

    def _listed(self, start: Ints, end: Ints) -> Boxes:
        """One hull for each run."""
        low = {name: np.minimum.reduceat(v, start) for name, v in self._values.items()}
        high = {name: np.maximum.reduceat(v, start) for name, v in self._values.items()}
        low["s"], high["s"] = start, end - 1
        return Boxes(np.arange(len(start) + 1), low, high, self.grid, False)


def _plain(start: Ints, end: Ints, grid: Grid) -> Boxes:
    """Tokens in their own order, no coordinates asked for: a run is one interval."""
    low = {"base": start, "s": start, "visual": np.zeros_like(start)}
    high = {"base": end - 1, "s": end - 1, "visual": np.ones_like(start)}
    return Boxes(np.arange(len(start) + 1), low, high, grid, True)


Part = tuple[Ints, dict[str, Ints], dict[str, Ints]]
"""Some boxes: the runs they belong to, and their ranges by variable."""


def _order_boxes(start: Ints, end: Ints, order: Axes | Cubes) -> Boxes:
    """Runs of an order in closed form: boxes of text, and of digits."""
    parts = [_text_boxes(start, end, order.grid), *_visual_boxes(start, end, order)]
    owner = np.concatenate([p[0] for p in parts])
    sort = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[sort], np.arange(len(start) + 1))
    low = {n: np.concatenate([p[1][n] for p in parts])[sort] for n in parts[0][1]}
    high = {n: np.concatenate([p[2][n] for p in parts])[sort] for n in parts[0][2]}
    return Boxes(first, low, high, order.grid, True)


def _text_boxes(start: Ints, end: Ints, grid: Grid) -> Part:
    offset = grid.visual_start
    text_low, text_high = (0, offset) if offset else (grid.visual, grid.tokens)
    a, b = np.maximum(start, text_low), np.minimum(end, text_high)
    at = np.flatnonzero(a < b)
    zero = np.zeros(len(at), np.int64)
    digits = {str(i): zero for i in range(len(grid.shape))}
    low = {"base": a[at], "s": a[at], "visual": zero, **digits}
    high = {"base": b[at] - 1, "s": b[at] - 1, "visual": zero, **digits}
    return at, low, high


def _visual_boxes(start: Ints, end: Ints, order: Axes | Cubes) -> list[Part]:
    grid, offset = order.grid, order.grid.visual_start
    if not grid.visual:
        return []
    a = np.clip(start - offset, 0, grid.visual)
    b = np.clip(end - offset, 0, grid.visual)
    owner = np.flatnonzero(a < b)
    a, b = a[owner], b[owner]
    if isinstance(order, Axes):
        permutation, base = order.permutation, np.zeros_like(a)
        sizes = [np.full_like(a, n) for n in order.sizes]
        corners = [base] * len(sizes)
    else:
        permutation = tuple(range(len(grid.shape)))
        at, cube = _cut_at_cubes(a, b, order)
        owner, a, b = owner[at], np.maximum(a[at], cube.start), np.minimum(b[at], cube.end)
        base, sizes, corners = cube.start, cube.sizes, cube.corners
    parts: list[Part] = []
    for at, lows, highs in _digit_boxes(np.arange(len(a)), a - base, b - base, sizes):
        place = sum(
            (n * _volume(sizes[i + 1 :], at) for i, n in enumerate(lows)), base[at] + offset
        )
        last = sum(
            (n * _volume(sizes[i + 1 :], at) for i, n in enumerate(highs)), base[at] + offset
        )
        one = np.ones(len(at), np.int64)
        low = {"base": one * offset, "s": place, "visual": one}
        high = {"base": one * offset, "s": last, "visual": one}
        for axis, lo, hi, corner in zip(permutation, lows, highs, corners, strict=True):
            low[str(axis)], high[str(axis)] = lo + corner[at], hi + corner[at]
        parts.append((owner[at], low, high))
    return parts


@dataclass(frozen=True)
class _Cubes:
    """Some cubes: stored visual positions from ``start`` to ``end``, corners and sizes by axis."""

    start: Ints
    end: Ints
    corners: list[Ints]
    sizes: list[Ints]


def _cut_at_cubes(a: Ints, b: Ints, order: Cubes) -> tuple[Ints, _Cubes]:
    """Runs [a, b) cut where a cube ends: the run of each piece, and the cube it lies in."""
    shape, side = order.grid.shape, order.cube
    counts = [-(-n // c) for n, c in zip(shape, side, strict=True)]
    numbers = np.indices(counts).reshape(len(counts), -1)
    corners = [n * c for n, c in zip(numbers, side, strict=True)]
    sizes = [np.minimum(c, n - k) for c, n, k in zip(side, shape, corners, strict=True)]
    ends = np.cumsum(_volume(sizes, np.arange(numbers.shape[1])))
    first = np.searchsorted(ends, a, side="right")
    count = np.searchsorted(ends, b - 1, side="right") + 1 - first
    at = np.repeat(np.arange(len(a)), count)
    cube = first[at] + np.arange(len(at)) - np.repeat(np.cumsum(count) - count, count)
    start = ends - _volume(sizes, np.arange(numbers.shape[1]))
    held = _Cubes(start[cube], ends[cube], [k[cube] for k in corners], [n[cube] for n in sizes])
    return at, held


def _volume(sizes: Sequence[Ints], at: Ints) -> Ints:
    return math.prod((n[at] for n in sizes), start=np.ones(len(at), np.int64))


DigitBoxes = list[tuple[Ints, list[Ints], list[Ints]]]
"""Groups of boxes: the run each lies in, its lowest and its highest digits (slowest first)."""


def _digit_boxes(owner: Ints, a: Ints, b: Ints, sizes: Sequence[Ints]) -> DigitBoxes:
    """Cut runs [a, b) of row-major positions into boxes of digits.

    Whole steps of the slowest digit make one box; what sticks out at either end is cut by the
    faster digits in turn.  ``owner`` names the runs; sizes, slowest first, are by the same names.
    """
    some = a < b
    owner, a, b = owner[some], a[some], b[some]
    if not len(a):
        return []
    if len(sizes) == 1:
        return [(owner, [a], [b - 1])]
    step = _volume(sizes[1:], owner)
    head, tail = a // step, b // step
    whole = -(-a // step)
    out: DigitBoxes = []
    full = whole < tail
    if full.any():
        own = owner[full]
        lows = [whole[full]] + [np.zeros(len(own), np.int64) for _ in sizes[1:]]
        out.append((own, lows, [tail[full] - 1] + [n[own] - 1 for n in sizes[1:]]))
    ragged = a % step != 0
    ends = np.minimum(b, (head + 1) * step)
    starts = np.maximum(a, tail * step)
    last = (b % step != 0) & ~(ragged & (head == tail))
    for pick, slow, lo, hi in ((ragged, head, a, ends), (last, tail, starts, b)):
        slow, lo, hi, own = slow[pick], lo[pick], hi[pick], owner[pick]
        base = slow * step[pick]
        inner = _digit_boxes(np.arange(len(own)), lo - base, hi - base, [n[own] for n in sizes[1:]])
        out += [(own[at], [slow[at], *lows], [slow[at], *highs]) for at, lows, highs in inner]
    return out
