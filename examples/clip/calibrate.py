"""Which order stores each head best, and which blocks it then keeps.  NumPy only.

The statistics are PAROAttention's (arXiv 2506.16054): in blocks of the attention map after softmax,
M_sparse counts blocks almost all of whose entries are negligible, M_quant is the mean incoherence.
Printed there, M_sparse enters a sum that is minimised although more of it is better; here 1 -
M_sparse does.  The order is chosen by what the kernel will pay, the density at a retained mass: a
count of small entries does not see how much mass they hold together.

``python -m examples.clip.calibrate`` prints the table for the shipped clip.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.clip.arrays import Blocks, Floats
from examples.clip.axis_orders import ORDERS, stored_to_original
from examples.clip.maps import RowBlocks, blocks_in, row_blocks, stream
from kdsl.errors import InputError
from kdsl.grid import Grid

ENTROPY_EVERY = 4


@dataclass(frozen=True)
class Settings:
    """What calibration is asked for.

    ``block`` is (block_q, block_k) in tokens; ``keep`` the share of every block row's mass that its
    kept blocks must hold; one block row in ``every`` is looked at to compare orders (all of them to
    choose blocks); an entry is negligible below ``eps`` times uniform attention, 1 / tokens, and a
    block sparse when a share ``sigma`` of its entries is.
    """

    block: tuple[int, int] = (64, 64)
    keep: float = 0.95
    every: int = 4
    eps: float = 1.0
    sigma: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.block) < 1 or self.every < 1:
            raise InputError("blocks and strides are at least 1", where=repr(self))
        if not (0 < self.keep <= 1 and 0 < self.sigma <= 1 and self.eps > 0):
            raise InputError("keep and sigma lie in (0, 1], eps above 0", where=repr(self))


@dataclass(frozen=True)
class OrderScore:
    """One head in one order: ``density`` at the retained mass, ``sparse`` and ``incoherence``.

    ``density`` is the share of blocks needed to keep ``Settings.keep`` of each looked-at block row;
    ``sparse`` is M_sparse (more is better), ``incoherence`` M_quant (less is better).
    """

    order: str
    density: float
    sparse: float
    incoherence: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """Orders and blocks per head, and the evidence for both.

    ``scores`` is ``[heads][orders]``; ``orders`` names the chosen one of each head; ``blocks`` is
    bool ``[heads, rows, columns]`` and ``mass`` float32 of the same shape, both in the head's
    stored order, every row of ``mass`` summing to 1; ``entropy`` is the mean over one query in
    ``ENTROPY_EVERY``, in nats.
    """

    grid: Grid
    settings: Settings
    names: tuple[str, ...]
    scores: tuple[tuple[OrderScore, ...], ...]
    orders: tuple[str, ...]
    blocks: Blocks
    mass: Floats
    entropy: tuple[float, ...]

    @property
    def density(self) -> float:
        """Kept blocks over all blocks, all heads."""
        return float(self.blocks.mean())

    @property
    def densities(self) -> tuple[float, ...]:
        """Kept blocks over all blocks of each head."""
        return tuple(self.blocks.mean((1, 2)).tolist())

    @property
    def retained(self) -> tuple[float, ...]:
        """Share of each head's attention mass that the kept blocks hold."""
        weights = _row_sizes(self.grid.tokens, self.settings.block[0]) / self.grid.tokens
        return tuple(((self.mass * self.blocks).sum(2) @ weights).tolist())

    def held_by_best(self, share: float = 0.3) -> tuple[float, ...]:
        """Share of each head's mass that its heaviest blocks hold, ``share`` of all blocks."""
        rows = _row_sizes(self.grid.tokens, self.settings.block[0]) / self.grid.tokens
        flat = np.sort((self.mass * rows[:, None]).reshape(len(self.mass), -1), 1)[:, ::-1]
        return tuple(flat[:, : int(share * flat.shape[1])].sum(1).tolist())


def calibrate(
    q: Floats,
    k: Floats,
    grid: Grid,
    names: tuple[str, ...] = (),
    settings: Settings | None = None,
) -> Calibration:
    """Score six orders a head, choose one, and keep the fewest blocks that hold enough mass.

    ``q``, ``k``: float32 ``[1, heads, tokens, head_dim]`` in original order, RoPE applied.  Raises
    ``InputError`` for other shapes.
    """
    settings = settings or Settings()
    if q.shape != k.shape or q.ndim != 4 or q.shape[0] != 1 or q.shape[2] != grid.tokens:
        raise InputError(
            f"q {q.shape} and k {k.shape}",
            where="calibrate",
            hint=f"[1, heads, {grid.tokens}, head_dim] for {grid!r}",
        )
    heads = range(q.shape[1])
    indices = {order: stored_to_original(grid, order) for order in ORDERS}
    scores = tuple(
        tuple(score(q[0, h, indices[o]], k[0, h, indices[o]], o, settings) for o in ORDERS)
        for h in heads
    )
    orders = tuple(choose(row) for row in scores)
    passes = [
        block_mass(q[0, h, indices[o]], k[0, h, indices[o]], settings.block)
        for h, o in zip(heads, orders, strict=True)
    ]
    mass = np.stack([m for m, _ in passes])
    return Calibration(
        grid=grid,
        settings=settings,
        names=names or tuple(f"head {h}" for h in heads),
        scores=scores,
        orders=orders,
        blocks=np.stack([keep_blocks(m, settings.keep) for m in mass]),
        mass=mass,
        entropy=tuple(e for _, e in passes),
    )


