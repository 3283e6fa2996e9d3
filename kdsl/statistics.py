"""What the blocks of attention maps hold, and PAROAttention's two metrics of a token order.

The map is ``P = softmax(scale * q k^T)`` over tokens in a stored order, cut in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError
from kdsl.grid import Grid

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class BlockStatistics:
    """Statistics of some rows of blocks, in stored order.

    ``rows`` are the numbers of the block rows that were looked at, ascending; ``block`` is
    (queries, keys) a block over ``tokens`` tokens, the last one ragged.  The arrays are ``[batch,
    heads, looked, columns]``: ``mass`` is the share of its row's probability that a block holds
    (rows sum to 1), ``peak`` its largest probability, ``below`` how many of its entries are less
    than ``eps`` (a probability).
    """

    rows: npt.NDArray[np.int64]
    block: tuple[int, int]
    tokens: int
    eps: float
    mass: Floats
    peak: Floats
    below: npt.NDArray[np.integer]

    def __post_init__(self) -> None:
        shapes = {self.mass.shape, self.peak.shape, self.below.shape}
        columns = -(-self.tokens // self.block[1])
        if len(shapes) != 1 or self.mass.shape[-2:] != (len(self.rows), columns):
            raise InputError(
                f"statistics of shapes {sorted(map(str, shapes))}",
                hint=f"[batch, heads, {len(self.rows)}, {columns}]",
            )

    @property
    def queries(self) -> npt.NDArray[np.int64]:
        """Queries of each looked-at row, ``[looked]``: the last row of all may have fewer."""
        return block_sizes(self.tokens, self.block[0])[self.rows]

    @property
    def entries(self) -> npt.NDArray[np.int64]:
        """Entries of each block, ``[looked, columns]``."""
        return np.multiply.outer(self.queries, block_sizes(self.tokens, self.block[1]))

    def sparse(self, sigma: float = 0.9, inside: Bools | None = None) -> Floats:
        """M_sparse, ``[batch, heads]``: the share of blocks of which ``sigma`` is below eps.

        More is better.  PAROAttention (arXiv 2506.16054), section on the choice of orders; printed
        there, it enters a sum that is minimised with a plus sign, which `scores.paro` mends.
        ``inside [looked, columns]`` picks the blocks that count, all without it.
        """
        return _mean(self.below >= sigma * self.entries, inside)

    def incoherence(self, inside: Bools | None = None) -> Floats:
        """M_quant, ``[batch, heads]``: the mean over blocks of largest over mean probability.

        Less is better.  A block without probability (or with less than float32 holds) counts 1.
        """
        mean = self.mass.astype(np.float64) * self.queries[:, None] / self.entries
        ratio = np.divide(self.peak, mean, out=np.ones_like(mean), where=mean > 0)
        return _mean(ratio, inside)


def block_sizes(tokens: int, size: int) -> npt.NDArray[np.int64]:
    """Tokens of each block, the last one ragged."""
    return np.diff(np.append(np.arange(0, tokens, size), tokens))


def text_blocks(grid: Grid, size: int) -> Bools:
    """Which blocks of stored tokens hold text: their rows and columns stay dense, ``[blocks]``.

    Orders in closed form leave text in its place, so this holds for each of them.
    """
    text = np.ones(grid.tokens, np.bool_)
    text[grid.visual_start : grid.visual_start + grid.visual] = False
    return np.logical_or.reduceat(text, np.arange(0, grid.tokens, size))


def sampled_rows(rows: int, every: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """One of each ``every`` neighbouring block rows, drawn: a stride could beat with the grid."""
    if every < 1:
        raise InputError(f"one row in {every}", hint="every=1 looks at all of them")
    rng = np.random.default_rng(seed)
    first = np.arange(0, rows, every)
    return rng.integers(first, np.minimum(first + every, rows))


def _mean(values: npt.NDArray[np.generic], inside: Bools | None) -> Floats:
    if inside is None:
        return np.asarray(values.mean((-2, -1)))
    return np.asarray(values[..., inside].mean(-1)) if inside.any() else np.zeros(values.shape[:-2])
