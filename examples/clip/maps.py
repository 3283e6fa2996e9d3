"""Attention maps a block of queries at a time: the whole map of a head is never in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from examples.clip.arrays import Floats

TOGETHER = 8  # block rows a product: BLAS may need longer to wake its threads than for a small one


def blocks_in(tokens: int, size: int) -> int:
    """Blocks of ``size`` that cover ``tokens``, the last one ragged."""
    return -(-tokens // size)


def softmax(scores: Floats) -> Floats:
    """Softmax over the last axis, in place; a row of -inf becomes 0."""
    top = scores.max(-1, keepdims=True)
    scores -= np.where(np.isfinite(top), top, 0)
    np.exp(scores, out=scores)
    total = scores.sum(-1, keepdims=True)
    scores /= np.where(total > 0, total, 1)
    return scores


def stream(
    q: Floats, k: Floats, block_q: int, rows: Iterable[int] | None = None
) -> Iterator[tuple[int, Floats]]:
    """``(row, P)`` for each block row of one head, ``P`` float32 ``[<= block_q, tokens]``.

    ``q`` and ``k`` are ``[tokens, head_dim]`` in the order that the blocks are cut from; ``rows``
    picks block rows, all without it.
    """
    for some, p in batches(q, k, block_q, rows):
        yield from zip(some, np.split(p, range(block_q, len(p), block_q)), strict=True)


def batches(
    q: Floats, k: Floats, block_q: int, rows: Iterable[int] | None = None
) -> Iterator[tuple[tuple[int, ...], Floats]]:
    """As ``stream``, up to ``TOGETHER`` block rows at a time, their P one below the other.

    Only the last block row of a head is ragged, so it must come last in ``rows``.
    """
    scaled = q * np.float32(q.shape[-1] ** -0.5)
    waiting = iter(range(blocks_in(len(q), block_q)) if rows is None else rows)
    while some := tuple(islice(waiting, TOGETHER)):
        parts = [scaled[row * block_q : (row + 1) * block_q] for row in some]
        yield some, softmax(np.concatenate(parts) @ k.T)


@dataclass(frozen=True, eq=False)
class RowBlocks:
    """The blocks of one block row, each array ``[columns]``.

    ``mass`` is the share of the row's probability in a block and sums to 1; ``below`` the share of
    a block's entries under eps; ``incoherence`` its largest entry over its mean, 1 where all are 0.
    """

    mass: npt.NDArray[np.float64]
    below: npt.NDArray[np.float64]
    incoherence: npt.NDArray[np.float64]


def row_blocks(p: Floats, block_k: int, eps: float) -> RowBlocks:
    """Statistics of the blocks of ``P`` ``[rows, tokens]``; the ragged last one counts as it is."""
    rows, tokens = p.shape
    starts = np.arange(0, tokens, block_k)
    entries = rows * np.diff(np.append(starts, tokens))
    total = np.add.reduceat(p.sum(0), starts, dtype=np.float64)
    small = (
        (p < eps).view(np.uint8).sum(0, dtype=np.uint16)
    )  # a wider type costs four times as much
    below = np.add.reduceat(small, starts, dtype=np.int64) / entries
    mean = total / entries
    highest = np.maximum.reduceat(p.max(0), starts)
    incoherence = np.divide(highest, mean, out=np.ones_like(mean), where=mean > 0)
    return RowBlocks(total / total.sum(), below, incoherence)
