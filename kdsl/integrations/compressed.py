"""Compressed rows of one head: where each row's columns start, and the columns.

The part that flashinfer, SciPy and ``torch.sparse_bsr`` share.  Their blocks carry values; here a
block's values are truths, ``[block_q, block_k]``: which of its pairs are seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks, from_lists
from kdsl.errors import InputError
from kdsl.integrations.required import integers
from kdsl.specs import Attention

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


class Compressed(NamedTuple):
    """``indptr [rows + 1]`` and ascending ``indices``, int32; which of the blocks are partial."""

    indptr: Ints
    indices: Ints
    partial: Bools


def compress(rows: Blocks, head: int = 0, batch: int = 0) -> Compressed:
    """The rows of one head of one batch item."""
    b, h = (_of("batch item", batch, rows, 0), _of("head", head, rows, 1))
    start, full, cut_ones = (x[b : b + 1, h : h + 1] for x in (rows.start, rows.full, rows.partial))
    one = replace(rows, start=start, full=full, partial=cut_ones)
    parts = [(*one.flat(partial=cut, full=not cut), cut) for cut in (False, True)]
    row = np.concatenate([r for r, _, _ in parts])
    column = np.concatenate([c for _, c, _ in parts])
    cut = np.concatenate([np.full(len(r), c) for r, _, c in parts])
    order = np.lexsort((column, row))
    indptr = np.zeros(rows.rows + 1, np.int32)
    np.cumsum(one.counts.reshape(-1), out=indptr[1:])
    return Compressed(indptr, column[order].astype(np.int32), cut[order])


def _of(what: str, given: int, rows: Blocks, axis: int) -> int:
    size = rows.start.shape[axis]
    if size > 1 and not 0 <= given < size:
        raise InputError(f"{what} {given} of rows with {size}", hint=f"0 to {size - 1}")
    return given if size > 1 else 0


def elements(
    rows: Blocks,
    spec: Attention | None = None,
    head: int = 0,
    batch: int = 0,
    tables: Mapping[str, Any] | None = None,
) -> Bools:
    """Which pairs of each kept block are seen, ``[blocks, block_q, block_k]``, as in `compress`.

    Pairs past the last query or key are not.  ``spec`` gives the mask within partial blocks, whose
    rows these are; InputError where there are some without it.
    """
    indptr, indices, partial = compress(rows, head, batch)
    if partial.any() and spec is None:
        raise InputError(
            f"{int(partial.sum())} blocks are partial, and rows do not say which of their pairs",
            hint="spec=, whose mask does",
        )
    if spec is not None and (spec.block, spec.query_grid.tokens, spec.key_grid.tokens) != (
        rows.block, rows.queries, rows.keys,
    ):  # fmt: skip
        raise InputError("the rows are not of this spec", where=repr(spec), hint="spec.rows()")
    height, width = rows.block
    out = np.ones((len(indices), height, width), np.bool_)
    row = np.repeat(np.arange(rows.rows), np.diff(indptr))
    below = row[:, None] * height + np.arange(height) < rows.queries
    beside = indices[:, None] * width + np.arange(width) < rows.keys
    out &= below[:, :, None] & beside[:, None, :]
    if spec is None:
        return out
    q_of, k_of = (_part(order, head).index(tables) for order in (spec.query_order, spec.kv_order))
    for i in np.flatnonzero(partial):
        qs = np.arange(row[i] * height, min((row[i] + 1) * height, rows.queries))
        ks = np.arange(indices[i] * width, min((indices[i] + 1) * width, rows.keys))
        out[i, : len(qs), : len(ks)] = spec.element_mask.dense(
            q_of[qs], k_of[ks], head=head, batch=batch, tables=_given(tables), stored=(qs, ks)
        )
    return out


def _part(order: Any, head: int) -> Any:
    return order.parts[head if len(order.parts) > 1 else 0]


def _given(tables: Mapping[str, Any] | None) -> dict[str, Any]:
    return {n: np.asarray(v) for n, v in (tables or {}).items()}


def expand(
    indptr: Any,
    indices: Any,
    block: tuple[int, int],
    queries: int,
    keys: int,
    truths: Bools | None = None,
) -> Blocks:
    """Rows of one head from compressed ones.

    Without ``truths`` (`elements`) blocks are full; with them a block that shows all of its pairs
    inside the sequences is full, one that shows some is partial, one that shows none is left out.
    """
    rows, columns = -(-queries // block[0]), -(-keys // block[1])
    start, column = integers("indptr", indptr, 1), integers("indices", indices, 1)
    if len(start) != rows + 1 or start[0] != 0 or (np.diff(start) < 0).any():
        raise InputError(
            f"indptr of {len(start)} entries from {start[:1].tolist()}",
            hint=f"{rows + 1} that never fall, the first 0: {queries} tokens in blocks of {block}",
        )
    if start[-1] != len(column):
        raise InputError(f"indptr ends at {int(start[-1])}, and there are {len(column)} indices")
    if column.size and not 0 <= column.min() <= column.max() < columns:
        raise InputError(
            f"indices {int(column.min())} to {int(column.max())}", hint=f"0 to {columns - 1}"
        )
    row = np.repeat(np.arange(rows), np.diff(start))
    if len(np.unique(row * max(columns, 1) + column)) != len(column):
        raise InputError("a row lists a column twice", where="indices")
    cut = np.zeros(len(column), np.bool_)
    if truths is not None:
        if truths.shape != (len(column), *block):
            raise InputError(
                f"values of shape {truths.shape}", hint=f"{(len(column), *block)}: one a pair"
            )
        below = row[:, None] * block[0] + np.arange(block[0]) < queries
        beside = column[:, None] * block[1] + np.arange(block[1]) < keys
        inside = below[:, :, None] & beside[:, None, :]
        seen = truths & inside
        some, cut = seen.any((1, 2)), (seen != inside).any((1, 2))
        row, column, cut = row[some], column[some], cut[some]
    return from_lists(row, column, cut, (1, 1, rows), block, queries, keys)
