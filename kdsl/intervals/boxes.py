"""Runs of stored tokens as boxes of coordinates.

An original token is ``base + sum(stride[i] * coord[i])``: ``base`` is where the grid starts, or the
token itself for text (whose coordinates read 0).  Over a box every variable runs through an
interval independently of the others, which is what makes the reader exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.grid import Grid
from kdsl.orders import Axes, Order

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Boxes:
    """Boxes of several runs, those of a run side by side.

    ``first[r]`` is the first box of run ``r`` (one more entry closes the last).  ``low`` and
    ``high`` hold inclusive ranges by variable: ``base``, ``0``, ``1``, ``2`` (coordinates), ``s``
    (stored position), ``visual`` (0 or 1).  ``tight`` says that each box is exactly the product of
    its ranges (but for ``s``); otherwise it may hold less.
    """

    first: Ints
    low: Mapping[str, npt.NDArray[Any]]
    high: Mapping[str, npt.NDArray[Any]]
    tight: bool

    def hull(self) -> Boxes:
        """One box for each run: the smallest around its boxes."""
        at = self.first[:-1]
        if len(at) == len(self.low["base"]):
            return self
        low = {name: np.minimum.reduceat(v, at) for name, v in self.low.items()}
        high = {name: np.maximum.reduceat(v, at) for name, v in self.high.items()}
        return Boxes(np.arange(len(at) + 1), low, high, False)

    def narrow(self) -> Boxes:
        """The same in 32-bit integers, which halves what a reader moves."""
        low, high = ({n: v.astype(np.int32) for n, v in d.items()} for d in (self.low, self.high))
        return Boxes(self.first, low, high, self.tight)


@dataclass(frozen=True)
class Side:
    """Query or key tokens in stored order, to be cut into runs."""

    grid: Grid
    order: Order
    coordinates: bool
    """Whether the mask speaks of this side's coordinates."""
    tables: Mapping[str, npt.NDArray[Any]]

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.grid.tokens

    def boxes(self, size: int) -> Boxes:
        """Boxes of all runs of ``size`` stored tokens; the last run may be shorter."""
        start = np.arange(0, self.tokens, size, dtype=np.int64)
        end = np.minimum(start + size, self.tokens)
        if self.order.is_identity and not self.coordinates:
            return _plain(start, end)
        if isinstance(self.order, Axes):
            return _axis_boxes(start, end, self.order)
        return self._listed(start, end)

    def _listed(self, start: Ints, end: Ints) -> Boxes:
        """One hull for each run, from the order written out."""
        index = self.order.index(self.tables)
        grid = self.grid
        inside = (index >= grid.visual_start) & (index < grid.visual_start + grid.visual)
        values: dict[str, Ints] = {"visual": inside.astype(np.int64)}
        if self.coordinates:
            values["base"] = np.where(inside, grid.visual_start, index)
            coordinates = grid.coordinates().astype(np.int64)
            values |= {str(i): c[index] for i, c in enumerate(coordinates)}
        else:
            values["base"] = index
        low = {name: np.minimum.reduceat(v, start) for name, v in values.items()}
        high = {name: np.maximum.reduceat(v, start) for name, v in values.items()}
        low["s"], high["s"] = start, end - 1
        return Boxes(np.arange(len(start) + 1), low, high, False)


def _plain(start: Ints, end: Ints) -> Boxes:
    """Tokens in their own order, no coordinates asked for: a run is one interval."""
    low = {"base": start, "s": start, "visual": np.zeros_like(start)}
    high = {"base": end - 1, "s": end - 1, "visual": np.ones_like(start)}
    return Boxes(np.arange(len(start) + 1), low, high, True)


def _axis_boxes(start: Ints, end: Ints, order: Axes) -> Boxes:
    """A run of an axis order: at most one box of text and a few of digits."""
    grid, offset = order.grid, order.grid.visual_start
    parts: list[tuple[Ints, dict[str, Ints], dict[str, Ints]]] = []
    text_low, text_high = (0, offset) if offset else (grid.visual, grid.tokens)
    if grid.text:
        a, b = np.maximum(start, text_low), np.minimum(end, text_high)
        at = np.flatnonzero(a < b)
        zero = np.zeros(len(at), np.int64)
        low = {"base": a[at], "s": a[at], "visual": zero}
        high = {"base": b[at] - 1, "s": b[at] - 1, "visual": zero}
        digits = {str(i): zero for i in range(len(grid.shape))}
        parts.append((at, low | digits, high | digits))
    a = np.clip(start - offset, 0, grid.visual)
    b = np.clip(end - offset, 0, grid.visual)
    for at, lows, highs, first, last in _digit_boxes(np.arange(len(a)), a, b, order.sizes):
        one = np.ones(len(at), np.int64)
        low = {"base": one * offset, "s": first + offset, "visual": one}
        high = {"base": one * offset, "s": last + offset, "visual": one}
        for axis, lo, hi in zip(order.permutation, lows, highs, strict=True):
            low[str(axis)], high[str(axis)] = lo, hi
        parts.append((at, low, high))
    owner = np.concatenate([p[0] for p in parts])
    sort = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[sort], np.arange(len(start) + 1))
    low = {n: np.concatenate([p[1][n] for p in parts])[sort] for n in parts[0][1]}
    high = {n: np.concatenate([p[2][n] for p in parts])[sort] for n in parts[0][2]}
    return Boxes(first, low, high, True)


DigitBoxes = list[tuple[Ints, list[Ints], list[Ints], Ints, Ints]]
"""Groups of boxes: owning run, lowest and highest digits (slowest first), first and last position."""


def _digit_boxes(owner: Ints, a: Ints, b: Ints, sizes: tuple[int, ...]) -> DigitBoxes:
    """Cut the runs [a, b) of row-major positions into boxes of digits.

    Whole steps of the slowest digit make one box; what sticks out at either end is cut by the
    faster digits in turn.
    """
    some = a < b
    owner, a, b = owner[some], a[some], b[some]
    if not len(a):
        return []
    if len(sizes) == 1:
        return [(owner, [a], [b - 1], a, b - 1)]
    step = int(np.prod(sizes[1:], dtype=np.int64))
    head, tail = a // step, b // step
    whole = -(-a // step)
    out: DigitBoxes = []
    full = whole < tail
    if full.any():
        n = int(full.sum())
        lows = [whole[full]] + [np.zeros(n, np.int64) for _ in sizes[1:]]
        highs = [tail[full] - 1] + [np.full(n, size - 1, np.int64) for size in sizes[1:]]
        out.append((owner[full], lows, highs, whole[full] * step, tail[full] * step - 1))
    ragged = a % step != 0
    ends = np.minimum(b, (head + 1) * step)
    starts = np.maximum(a, tail * step)
    last = (b % step != 0) & ~(ragged & (head == tail))
    for pick, slow, lo, hi in ((ragged, head, a, ends), (last, tail, starts, b)):
        slow, lo, hi, own = slow[pick], lo[pick], hi[pick], owner[pick]
        inner = _digit_boxes(np.arange(len(own)), lo - slow * step, hi - slow * step, sizes[1:])
        for at, lows, highs, first, final in inner:
            base = slow[at] * step
            digits = ([slow[at], *lows], [slow[at], *highs])
            out.append((own[at], *digits, first + base, final + base))
    return out
