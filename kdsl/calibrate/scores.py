"""How well each candidate order suits each head, and rules that choose one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from kdsl.calibrate.rules import keep_rows
from kdsl.errors import InputError
from kdsl.statistics import BlockStatistics

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """Means over samples, each ``[candidates, heads]`` but for ``mass``.

    ``density``: the share of blocks that holds ``keep`` of every looked-at row (less is better).
    ``mass [shares, candidates, heads]``: what is held by so many of all blocks, the heaviest of the
    samples before (more).  ``sparse``: M_sparse (more), ``incoherence``: M_quant (less).
    """

    density: Floats
    mass: Floats
    sparse: Floats
    incoherence: Floats

    def choose(
        self, rule: str = "mass", *, at: int = 0, alpha: float = 0.5
    ) -> npt.NDArray[np.int64]:
        """The chosen candidate of each head, ``[heads]``; among equals the one named first.

        ``"mass"`` (most mass in the blocks that the kernel will visit, at share number ``at``),
        ``"density"`` (fewest blocks for the mass that is to be kept) or ``"paro"`` (`paro`, with
        its ``alpha``).
        """
        if rule == "paro":
            return np.asarray(self.paro(alpha).argmin(0))
        if rule == "mass":
            return np.asarray(self.mass[at].argmax(0))
        if rule == "density":
            return np.asarray(self.density.argmin(0))
        raise InputError(f"rule={rule!r}", hint='"mass", "density" or "paro"')

    def paro(self, alpha: float = 0.5) -> Floats:
        """PAROAttention's score of each candidate and head (less is better).

        arXiv 2506.16054 adds ``alpha`` times M_sparse over its sum and ``1 - alpha`` times M_quant
        over its sum, over candidates, and takes the least; but more sparse blocks are better.  Here
        ``1 - M_sparse`` enters.  The paper does not give alpha.
        """
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha={alpha}", hint="0 (M_quant alone) to 1 (M_sparse alone)")
        dense = 1 - self.sparse
        return np.asarray(alpha * _share(dense) + (1 - alpha) * _share(self.incoherence))


def score(
    found: BlockStatistics,
    known: npt.NDArray[np.floating] | None,
    inside: npt.NDArray[np.bool_],
    forced: npt.NDArray[np.bool_],
    *,
    keep: float,
    shares: Sequence[float],
    sigma: float,
) -> Scores:
    """Scores of one candidate, ``[1, heads]``, from statistics of some block rows.

    ``known [heads, looked, columns]`` is mass from other samples, which says what blocks to judge:
    a mask is static, so an order in which every sample has other heavy blocks is of no use.  None
    takes the sample's own.  ``inside`` and ``forced [looked, columns]`` are blocks without text,
    which the two metrics look at, and those that stay dense.
    """
    weights = found.queries / found.queries.sum()
    mass = found.mass.mean(0)
    density = keep_rows(mass, keep, forced).mean((-2, -1))
    guide = mass if known is None else known
    held = [(mass * heaviest(guide, weights, x, forced)).sum(2) @ weights for x in shares]
    return Scores(
        density=density[None],
        mass=np.stack(held)[:, None],
        sparse=found.sparse(sigma, inside).mean(0)[None],
        incoherence=found.incoherence(inside).mean(0)[None],
    )


def heaviest(
    mass: npt.NDArray[np.floating],
    weights: npt.NDArray[np.float64],
    share: float,
    forced: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """``share`` of the blocks ``[heads, looked, columns]``: forced ones, then the heaviest."""
    flat = np.where(forced, np.inf, mass * weights[:, None]).reshape(len(mass), -1)
    first = np.argsort(-flat, axis=1, kind="stable")[:, : max(int(share * flat.shape[1]), 1)]
    kept = np.zeros(flat.shape, np.bool_)
    np.put_along_axis(kept, first, True, 1)
    return kept.reshape(mass.shape) | forced


def joined(scores: list[Scores]) -> Scores:
    """Scores of several candidates, one after another."""
    names = [f.name for f in fields(Scores)]
    return Scores(*(np.concatenate([getattr(s, n) for s in scores], axis=-2) for n in names))


def mean(scores: list[Scores]) -> Scores:
    """The mean over samples; of ``mass`` without the first, which had none before it to go by."""
    names = [f.name for f in fields(Scores)]
    later = {"mass": scores[1:] or scores}
    return Scores(*(np.mean([getattr(s, n) for s in later.get(n, scores)], axis=0) for n in names))


def _share(values: Floats) -> Floats:
    return np.asarray(values / np.maximum(values.sum(0), 1e-30))
