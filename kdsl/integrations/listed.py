"""Counts and padded columns of each row: the form that FlexAttention and FlashAttention-4 share.

``count`` is ``[batch, heads, rows]``; of ``index [batch, heads, rows, width]`` the first ``count``
entries of a row are its columns, and the rest means nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks, from_lists
from kdsl.errors import InputError
from kdsl.integrations.required import integers

Ints = npt.NDArray[np.int32]
Pair = tuple[Any, Any]


def read(
    partial: Pair, full: Pair | None, block: tuple[int, int], queries: int, keys: int
) -> Blocks:
    """Rows from the lists of partial and of full blocks; batch and heads of 1 stand for all.

    InputError for columns or counts out of range, a block listed twice, and shapes that do not fit
    ``queries`` x ``keys`` tokens.
    """
    rows, columns = -(-queries // block[0]), -(-keys // block[1])
    named = [("partial", partial)] + ([("full", full)] if full is not None else [])
    held = {kind: _checked(kind, pair, rows, columns) for kind, pair in named}
    lead = tuple(max(c.shape[axis] for c, _ in held.values()) for axis in (0, 1))
    row, column, kinds = [], [], []
    for kind, (count, index) in held.items():
        if any(n not in (1, m) for n, m in zip(count.shape[:2], lead, strict=True)):
            raise InputError(f"{count.shape[:2]} and {lead} batch items and heads", where=kind)
        count = np.broadcast_to(count, (*lead, rows))
        index = np.broadcast_to(index, (*lead, rows, index.shape[3]))
        listed = np.arange(index.shape[3]) < count[..., None]
        row.append(np.nonzero(listed.reshape(-1, index.shape[3]))[0])
        column.append(index[listed])
        kinds.append(np.full(len(row[-1]), kind == "partial"))
    at, line, cut = (np.concatenate(x) for x in (row, column, kinds))
    place = at * max(columns, 1) + line
    if len(np.unique(place)) != len(place):
        twice = np.sort(place)
        flat = int(twice[:-1][np.diff(twice) == 0][0])
        b, h, r, c = np.unravel_index(flat, (*lead, rows, columns))
        raise InputError(f"batch item {b}, head {h}, row {r} lists column {c} twice")
    return from_lists(at, line, cut, (*lead, rows), block, queries, keys)


def _checked(
    kind: str, pair: Pair, rows: int, columns: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    count = integers(f"the count of {kind} blocks", pair[0], 3)
    index = integers(f"the columns of {kind} blocks", pair[1], 4)
    if index.shape[:3] != count.shape or count.shape[2] != rows:
        raise InputError(
            f"counts of shape {count.shape} and columns of shape {index.shape}",
            where=f"{kind} blocks",
            hint=f"{rows} rows: as many tokens and the block size that the lists were made for",
        )
    if count.size and not 0 <= count.min() <= count.max() <= index.shape[3]:
        raise InputError(
            f"{int(count.min())} to {int(count.max())} blocks in a row of {index.shape[3]} columns",
            where=f"the count of {kind} blocks",
        )
    listed = index[np.arange(index.shape[3]) < count[..., None]]
    if listed.size and not 0 <= listed.min() <= listed.max() < columns:
        raise InputError(
            f"columns {int(listed.min())} to {int(listed.max())}",
            where=f"{kind} blocks",
            hint=f"0 to {columns - 1}",
        )
    return count, index


def write(rows: Blocks, *, partial: bool, width: int | None = None) -> tuple[Ints, Ints]:
    """Counts and columns of the full or the partial blocks, int32, ascending.

    ``width`` columns are held for each row, by default as many as the longest row has, and at least
    one.  Behind a row's own columns stand those it does not have, as far as there is room.
    """
    count = rows.partial if partial else rows.full
    most = max(int(count.max(initial=0)), 1)
    width = most if width is None else width
    if width < most:
        raise InputError(f"width={width}, and a row has {most} blocks")
    if width >= rows.columns:
        kept = rows.kept(partial=partial, full=not partial)
        index = np.argsort(~kept, axis=-1, kind="stable").astype(np.int32)
        spare = [(0, 0)] * 3 + [(0, width - rows.columns)]
        return count.astype(np.int32), np.pad(index, spare)
    out = np.zeros((rows.start.size, width), np.int32)
    row, column = rows.flat(partial=partial, full=not partial)
    first = np.cumsum(count.reshape(-1)) - count.reshape(-1)
    out[row, np.arange(len(row)) - first[row]] = column
    return count.astype(np.int32), out.reshape(*rows.start.shape, width)
