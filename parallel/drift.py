"""Masks that change from one denoising step to the next, and what a planner makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kdsl.blocks import from_maps
from kdsl.errors import InputError
from kdsl.parallel.chooser import Planner
from kdsl.parallel.cost import simulate
from kdsl.parallel.metrics import imbalance_ratio
from kdsl.parallel.work import BlockWork, Shape


@dataclass(frozen=True)
class Drift:
    """A video-like mask whose blocks come and go: ``steps`` steps, seeded.

    Scores of blocks follow a stationary first-order process: ``rate`` 0 keeps them for ever, 1
    draws them anew each step.  Heads keep ``density`` on average with a coefficient of variation of
    ``spread``; their own densities drift at the same rate.  Nearer blocks score higher.
    """

    shape: Shape
    steps: int = 50
    density: float = 0.3
    spread: float = 0.55
    rate: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.density <= 1 and 0 <= self.rate <= 1 and self.spread >= 0):
            raise InputError(
                f"density={self.density}, rate={self.rate}, spread={self.spread}",
                hint="density in (0, 1], rate in [0, 1], spread of 0 or more",
            )

    def works(self) -> Iterator[BlockWork]:
        """The work of every step."""
        shape, rng = self.shape, np.random.default_rng(self.seed)
        size = (shape.heads, shape.rows, shape.columns)
        away = np.abs(
            np.arange(shape.rows)[:, None] / shape.rows
            - np.arange(shape.columns)[None] / shape.columns
        )
        keep, new = np.sqrt(1 - self.rate), np.sqrt(self.rate)
        blocks = rng.standard_normal(size, np.float32)
        heads, rows = rng.standard_normal(shape.heads), rng.standard_normal(size[:2])
        # A log-normal of this deviation has the spread that was asked for, and mean 1.
        sigma = np.sqrt(np.log1p(self.spread**2))
        for _ in range(self.steps):
            share = np.exp(sigma * heads - sigma**2 / 2)[:, None] * np.exp(0.2 * rows - 0.02)
            wanted = np.clip(self.density * share, 1 / shape.columns, 1)
            score = blocks - 2 * away[None]
            count = np.ceil(wanted * shape.columns).astype(np.int64)
            edge = np.take_along_axis(
                np.sort(score, axis=2), (shape.columns - count)[..., None], axis=2
            )
            kept = score >= edge
            yield BlockWork.of(
                from_maps(kept, None, shape.block, shape.queries, shape.keys),
                shape.heads,
                shape.kv_heads,
            )
            blocks = keep * blocks + new * rng.standard_normal(size, np.float32)
            heads = keep * heads + new * rng.standard_normal(shape.heads)
            rows = keep * rows + new * rng.standard_normal(size[:2])


@dataclass(frozen=True)
class Replayed:
    """What a planner made of a drift: plans that came into use, times and imbalance by step."""

    plans: int
    us: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def mean_us(self) -> float:
        """Mean time of a step's attention, planning not counted."""
        return float(np.mean(self.us))


def replay(drift: Drift, planner: Planner) -> Replayed:
    """One layer through all steps; every step is timed on its own mask, whatever it was planned
    for."""
    took, ratios = [], []
    for work in drift.works():
        held = planner.plan(0, work)
        took.append(simulate(held.plan, work, planner.costs, chunks=held.chunks).us)
        ratios.append(imbalance_ratio(held.plan.cells(work)))
    return Replayed(planner.plans_made, tuple(took), tuple(ratios))
