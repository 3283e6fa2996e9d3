"""The calibration as a person reads it in a terminal."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from examples.clip.axis_orders import ORDERS
from examples.clip.calibrate import Calibration, OrderScore

MARK = "<"  # stands behind the chosen order, so that the table reads without colours


def order_table(found: Calibration) -> Table:
    """Heads x six orders: density, then M_sparse and M_quant below it; the chosen one is marked."""
    percent = f"{found.settings.keep:.0%}"
    table = Table(
        title=f"Blocks needed for {percent} of the attention, six orders a head",
        caption=f"{MARK} chosen.  Below: sparse blocks (M_sparse), incoherence (M_quant)",
        show_lines=True,
    )
    table.add_column("head")
    for order in ORDERS:
        table.add_column(order, justify="right")
    for name, scores, chosen in zip(found.names, found.scores, found.orders, strict=True):
        table.add_row(name, *(_cell(score, score.order == chosen) for score in scores))
    return table


def _cell(score: OrderScore, chosen: bool) -> Text:
    head = f"{score.density:.1%}" + (MARK if chosen else " ")
    return Text.assemble(
        (head, "bold green" if chosen else ""),
        (f"\n{score.sparse:.0%} {score.incoherence:.0f} ", "dim"),
    )


def summary(found: Calibration) -> Table:
    """One line a head: the chosen order, what its blocks cost and hold, how peaked the map is."""
    uniform = math.log(found.grid.tokens)
    table = Table(
        title=f"{found.grid.tokens:,} tokens, density {found.density:.1%} over all heads",
        caption=f"entropy in nats, uniform {uniform:.2f}; best 30 %: mass of the heaviest blocks",
    )
    for column in ("head", "order", "density", "kept mass", "entropy", "best 30 %", "PARO's pick"):
        table.add_column(column, justify="left" if column in ("head", "order") else "right")
    rows = zip(
        found.names,
        found.orders,
        found.densities,
        found.retained,
        found.entropy,
        found.held_by_best(),
        found.paro,
        strict=True,
    )
    for name, order, density, kept, entropy, best, paro in rows:
        table.add_row(
            name,
            order,
            f"{density:.1%}",
            f"{kept:.1%}",
            f"{entropy:.2f}",
            f"{best:.1%}",
            paro,
        )
    return table
