"""Attention maps as a whole, in float64: small enough to hold, for tests of what streams them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.specs import as_array
from kdsl.statistics import BlockStatistics
from tests.tolerance import EXP2, U32, U_SUM

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Map:
    """One head's ``P [tokens, tokens]`` in stored order, and how far float32 may be from it.

    A score errs by ``S (d U_SUM + 4 U32)`` (see `tests.tolerance`), the log-sum-exp by that and by
    the sums of its terms, one exp2 is wrong by ``EXP2``; ``error`` is the relative error of a
    probability.
    """

    p: Float
    error: float

    def cut(self, block: tuple[int, int], row: int, column: int) -> Float:
        """One block."""
        q, k = row * block[0], column * block[1]
        return self.p[q : q + block[0], k : k + block[1]]


def whole(q: Any, k: Any, index: npt.NDArray[Any], scale: float) -> Map:
    """The map of one head from ``[tokens, head_dim]`` in the model's order."""
    q, k = as_array(q, np.float64)[index], as_array(k, np.float64)[index]
    s = scale * (q @ k.T)
    p = np.exp(s - s.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    size = scale * np.linalg.norm(q, axis=1).max() * np.linalg.norm(k, axis=1).max()
    score = size * (q.shape[1] * U_SUM + 4 * U32)
    return Map(p, float(np.expm1(2 * score + 3 * EXP2 + (len(k) + 8) * U_SUM)))


def check(found: BlockStatistics, maps: list[list[Map]]) -> None:
    """Every statistic of every block equals that of the whole maps ``[batch][heads]``.

    Sums run over at most 256 rows one after another, and over columns and tiles in trees.  An entry
    so near eps that float32 may see it on the other side may count or not.
    """
    sums = 320 * U_SUM
    for b, heads in enumerate(maps):
        for h, m in enumerate(heads):
            for i, row in enumerate(found.rows):
                line = m.p[row * found.block[0] : (row + 1) * found.block[0]]
                for c in range(found.mass.shape[-1]):
                    piece, at = m.cut(found.block, int(row), c), (b, h, i, c)
                    share = piece.sum() / line.sum()
                    assert abs(found.mass[at] - share) <= share * (2 * m.error + sums) + 1e-37, at
                    peak = piece.max()
                    assert abs(found.peak[at] - peak) <= peak * m.error + 1e-37, at
                    least = (piece * (1 + m.error) < found.eps).sum()
                    most = (piece * (1 - m.error) < found.eps).sum()
                    assert least <= found.below[at] <= most, at
                    assert found.entries[i, c] == piece.size
