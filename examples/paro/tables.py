"""The study as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from examples.paro.study import RULES, Budgeted, Judged, Study
from kdsl import orders

MARK, PARO = "<", "*"
"""Behind the order that kdsl chose, and behind PAROAttention's."""


def order_table(study: Study) -> Table:
    """Heads x candidate orders: mass held, M_sparse and M_quant below it."""
    share = study.search.settings.shares[0]
    table = Table(
        title=f"Attention held by {share:.0%} of the blocks, every order",
        caption=f"{MARK} chosen, {PARO} PAROAttention's choice of the first six.  "
        "Below: M_sparse, M_quant",
        show_lines=True,
    )
    table.add_column("head")
    for name in study.search.names:
        table.add_column(name.replace("cubes", "").replace(", ", "x"), justify="right")
    ours = [orders.name_of(o) for o in study.orders("kdsl", 0)]
    paro = [orders.name_of(o) for o in study.orders("PARO", 0)]
    s = study.scores
    for head, name in enumerate(study.names):
        cells = []
        for i, order in enumerate(study.search.names):
            marks = MARK * (order == ours[head]) + PARO * (order == paro[head])
            cells.append(
                f"{s.mass[0, i, head]:.1%}{marks}\n"
                f"{s.sparse[i, head]:.0%} {s.incoherence[i, head]:.0f}"
            )
        table.add_row(name, *cells)
    return table


def comparison(judged: Sequence[Judged], names: Sequence[str]) -> Table:
    """Mass held on unseen frames: heads x rules at every density, means last."""
    densities = sorted({j.density for j in judged})
    by = {(j.density, j.rule): j for j in judged}
    table = Table(title="Attention held on frames that nothing was chosen on")
    table.add_column("head")
    for density in densities:
        for rule in RULES:
            table.add_column(f"{rule}\n{density:.0%}", justify="right")
    for head, name in enumerate(names):
        cells = [f"{by[d, r].held[head]:.2%}" for d in densities for r in RULES]
        table.add_row(name, *cells)
    table.add_section()
    table.add_row("mean", *(f"{by[d, r].held.mean():.2%}" for d in densities for r in RULES))
    table.add_row("density", *(f"{by[d, r].kept.mean():.1%}" for d in densities for r in RULES))
    return table


def budget_table(found: Budgeted, names: Sequence[str]) -> Table:
    """Density and errors of every head under a bound on its output's error."""
    table = Table(title=f"An error of at most {found.budget:.0%} in every head's output")
    for column in ("head", "density", "promised", "worst on unseen frames"):
        table.add_column(column, justify="left" if column == "head" else "right")
    worst, density = found.measured.max(0), found.kept.mean((1, 2))
    for row in zip(names, density, found.promised, worst, strict=True):
        table.add_row(row[0], f"{row[1]:.1%}", f"{row[2]:.2%}", f"{row[3]:.2%}")
    return table


def verdict(judged: Sequence[Judged]) -> list[tuple[float, float, float]]:
    """(density, gain of the mean over PAROAttention, worst difference in a head)."""
    by = {(j.density, j.rule): j.held for j in judged}
    out = []
    for density in sorted({j.density for j in judged}):
        gain = by[density, "kdsl"] - by[density, "PARO"]
        out.append((density, float(np.mean(gain)), float(gain.min())))
    return out
