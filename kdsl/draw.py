"""Pictures of masks: blocks as characters, and as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks
from kdsl.errors import SpecError
from kdsl.grid import Grid, as_grid
from kdsl.intervals import classify
from kdsl.masks import Mask
from kdsl.orders import Order, identity

Tables = Mapping[str, npt.NDArray[Any]]

UNICODE, ASCII = "·▒█", ".+#"
"""Characters of empty, partial and full cells."""

STYLE = """\
.kdsl-full{fill:#1f6f8b}.kdsl-partial{fill:#e0a13a}.kdsl-frame{fill:none;stroke:currentColor}
.kdsl-text{fill:currentColor;font:12px system-ui,sans-serif}svg:root{color:#222}
@media(prefers-color-scheme:dark){.kdsl-full{fill:#6cc3e0}.kdsl-partial{fill:#f2c572}
svg:root{color:#ddd}}"""
"""In a page the text takes the page's colour; a picture of its own chooses by the reader's."""


def show(
    mask: Mask,
    tokens: int | Grid,
    keys: int | Grid | None = None,
    *,
    order: Order | None = None,
    block: tuple[int, int] | None = None,
    head: int = 0,
    batch: int = 0,
    tables: Tables | None = None,
    width: int = 64,
    ascii: bool = False,
) -> str:
    """The blocks of one head as characters: queries down, keys across, in stored ``order``.

    ``█`` is full, ``▒`` partial, ``·`` empty (``#``, ``+``, ``.`` with ``ascii``).  A character is
    one block, or a square of blocks where more than ``width`` would stand in a line.  ``block``
    defaults to the smallest power of two that fits.  The last line counts blocks, not characters.
    """
    drawn = _picture(mask, tokens, keys, order, block, head, batch, tables, width)
    signs = np.array(list(ASCII if ascii else UNICODE))
    lines = ["".join(row) for row in signs[drawn.kinds]]
    return "\n".join([drawn.heading, *lines, drawn.counts])


def show_order(
    order: Order,
    *,
    head: int = 0,
    tables: Tables | None = None,
    width: int = 120,
    most: int = 64,
) -> str:
    """Stored positions of one head's tokens, laid out on their grid, frame by frame.

    A line holds one row of the grid.  What goes beyond ``width`` characters or ``most`` lines is
    cut, with dots in its place.
    """
    grid, parts = order.grid, order.parts
    if len(parts) > 1 and not 0 <= head < len(parts):
        raise SpecError(f"head={head}", where=repr(order), hint=f"0 to {len(parts) - 1}")
    part = parts[head if len(parts) > 1 else 0]
    position = part.inverse_index(tables)
    digits = len(str(max(grid.tokens - 1, 0)))
    visual = slice(grid.visual_start, grid.visual_start + grid.visual)
    height = grid.shape[-2] if len(grid.shape) > 1 else 1
    lines = []
    for number, row in enumerate(position[visual].reshape(-1, max(grid.shape[-1], 1))):
        if len(grid.shape) > 2 and number % height == 0:
            lines.append(f"frame {number // height}")
        line = " ".join(f"{at:{digits}d}" for at in row[: width // (digits + 1)])
        lines.append(f"{line} ..." if len(row) > width // (digits + 1) else line)
        if len(lines) >= most:
            lines.append("...")
            break
    if grid.text:
        apart = np.delete(position, visual)
        lines.append(f"text at {apart.min()} to {apart.max()}")
    return "\n".join([f"{part!r}: stored position of every token", *lines])


def svg(
    mask: Mask,
    tokens: int | Grid,
    keys: int | Grid | None = None,
    *,
    order: Order | None = None,
    block: tuple[int, int] | None = None,
    head: int = 0,
    batch: int = 0,
    tables: Tables | None = None,
    width: int = 128,
    title: str | None = None,
) -> str:
    """`show` as SVG text with a legend; colours follow the page's, light or dark."""
    drawn = _picture(mask, tokens, keys, order, block, head, batch, tables, width)
    rows, columns = drawn.kinds.shape
    size = 384.0
    scale = size / max(rows, columns, 1)
    shown_w, shown_h = columns * scale, rows * scale
    name = escape(title if title is not None else drawn.heading)
    paths = "".join(
        f'<path class="kdsl-{kind}" d="{runs(drawn.kinds == value)}"/>'
        for value, kind in ((2, "full"), (1, "partial"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 {size + 2:g} {shown_h + 86:g}" '
        f'width="{size + 2:g}" role="img"><title>{name}</title><style>{STYLE}</style>'
        f'<g transform="scale({scale:g})" shape-rendering="crispEdges">{paths}</g>'
        f'<rect class="kdsl-frame" width="{shown_w:g}" height="{shown_h:g}"/>'
        f"{_legend(drawn, shown_h + 20)}</svg>"
    )


@dataclass(frozen=True)
class _Picture:
    """Kinds of cells ``[rows, columns]``: 0 empty, 1 partial, 2 full; and what to write beside."""

    kinds: npt.NDArray[np.int8]
    heading: str
    counts: str


def _picture(
    mask: Mask,
    tokens: int | Grid,
    keys: int | Grid | None,
    order: Order | None,
    block: tuple[int, int] | None,
    head: int,
    batch: int,
    tables: Tables | None,
    width: int,
) -> _Picture:
    if width < 1:
        raise SpecError(f"width={width}", hint="at least 1 character")
    queries = as_grid(tokens)
    key_grid = queries if keys is None else as_grid(keys, "keys")
    mask.check_grids(queries, key_grid)
    order = order or mask.order or identity(queries)
    one, stored = _one_head(mask, order, (queries.tokens, key_grid.tokens), head, batch, tables)

    def blocks(size: tuple[int, int]) -> Blocks:
        return classify(
            one, queries, key_grid, block=size, query_order=stored, heads=1, tables=tables
        )

    counts = queries.tokens, key_grid.tokens
    if block is None:
        side = 1
        while max(counts) > side * width:
            side *= 2
        block = side, side
    many = max(-(-n // b) for n, b in zip(counts, block, strict=True))
    times = max(-(-many // width), 1)
    rows = blocks(block)
    cells = rows if times == 1 else blocks((block[0] * times, block[1] * times))
    kept, full = cells.kept()[0, 0], cells.kept(partial=False)[0, 0]
    return _Picture(
        kept.astype(np.int8) + full,
        _heading(counts, block, times, stored, head),
        _counts(rows),
    )


def _one_head(
    mask: Mask,
    order: Order,
    tokens: tuple[int, int],
    head: int,
    batch: int,
    tables: Tables | None,
) -> tuple[Mask, Order]:
    """The mask and the stored order of one head of one batch item."""
    heads = {len(mask.variants), len(order.parts)} - {1}
    heads |= {len((tables or {})[m.name]) for m in mask.block_maps() if _by_head(m, tables)}
    if len(heads) > 1 or not 0 <= head < max(heads, default=head + 1):
        raise SpecError(f"head {head} of a mask, order and tables for {sorted(heads)} heads")
    resolved = mask.resolve(max(heads, default=head + 1), *tokens)
    expr = resolved.head(head).replace({"head": head, "batch": batch})
    stored = order.parts[head if len(order.parts) > 1 else 0]
    return Mask((expr,), mask.queries, mask.keys), stored


def _by_head(rows: Any, tables: Tables | None) -> bool:
    return not rows.shared and rows.name in (tables or {})


def _heading(
    tokens: tuple[int, int], block: tuple[int, int], times: int, order: Order, head: int
) -> str:
    text = f"{tokens[0]:,} x {tokens[1]:,} tokens in blocks of {block[0]} x {block[1]}"
    if times > 1:
        text += f", {times} x {times} blocks a cell"
    if not order.is_identity:
        text += f", {order!r}"
    return text + (f", head {head}" if head else "")


def _counts(rows: Blocks) -> str:
    full, partial = int(rows.full.sum()), int(rows.partial.sum())
    empty = rows.rows * rows.columns - full - partial
    longest = int(rows.counts.max(initial=0))
    return (
        f"{full:,} full, {partial:,} partial, {empty:,} empty; "
        f"density {100 * rows.density:.1f} %; longest row {longest:,} of {rows.columns:,}"
    )


def runs(marks: npt.NDArray[np.bool_]) -> str:
    """Marked cells as a path, neighbours in a row joined."""
    edges = np.diff(np.pad(marks.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    row, start = np.nonzero(edges == 1)
    end = np.nonzero(edges == -1)[1]
    return "".join(f"M{a} {r}h{b - a}v1h{a - b}z" for r, a, b in zip(row, start, end, strict=True))


def _legend(drawn: _Picture, y: float) -> str:
    parts = []
    for i, kind in enumerate(("full", "partial", "empty")):
        look = "kdsl-frame" if kind == "empty" else f"kdsl-{kind}"
        x = 80 * i
        parts.append(
            f'<rect class="{look}" x="{x}" y="{y - 10:g}" width="11" height="11"/>'
            f'<text class="kdsl-text" x="{x + 17}" y="{y:g}">{kind}</text>'
        )
    # In one line the counts would run out of the picture.
    blocks, _, rest = drawn.counts.partition("; ")
    lines = (drawn.heading.split(", orders.")[0], blocks, rest)
    parts += [
        f'<text class="kdsl-text" y="{y + 20 * (i + 1):g}">{escape(line)}</text>'
        for i, line in enumerate(lines)
    ]
    return "".join(parts)
