"""Masks by a bound on the error of every head's output, cross-validated over samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.calibrate.rules import keep_heads, row_weights
from kdsl.errors import InputError
from kdsl.orders import Order
from kdsl.runtime.statistics import block_statistics, output_error

LADDER = 1 - np.geomspace(0.5, 1e-4, 64)
"""Shares of a head's mass that are tried; they grow finer towards 1."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def within_error(
    samples: Sequence[tuple[Any, Any, Any]],
    order: Order,
    budget: float,
    *,
    block: tuple[int, int] = (64, 64),
    forced: Bools | None = None,
    rows: npt.NDArray[np.int64] | None = None,
    margin: float = 0.9,
    scale: float | None = None,
) -> tuple[Bools, Floats]:
    """(kept ``[heads, rows, columns]``, measured errors ``[heads]``): the density comes out.

    Every head's output may be off by ``budget``, relative in the Frobenius norm, against dense
    attention.  ``samples`` of one layer are (q, k, v), from one range of steps.  A head keeps the
    least share of its mass (`keep_heads`) at which each sample stays below ``margin * budget``
    under a mask made from the *others*: what a mask loses on inputs that it was not made from is
    measured, not guessed.  Then the mask at that share is made from all of them.  (With one sample
    there are no others, and nothing but the margin for that loss.)  Where even the last rung of
    `LADDER` does not suffice, a head stays dense.  ``rows`` picks the block rows that are compared.
    """
    if not 0 < budget < 1 or not 0 < margin <= 1 or not len(samples):
        raise InputError(
            f"budget={budget}, margin={margin}, {len(samples)} samples",
            hint="a relative error such as 0.05, a margin up to 1, and a sample at least",
        )
    masses = [
        block_statistics(q, k, order, block=block, scale=scale).mass.mean(0) for q, k, _ in samples
    ]
    weights = row_weights(order.tokens, block[0])
    mean = np.mean(masses, axis=0)
    alone = len(samples) == 1
    others = [mean if alone else (mean * len(samples) - m) / (len(samples) - 1) for m in masses]

    def worst(rung: npt.NDArray[np.int64]) -> Floats:
        """The worst error of each head over samples at a rung a head."""
        found = []
        for (q, k, v), mass in zip(samples, others, strict=True):
            kept = _at(mass, weights, rung, forced)
            error = output_error(q, k, v, order, kept, block=block, rows=rows, scale=scale)
            found.append(error.max(0))
        return np.asarray(np.max(found, axis=0))

    # The error falls as blocks are added, but for noise: a bisection finds where it enters.
    low, high = np.zeros(len(mean), int), np.full(len(mean), len(LADDER))
    errors = np.zeros(len(mean))
    while (low < high).any():
        middle = (low + high) // 2
        tried = worst(middle)
        good = tried <= margin * budget
        errors = np.where(good & (low < high), tried, errors)
        high = np.where(good, middle, high)
        low = np.where(good, low, np.minimum(middle + 1, high))
    return _at(mean, weights, high, forced), errors


def _at(
    mass: npt.NDArray[np.floating],
    weights: Floats,
    rung: npt.NDArray[np.int64],
    forced: Bools | None,
) -> Bools:
    """The masks at a rung a head; past the last one everything is kept."""
    shares = np.append(LADDER, 1.0)[rung]
    kept = keep_heads(np.maximum(mass, 0), weights, shares, forced)
    kept[shares == 1] = True
    return kept
