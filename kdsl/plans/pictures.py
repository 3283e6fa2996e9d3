"""The candidate orders of one head side by side: what each would keep, and its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kdsl.draw import STYLE, runs
from kdsl.errors import InputError, SpecError

if TYPE_CHECKING:
    from kdsl.plans.attention import AttentionPlan

SHADES, ASCII = "·░▒▓█", ".-+*#"
"""A cell of which nothing is kept, up to a third, up to two thirds, more, and all."""
LEVELS = (0.15, 0.4, 0.7, 1.0)
"""Opacity of the cells that keep something, in the same steps."""
MARK = "<"
"""Stands behind the chosen order, so that a picture reads without colours."""
PANEL, GAP = 180, 20

METRICS = (
    ("density", "density", "{:.1%}"),
    ("mass", "mass kept", "{:.1%}"),
    ("sparse", "M_sparse", "{:.1%}"),
    ("incoherence", "M_quant", "{:.1f}"),
)
"""Array behind ``score.``, what it is called, how it is written."""


@dataclass(frozen=True)
class Panel:
    """One order of one head: its name, lines of metrics, and how full each cell is, 0 to 255."""

    name: str
    chosen: bool
    lines: tuple[str, ...]
    cells: npt.NDArray[np.uint8]

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """Shade of each cell: 0 empty, 4 full."""
        return np.digitize(self.cells, [1, 86, 171, 255])


def panels(plan: AttentionPlan, layer: int, head: int) -> list[Panel]:
    """The candidates of one head; InputError where the plan keeps no pictures of them."""
    held = plan.plan.payload
    if "preview" not in held:
        raise InputError(
            "the plan holds no pictures of candidate orders",
            hint="calibrate.make_plan(..., search=...) with the search that chose the orders",
        )
    if not (0 <= layer < plan.layers and 0 <= head < plan.heads):
        raise InputError(
            f"layer {layer}, head {head}", hint=f"below {plan.layers} and {plan.heads}"
        )
    number = int(plan.plan["order"][layer, head])
    out = []
    for i, cells in enumerate(held["preview"].values[layer, head]):
        known = [(t, f, held.get(f"score.{name}")) for name, t, f in METRICS]
        lines = [f"{t} {f.format(float(a.values[layer, head, i]))}" for t, f, a in known if a]
        out.append(Panel(plan.plan.orders[i], i == number, tuple(lines), cells))
    return out


def show(
    plan: AttentionPlan, layer: int, head: int, *, columns: int = 3, ascii: bool = False
) -> str:
    """Panels in characters, ``columns`` in a line: queries down, keys across, in stored order.

    A character stands for a rectangle of blocks, darker the more of it is kept; ``<`` marks the
    order that was chosen.
    """
    if columns < 1:
        raise SpecError(f"columns={columns}", hint="at least 1 panel in a line")
    signs = np.array(list(ASCII if ascii else SHADES))
    lines = [_heading(plan, layer, head)]
    drawn = panels(plan, layer, head)
    for first in range(0, len(drawn), columns):
        some = [_text(p, signs) for p in drawn[first : first + columns]]
        width = max(len(line) for panel in some for line in panel)
        lines += [
            "  ".join(f"{t:{width}}" for t in row).rstrip() for row in zip(*some, strict=True)
        ]
        lines.append("")
    return "\n".join(lines[:-1])


def svg(plan: AttentionPlan, layer: int, head: int, *, columns: int = 3) -> str:
    """The same as SVG text; colours follow the page's, light or dark."""
    if columns < 1:
        raise SpecError(f"columns={columns}", hint="at least 1 panel in a line")
    drawn = panels(plan, layer, head)
    text = 18 * max(len(p.lines) + 1 for p in drawn)
    across = min(columns, len(drawn))
    parts = []
    for i, p in enumerate(drawn):
        row, column = divmod(i, columns)
        x, y = column * (PANEL + GAP), 20 + row * (PANEL + GAP + text)
        parts.append(f'<g transform="translate({x} {y})">{_drawn(p)}</g>')
    width = across * (PANEL + GAP) - GAP
    height = 20 + -(-len(drawn) // columns) * (PANEL + GAP + text)
    name = escape(_heading(plan, layer, head))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 {width + 2} {height}" '
        f'width="{width + 2}" role="img"><title>{name}</title><style>{STYLE}</style>'
        f'<text class="kdsl-text" y="10">{name}</text>{"".join(parts)}</svg>'
    )


def _heading(plan: AttentionPlan, layer: int, head: int) -> str:
    queries, keys = plan.block
    return (
        f"{plan.plan.model}, layer {layer}, head {head}: {plan.grid.tokens:,} tokens in blocks of "
        f"{queries} x {keys}"
    )


def _text(panel: Panel, signs: npt.NDArray[np.str_]) -> list[str]:
    name = f"{panel.name} {MARK}" if panel.chosen else panel.name
    return [name, *panel.lines, *("".join(row) for row in signs[panel.steps])]


def _drawn(panel: Panel) -> str:
    rows, columns = panel.cells.shape
    scale = f"scale({PANEL / columns:g} {PANEL / rows:g})"
    paths = "".join(
        f'<path class="kdsl-full" fill-opacity="{level}" d="{runs(panel.steps == step)}"/>'
        for step, level in enumerate(LEVELS, 1)
    )
    name = f"{panel.name} {MARK}" if panel.chosen else panel.name
    words = "".join(
        f'<text class="kdsl-text" y="{PANEL + 16 + 18 * i}">{escape(line)}</text>'
        for i, line in enumerate((name, *panel.lines))
    )
    return (
        f'<g transform="{scale}" shape-rendering="crispEdges">{paths}</g>'
        f'<rect class="kdsl-frame" width="{PANEL}" height="{PANEL}" '
        f'stroke-width="{2 if panel.chosen else 0.5}"/>{words}'
    )