def score(q: Floats, k: Floats, order: str, settings: Settings) -> OrderScore:
    """One head ``[tokens, head_dim]`` as stored, judged by a sample of its block rows."""
    rows = sampled(blocks_in(len(q), settings.block[0]), settings.every, settings.seed)
    eps = settings.eps / len(k)
    seen: list[RowBlocks] = [
        row_blocks(p, settings.block[1], eps) for _, p in stream(q, k, settings.block[0], rows)
    ]
    mass = np.stack([row.mass for row in seen])
    return OrderScore(
        order,
        density=float(keep_blocks(mass, settings.keep).mean()),
        sparse=float(np.mean([row.below >= settings.sigma for row in seen])),
        incoherence=float(np.mean([row.incoherence for row in seen])),
    )


def sampled(rows: int, every: int, seed: int) -> tuple[int, ...]:
    """One of each ``every`` neighbouring block rows, drawn: a stride could beat with the grid."""
    rng = np.random.default_rng(seed)
    return tuple(int(rng.integers(a, min(a + every, rows))) for a in range(0, rows, every))


def choose(scores: tuple[OrderScore, ...]) -> str:
    """The order of least density; among equals the one named first."""
    return min(scores, key=lambda s: s.density).order


def paro_choice(scores: tuple[OrderScore, ...], alpha: float = 0.5) -> str:
    """The order of least PAROAttention score, its sign set right; alpha is not in the paper."""
    full = np.array([1 - s.sparse for s in scores])
    rough = np.array([s.incoherence for s in scores])
    total = alpha * full / max(full.sum(), 1e-30) + (1 - alpha) * rough / rough.sum()
    return scores[int(total.argmin())].order


def block_mass(q: Floats, k: Floats, block: tuple[int, int]) -> tuple[Floats, float]:
    """Mass of every block ``[rows, columns]``, rows summing to 1, and the mean entropy in nats.

    ``q``, ``k``: one head ``[tokens, head_dim]`` as stored.  The entropy is that of one query in
    ``ENTROPY_EVERY``: its logarithms would cost as much as the map.
    """
    starts = np.arange(0, len(k), block[1])
    mass: list[npt.NDArray[np.float64]] = []
    entropy: list[float] = []
    for _, p in stream(q, k, block[0]):
        total = np.add.reduceat(p.sum(0), starts, dtype=np.float64)
        mass.append(total / total.sum())
        some = p[::ENTROPY_EVERY]
        entropy.extend(-np.einsum("ij,ij->i", some, np.log(np.maximum(some, 1e-30))))
    return np.stack(mass).astype(np.float32), float(np.mean(entropy))


def keep_blocks(mass: npt.NDArray[np.floating], keep: float) -> Blocks:
    """The fewest blocks of each row of ``mass`` ``[rows, columns]`` that hold ``keep`` of it."""
    heaviest = np.argsort(-mass, axis=1, kind="stable")
    held = np.take_along_axis(mass, heaviest, 1).cumsum(1, dtype=np.float64)
    before = np.pad(held, ((0, 0), (1, 0)))[:, :-1]
    kept = np.zeros(mass.shape, np.bool_)
    np.put_along_axis(kept, heaviest, before < keep * held[:, -1:], 1)
    return kept


def _row_sizes(tokens: int, size: int) -> npt.NDArray[np.int64]:
    return np.diff(np.append(np.arange(0, tokens, size), tokens))


def main(argv: list[str] | None = None) -> None:
    """Command line: calibrate the heads of a clip and print the table of six orders."""
    from rich.console import Console

    from examples.clip.heads import project
    from examples.clip.tables import order_table, summary
    from examples.clip.video import CLIP, GRID, load

    parser = argparse.ArgumentParser(prog="python -m examples.clip.calibrate")
    parser.add_argument("--clip", type=Path, default=CLIP)
    parser.add_argument("--grid", type=int, nargs=3, default=GRID.shape, metavar=("F", "H", "W"))
    parser.add_argument("--block", type=int, nargs=2, default=(64, 64), metavar=("Q", "K"))
    parser.add_argument("--keep", type=float, default=0.95, help="mass each block row keeps")
    args = parser.parse_args(argv)
    grid = Grid(frames=args.grid[0], height=args.grid[1], width=args.grid[2])
    made = project(load(args.clip, grid).features, grid)
    settings = Settings(block=(args.block[0], args.block[1]), keep=args.keep)
    found = calibrate(made.q, made.k, grid, tuple(head.name for head in made.heads), settings)
    console = Console()
    console.print(order_table(found))
    console.print(summary(found))


if __name__ == "__main__":
    main()
