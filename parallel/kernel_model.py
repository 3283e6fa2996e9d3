"""How long a rank's kernels take, by what they do: three rates and the longest tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdsl.errors import InputError, UnsupportedError
from kdsl.parallel.plan import Panel, Plan
from kdsl.parallel.topology import nonnegative
from kdsl.parallel.work import BlockWork
from kdsl.specs import Attention
from kdsl.targets import Target

SUSTAINED = 0.5
"""Share of the data sheet's peak that a block-sparse kernel is taken to reach until fitted."""
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Counts:
    """What one kernel call does, or several: panels, kept blocks, rows of blocks times heads.

    ``longest`` is the most blocks of one row of a head: one program computes them one by one.
    """

    panels: int
    blocks: int
    rows: int
    longest: int = 0


@dataclass(frozen=True)
class KernelModel:
    """Microseconds of a rank's kernels: so many for each panel, kept block and row of blocks.

    Blocks and rows are those of one mask block size, dtype and head dimension, with the whole GPU
    at work on them.  A call lasts no less than its longest row, ``tile_us`` a block.
    """

    panel_us: float
    block_us: float
    row_us: float
    tile_us: float = 0.0

    def us(self, done: Counts) -> float:
        """The time of one call; none for none, since nothing is launched without a block."""
        if not done.panels or not done.blocks:
            return 0.0
        spread = self.block_us * done.blocks + self.row_us * done.rows
        return self.panel_us * done.panels + max(spread, self.tile_us * done.longest)

    @staticmethod
    def of(spec: Attention, target: Target, batch: int = 1) -> KernelModel:
        """From the data sheet, where nothing was measured: half the peak, a program on each
        multiprocessor, 5 us to begin.

        Each row is read and written once at full bandwidth and its beginning and end cost what a
        block does, as measured rows of short and long rows do on an H100.
        """
        peak = target.peak(spec.dtype)
        if not peak or not target.bandwidth:
            raise UnsupportedError(f"{target.name} has no known {spec.dtype} rate")
        flop = 4.0 * spec.block[0] * spec.block[1] * spec.head_dim * batch
        line = 2.0 * spec.block[0] * spec.head_dim * ITEM_BYTES[spec.dtype] * batch
        block = flop / (peak * SUSTAINED) * 1e6
        return KernelModel(
            5.0, block, block + line / target.bandwidth * 1e6, block * target.sms / batch
        )


@dataclass(frozen=True)
class Fitted:
    """A kernel model from measured shards, and how far it is from them."""

    model: KernelModel
    error: float
    """Mean of |predicted - measured| / measured over the samples."""


def fit_kernel(samples: Sequence[tuple[Counts, float]]) -> Fitted:
    """The model that explains measured times (microseconds) of single calls, by relative least
    squares.

    Which calls wait for their longest row is not known: those with the least work beside it do, as
    many as explain the times best.  InputError for fewer than three samples.
    """
    if len(samples) < 3:
        raise InputError(f"{len(samples)} samples for three weights", hint="three or more")
    done = [counts for counts, _ in samples]
    took = np.asarray([us for _, us in samples], np.float64)
    if not (took > 0).all():
        raise InputError("a measured time is not above 0")
    columns = np.asarray([[c.panels, c.blocks, c.rows, 0] for c in done], np.float64)
    longest = np.asarray([c.longest for c in done], np.float64)
    room = np.where(longest > 0, columns[:, 1] / np.maximum(longest, 1), np.inf)
    order = np.argsort(room, kind="stable")
    waiting = [0, *np.unique(np.linspace(1, np.isfinite(room).sum(), 24).astype(int)).tolist()]
    best: Fitted | None = None
    for count in waiting if np.isfinite(room).any() else [0]:
        used = columns.copy()
        at = order[:count]
        used[at, 1:] = 0
        used[at, 3] = longest[at]
        model = KernelModel(*map(float, nonnegative(used, took)))
        ours = np.asarray([model.us(c) for c in done])
        found = Fitted(model, float(np.abs(ours / took - 1).mean()))
        if best is None or found.error < best.error:
            best = found
    assert best is not None
    return best


def panel_counts(panel: Panel, work: BlockWork) -> Counts:
    """What a panel's call does where all its keys are at hand."""
    heads = list(panel.heads)
    if panel.rows == ((0, work.shape.rows),):
        return Counts(
            1, int(work.heads[heads].sum()), panel.tiles, int(work.tallest[heads].max(initial=0))
        )
    parts = [work.rows[heads, first:end] for first, end in panel.rows]
    longest = max(int(part.max(initial=0)) for part in parts)
    return Counts(1, sum(int(part.sum()) for part in parts), panel.tiles, longest)


def ring_counts(plan: Plan, work: BlockWork, rank: int, step: int, blocks: int) -> Counts:
    """What a rank's calls do in a step of its ring, which visits so many kept blocks."""
    panels = plan.ranks[rank]
    columns = sum(end - first for first, end in plan.chunks[plan.mesh.source(rank, step)])
    longest = max((panel_counts(p, work).longest for p in panels), default=0)
    tiles = sum(panel.tiles for panel in panels)
    return Counts(len(panels), blocks, tiles, min(longest, columns))
