"""Rows of blocks: which blocks of a mask a kernel visits, and which of them need the mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError, SpecError

CHUNK = 1 << 22
"""Entries looked at together in statistics."""

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Kept blocks by row: full ones first, then partial ones, ascending within each.

    ``start``, ``full``, ``partial``: int32 ``[batch or 1, heads or 1, rows]``.  Row r keeps the
    columns ``index[start[r] : start[r] + full[r]]`` whole and the next ``partial[r]`` in part.
    Rows may share entries or leave gaps (fixed capacity).  ``block`` is (queries, keys) a block;
    ``queries`` and ``keys`` count tokens, and the last block of either may be ragged.
    """

    start: Ints
    full: Ints
    partial: Ints
    index: Ints
    block: tuple[int, int]
    queries: int
    keys: int

    def __post_init__(self) -> None:
        shape = self.start.shape
        if self.full.shape != shape or self.partial.shape != shape or len(shape) != 3:
            raise InputError(
                "start, full and partial must have one shape [batch, heads, rows]",
                where=f"{shape}, {self.full.shape}, {self.partial.shape}",
            )
        if shape[2] != self.rows:
            raise InputError(
                f"{shape[2]} rows of blocks for {self.queries} tokens in blocks of {self.block[0]}",
                hint=f"{self.rows} rows",
            )

    @property
    def rows(self) -> int:
        """Blocks along the queries."""
        return -(-self.queries // self.block[0])

    @property
    def columns(self) -> int:
        """Blocks along the keys."""
        return -(-self.keys // self.block[1])

    @cached_property
    def counts(self) -> Ints:
        """Kept blocks of each row, ``[batch, heads, rows]``."""
        return self.full + self.partial

    @property
    def density(self) -> float:
        """Kept blocks over all blocks, mean over heads."""
        return (
            float(self.counts.mean() / self.columns) if self.counts.size and self.columns else 0.0
        )

    @property
    def partial_share(self) -> float:
        """Partial blocks over kept blocks."""
        return float(self.partial.sum() / max(self.counts.sum(), 1))

    def flat(
        self, *, partial: bool = True, full: bool = True
    ) -> tuple[npt.NDArray[np.int64], Ints]:
        """(flat row number, column) of every kept block, row by row."""
        begin = self.start.reshape(-1).astype(np.int64)
        count = np.zeros_like(begin)
        if full:
            count += self.full.reshape(-1)
        else:
            begin += self.full.reshape(-1)
        if partial:
            count += self.partial.reshape(-1)
        return self._listed(begin, count)

    def _listed(
        self, begin: npt.NDArray[np.int64], count: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], Ints]:
        """(number of the stretch, column) of every entry in some stretches of the index."""
        row = np.repeat(np.arange(len(count)), count)
        step = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        return row, self.index[begin[row] + step]

    def kept(self, *, partial: bool = True, full: bool = True) -> Bools:
        """The boolean map ``[batch, heads, rows, columns]`` of kept blocks."""
        out = np.zeros((*self.start.shape, self.columns), np.bool_)
        row, column = self.flat(partial=partial, full=full)
        out.reshape(self.start.size, self.columns)[row, column] = True
        return out

    def transpose(self) -> Blocks:
        """The same blocks by column: for each key block the query blocks that visit it."""
        lead = self.start.shape[:2]
        found = []
        for partial in (False, True):
            row, column = self.flat(full=not partial, partial=partial)
            item, line = np.divmod(row, max(self.rows, 1))
            found.append((item * self.columns + column, line, np.full(len(row), partial)))
        row, column, partial_ = (np.concatenate(x) for x in zip(*found, strict=True))
        shape, block = (*lead, self.columns), (self.block[1], self.block[0])
        return from_lists(row, column, partial_, shape, block, self.keys, self.queries)

    def pack(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Full and partial maps as bits, little-endian along the columns."""
        maps = (self.kept(partial=False), self.kept(full=False))
        full, partial = (np.packbits(m, axis=-1, bitorder="little") for m in maps)
        return full, partial

    def statistics(self) -> Mapping[str, float]:
        """What tuning keys on: density, partial share, spread of row lengths, run length.

        ``row_spread`` is the 95th percentile of kept blocks in a row over the mean, ``run_length``
        the mean number of neighbouring columns kept in a row, ``row_max`` the longest row over the
        mean.
        """
        counts = self.counts.reshape(-1)
        mean = float(counts.mean()) if counts.size else 0.0
        runs = self._runs()
        return {
            "density": self.density,
            "partial_share": self.partial_share,
            "row_spread": float(np.percentile(counts, 95)) / mean if mean else 0.0,
            "row_max": float(counts.max()) / mean if mean else 0.0,
            "run_length": int(counts.sum(dtype=np.int64)) / runs if runs else 0.0,
        }

    def _runs(self) -> int:
        """Runs of neighbouring columns in all rows; rows that share their entries count once each.

        Both lists of a row ascend, so nothing is sorted: a kept block begins a run unless its left
        neighbour is kept too, in the same list or in the other.
        """
        lines = np.stack([self.start, self.full, self.partial]).reshape(3, -1).astype(np.int64)
        lines, times = np.unique(lines, axis=1, return_counts=True)
        ends = np.cumsum(lines[1] + lines[2])
        total, first = int((times * (lines[1] + lines[2])).sum()), 0
        while first < len(times):
            done = ends[first - 1] if first else 0
            last = max(int(np.searchsorted(ends, done + CHUNK)), first + 1)
            start, full, partial = lines[:, first:last]
            total -= self._neighbours(start, full, partial, times[first:last])
            first = last
        return total

    def _neighbours(
        self,
        start: npt.NDArray[np.int64],
        full: npt.NDArray[np.int64],
        partial: npt.NDArray[np.int64],
        times: npt.NDArray[np.int64],
    ) -> int:
        """Pairs of kept blocks side by side, each as often as its row occurs."""
        found = 0
        keys = []
        for begin, count in ((start, full), (start + full, partial)):
            row, column = self._listed(begin, count)
            # One column more than there are: the end of a row is no neighbour of the next one.
            key = row * (self.columns + 1) + column
            found += int(times[row[1:]][np.diff(key) == 1].sum())
            keys.append((row, key))
        (_, whole), (row, cut) = keys
        if len(whole):
            for side in (-1, 1):
                at = np.minimum(np.searchsorted(whole, cut + side), len(whole) - 1)
                found += int(times[row][whole[at] == cut + side].sum())
        return found


def from_maps(
    full: npt.ArrayLike,
    partial: npt.ArrayLike | None,
    block: tuple[int, int],
    queries: int,
    keys: int,
) -> Blocks:
    """Rows from boolean maps ``[batch, heads, rows, columns]`` (leading axes may be missing)."""
    maps = [np.asarray(full, np.bool_)]
    maps.append(np.zeros_like(maps[0]) if partial is None else np.asarray(partial, np.bool_))
    maps = [m.reshape((1,) * (4 - m.ndim) + m.shape) for m in maps]
    if maps[0].shape != maps[1].shape or maps[0].ndim != 4:
        raise InputError("the maps of full and partial blocks differ in shape")
    if (maps[0] & maps[1]).any():
        raise InputError("a block is marked full and partial at once")
    expected = (-(-queries // block[0]), -(-keys // block[1]))
    if maps[0].shape[2:] != expected:
        raise InputError(
            f"a block map of {maps[0].shape[2:]} rows and columns",
            hint=f"{expected} for {queries} x {keys} tokens in blocks of {block}",
        )
    flat_rows = int(np.prod(maps[0].shape[:3], dtype=np.int64))
    rows = [np.nonzero(m.reshape(flat_rows, m.shape[-1])) for m in maps]
    kinds = np.concatenate([np.zeros(len(rows[0][0]), bool), np.ones(len(rows[1][0]), bool)])
    row = np.concatenate([r[0] for r in rows])
    column = np.concatenate([r[1] for r in rows])
    return from_lists(row, column, kinds, maps[0].shape[:3], block, queries, keys)


def from_lists(
    row: npt.NDArray[Any],
    column: npt.NDArray[Any],
    partial: Bools,
    shape: tuple[int, ...],
    block: tuple[int, int],
    queries: int,
    keys: int,
) -> Blocks:
    """Rows from kept blocks in any order: flat row number, column, and whether it is partial."""
    total = int(np.prod(shape, dtype=np.int64))
    columns = max(-(-keys // block[1]), 1)
    line = row.astype(np.int64) * 2 + partial
    counts = np.bincount(line, minlength=2 * total).reshape(-1, 2)
    # Sorted keys hold the columns themselves: no index is sorted along.
    index = (np.sort(line * columns + column) % columns).astype(np.int32)
    start = np.concatenate([[0], np.cumsum(counts.sum(1))[:-1]]) if total else np.zeros(0)
    if len(row) >= 2**31:
        raise SpecError(f"{len(row)} kept blocks", hint="larger blocks, or a sparser mask")
    return Blocks(
        start.astype(np.int32).reshape(shape),
        counts[:, 0].astype(np.int32).reshape(shape),
        counts[:, 1].astype(np.int32).reshape(shape),
        index,
        block,
        queries,
        keys,
    )


def unpack(
    full: npt.NDArray[np.uint8],
    partial: npt.NDArray[np.uint8],
    block: tuple[int, int],
    queries: int,
    keys: int,
) -> Blocks:
    """Rows from the bits that `Blocks.pack` wrote."""
    columns = -(-keys // block[1])
    maps = (np.unpackbits(m, axis=-1, count=columns, bitorder="little") for m in (full, partial))
    first, second = (m.astype(np.bool_) for m in maps)
    return from_maps(first, second, block, queries, keys)


def stack_heads(heads: list[Blocks]) -> Blocks:
    """One set of rows from one for each head; equal heads (the same object) share their entries."""
    first = heads[0]
    size = (first.block, first.queries, first.keys)
    starts: dict[int, int] = {}
    parts, offset = [], 0
    for h in heads:
        if (h.block, h.queries, h.keys) != size:
            raise InputError("the heads' rows differ in block or token counts")
        if id(h) not in starts:
            starts[id(h)] = offset
            parts.append(h.index)
            offset += len(h.index)
    if offset >= 2**31:
        raise SpecError(f"{offset} kept blocks", hint="larger blocks, or a sparser mask")
    return Blocks(
        np.concatenate([h.start + np.int32(starts[id(h)]) for h in heads], axis=1),
        np.concatenate([h.full for h in heads], axis=1),
        np.concatenate([h.partial for h in heads], axis=1),
        np.concatenate(parts),
        first.block,
        first.queries,
        first.keys,
    )
