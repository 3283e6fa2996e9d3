"""Masks by a bound on the error of every head's output, as it is measured on samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.calibrate.rules import keep_heads, row_weights
from kdsl.errors import InputError
from kdsl.orders import Order
from kdsl.runtime.statistics import output_error

LADDER = 1 - np.geomspace(0.5, 1e-4, 64)
"""Shares of a head's mass that are tried; they grow finer towards 1."""


def within_error(
    mass: npt.NDArray[np.floating],
    order: Order,
    samples: Sequence[tuple[Any, Any, Any]],
    budget: float,
    *,
    block: tuple[int, int] = (64, 64),
    forced: npt.NDArray[np.bool_] | None = None,
    rows: npt.NDArray[np.int64] | None = None,
    margin: float = 0.8,
    scale: float | None = None,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """(kept ``[heads, rows, columns]``, measured errors ``[heads]``): the density comes out.

    Every head's output may be off by ``budget``, relative in the Frobenius norm, against dense
    attention.  Each head keeps the least of its mass (`keep_heads`) at which the worst of the
    ``samples``, each (q, k, v), stays below ``margin * budget``: what is left is for samples that
    calibration does not see.  Where even the last rung of `LADDER` does not suffice, a head stays
    dense.  ``rows`` picks the block rows that are compared.
    """
    if not 0 < budget < 1 or not 0 < margin <= 1 or not samples:
        raise InputError(
            f"budget={budget}, margin={margin}, {len(samples)} samples",
            hint="a relative error such as 0.05, a margin up to 1, and a sample at least",
        )
    weights = row_weights(order.tokens, block[0])

    def errors(kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        found = [
            output_error(*s, order, kept, block=block, rows=rows, scale=scale) for s in samples
        ]
        return np.asarray(np.max([e.max(0) for e in found], axis=0))

    # The error falls as blocks are added, but for noise: a bisection finds where it enters.
    low, high = np.zeros(len(mass), int), np.full(len(mass), len(LADDER))
    while (low < high).any():
        middle = (low + high) // 2
        kept = _at(mass, weights, middle, forced)
        good = errors(kept) <= margin * budget
        high = np.where(good, middle, high)
        low = np.where(good, low, np.minimum(middle + 1, high))
    kept = _at(mass, weights, high, forced)
    return kept, errors(kept)


def _at(
    mass: npt.NDArray[np.floating],
    weights: npt.NDArray[np.float64],
    rung: npt.NDArray[np.int64],
    forced: npt.NDArray[np.bool_] | None,
) -> npt.NDArray[np.bool_]:
    shares = np.append(LADDER, 1.0)[rung]
    kept = keep_heads(mass, weights, shares, forced)
    kept[shares == 1] = True
    return kept
