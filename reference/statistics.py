"""Block statistics of attention maps, block row by block row: the truth in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.specs import as_array
from kdsl.statistics import BlockStatistics

ENTRIES = 1 << 22
"""Entries of a map held at once: some block rows below each other, or BLAS wakes for little."""

Float = npt.NDArray[Any]


def block_statistics(
    q: Any,
    k: Any,
    index: npt.NDArray[np.int64],
    *,
    block: tuple[int, int],
    rows: npt.NDArray[np.int64],
    eps: float,
    scale: float,
    dtype: Any = np.float64,
) -> BlockStatistics:
    """Statistics of block ``rows``: ``q [batch, heads, tokens, d]``, ``k [batch, kv_heads, ...]``.

    ``index [tokens]`` or ``[heads, tokens]`` is the original token at every stored position.
    The map is never held as a whole.  With ``dtype=numpy.float32`` it takes a third of the time.
    """
    q, k = as_array(q, dtype), as_array(k, dtype)
    tokens = q.shape[2]
    shape = (*q.shape[:2], len(rows), -(-tokens // block[1]))
    mass, peak, below = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int32)
    starts = np.arange(0, tokens, block[1])
    group = q.shape[1] // max(k.shape[1], 1)
    for b, h in np.ndindex(*shape[:2]):
        at = index[h] if index.ndim > 1 else index
        scaled, keys = q[b, h, at] * dtype(scale), k[b, h // group, at]
        for i, p in _maps(scaled, keys, block[0], rows):
            total = np.add.reduceat(p.sum(0), starts, dtype=np.float64)
            mass[b, h, i] = total / total.sum()
            peak[b, h, i] = np.maximum.reduceat(p.max(0), starts)
            # A wider type would cost four times as much; a column holds at most 256 entries.
            small = (p < eps).view(np.uint8).sum(0, dtype=np.uint16)
            below[b, h, i] = np.add.reduceat(small, starts, dtype=np.int64)
    return BlockStatistics(rows, block, tokens, eps, mass, peak, below)


def sparse_blocks(p: Float, block: tuple[int, int], eps: float, sigma: float) -> float:
    """M_sparse of a whole map: the share of blocks in which ``sigma`` of the entries are below eps.

    PAROAttention (arXiv 2506.16054), on the choice of orders.  More is better.
    """
    return float(np.mean([(b < eps).sum() >= sigma * b.size for b in _cut(p, block)]))


def incoherence(p: Float, block: tuple[int, int]) -> float:
    """M_quant of a whole map: the mean over blocks of largest over mean entry.  Less is better."""
    return float(np.mean([b.max() / b.mean() if b.any() else 1.0 for b in _cut(p, block)]))


def _cut(p: Float, block: tuple[int, int]) -> Iterator[Float]:
    for q in range(0, p.shape[0], block[0]):
        for k in range(0, p.shape[1], block[1]):
            yield p[q : q + block[0], k : k + block[1]]


def output_error(
    q: Any,
    k: Any,
    v: Any,
    index: npt.NDArray[np.int64],
    kept: npt.NDArray[np.bool_],
    *,
    block: tuple[int, int],
    rows: npt.NDArray[np.int64],
    scale: float,
    dtype: Any = np.float64,
) -> tuple[Float, Float]:
    """Squared norms of what a mask changes and of the dense output: two ``[batch, heads, looked]``.

    ``kept [heads, rows, columns]`` are the blocks of the whole map that block-sparse attention
    visits; each query's weights are divided by their sum again, and are 0 where it sees nothing.
    """
    q, k, v = (as_array(x, dtype) for x in (q, k, v))
    changed, size = np.zeros((2, *q.shape[:2], len(rows)))
    group = q.shape[1] // max(k.shape[1], 1)
    for b, h in np.ndindex(*q.shape[:2]):
        at = index[h] if index.ndim > 1 else index
        scaled, keys, values = (
            q[b, h, at] * dtype(scale),
            k[b, h // group, at],
            v[b, h // group, at],
        )
        for some, sizes, p in _chunks(scaled, keys, block[0], rows):
            seen = np.repeat(kept[h, rows[some]], block[1], axis=1)[:, : len(keys)]
            left = np.where(np.repeat(seen, sizes, axis=0), p, dtype(0))
            total = left.sum(1, keepdims=True)
            dense = p @ values
            off = left @ values / np.where(total > 0, total, 1) - dense
            starts = np.cumsum(sizes, dtype=np.int64) - sizes
            for out, x in ((changed, off), (size, dense)):
                out[b, h, some] = np.add.reduceat(np.square(x, dtype=np.float64).sum(1), starts)
    return changed, size


def _maps(
    scaled: Float, keys: Float, block_q: int, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[int, Float]]:
    """(position in ``rows``, ``P [<= block_q, tokens]``) of one head as stored."""
    for some, sizes, p in _chunks(scaled, keys, block_q, rows):
        yield from enumerate(np.split(p, np.cumsum(sizes)[:-1]), some.start)


def _chunks(
    scaled: Float, keys: Float, block_q: int, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[slice, npt.NDArray[np.int64], Float]]:
    """Some of ``rows``, the queries of each, and their P one below the other."""
    together = max(ENTRIES // max(block_q * len(keys), 1), 1)
    for first in range(0, len(rows), together):
        some = slice(first, min(first + together, len(rows)))
        parts = [scaled[r * block_q : (r + 1) * block_q] for r in rows[some]]
        p = np.concatenate(parts) @ keys.T
        p -= p.max(1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(1, keepdims=True)
        yield some, np.array([len(part) for part in parts], np.int64), p
