"""Which order stores each head best, and which blocks it then keeps: `kdsl.calibrate` on the clip.

The order is chosen by what the kernel will pay, the density at a retained mass; PAROAttention's
own choice (arXiv 2506.16054) is shown beside it.

``python -m examples.clip.calibrate`` prints the table for the shipped clip.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.clip.arrays import Blocks, Floats
from examples.clip.axis_orders import ORDERS
from examples.clip.maps import softmax
from kdsl import orders
from kdsl.calibrate import OrderSearch, Settings, block_statistics, held, keep_rows, row_weights
from kdsl.errors import InputError
from kdsl.grid import Grid

ENTROPY_EVERY = 4
SETTINGS = Settings(every=4)
"""Blocks of 64 x 64 that hold 95 % of every block row's mass, one row in four looked at."""


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

    ``scores`` is ``[heads][orders]``; ``orders`` names the chosen one of each head, ``paro`` the
    one that PAROAttention's score picks; ``blocks`` is bool ``[heads, rows, columns]`` and ``mass``
    float32 of the same shape, both in the head's stored order, every row of ``mass`` summing to 1;
    ``entropy`` is the mean over one query in ``ENTROPY_EVERY``, in nats.
    """

    grid: Grid
    settings: Settings
    names: tuple[str, ...]
    scores: tuple[tuple[OrderScore, ...], ...]
    orders: tuple[str, ...]
    paro: tuple[str, ...]
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
        weights = row_weights(self.grid.tokens, self.settings.block[0])
        return tuple(held(self.mass, self.blocks, weights).tolist())

    def held_by_best(self, share: float = 0.3) -> tuple[float, ...]:
        """Share of each head's mass that its heaviest blocks hold, ``share`` of all blocks."""
        rows = row_weights(self.grid.tokens, self.settings.block[0])
        flat = np.sort((self.mass * rows[:, None]).reshape(len(self.mass), -1), 1)[:, ::-1]
        return tuple(flat[:, : int(share * flat.shape[1])].sum(1).tolist())


def calibrate(
    q: Floats,
    k: Floats,
    grid: Grid,
    names: tuple[str, ...] = (),
    settings: Settings = SETTINGS,
) -> Calibration:
    """Score six orders a head, choose one, and keep the fewest blocks that hold enough mass.

    ``q``, ``k``: float32 ``[1, heads, tokens, head_dim]`` in original order, RoPE applied.  Raises
    ``InputError`` for other shapes.
    """
    if q.shape != k.shape or q.ndim != 4 or q.shape[0] != 1 or q.shape[2] != grid.tokens:
        raise InputError(
            f"q {q.shape} and k {k.shape}",
            where="calibrate",
            hint=f"[1, heads, {grid.tokens}, head_dim] for {grid!r}",
        )
    search = OrderSearch(grid, 1, [orders.axes(grid, name) for name in ORDERS], settings)
    search.observe(0, q, k)
    found = search.scores(0)
    parts = (found.density, found.sparse, found.incoherence)
    chosen = tuple(ORDERS[i] for i in found.choose("density"))
    mass = block_mass(q, k, grid, chosen, settings.block)
    heads = range(q.shape[1])
    return Calibration(
        grid=grid,
        settings=settings,
        names=names or tuple(f"head {h}" for h in heads),
        scores=tuple(
            tuple(
                OrderScore(order, *(float(part[i, h]) for part in parts))
                for i, order in enumerate(ORDERS)
            )
            for h in heads
        ),
        orders=chosen,
        paro=tuple(ORDERS[i] for i in found.choose("paro")),
        blocks=keep_rows(mass, settings.keep),
        mass=mass,
        entropy=tuple(entropy(q[0, h], k[0, h]) for h in heads),
    )


def block_mass(
    q: Floats, k: Floats, grid: Grid, names: tuple[str, ...], block: tuple[int, int]
) -> Floats:
    """Mass of every block ``[heads, rows, columns]``, rows summing to 1; an order for each head."""
    order = orders.per_head([orders.axes(grid, name) for name in names])
    return block_statistics(q, k, order, block=block).mass[0].astype(np.float32)


def entropy(q: Floats, k: Floats) -> float:
    """Mean entropy of one head's queries ``[tokens, head_dim]`` in nats, of a sample of them.

    Logarithms of all would cost as much as the map.
    """
    p = softmax((q[::ENTROPY_EVERY] @ k.T) * np.float32(q.shape[1] ** -0.5))
    return float(-np.einsum("ij,ij->i", p, np.log(np.maximum(p, 1e-30))).mean())


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
    settings = Settings(block=(args.block[0], args.block[1]), keep=args.keep, every=4)
    found = calibrate(made.q, made.k, grid, tuple(head.name for head in made.heads), settings)
    console = Console()
    console.print(order_table(found))
    console.print(summary(found))


if __name__ == "__main__":
    main()
