"""A timeline as a picture."""

from __future__ import annotations

from xml.sax.saxutils import escape

from kdsl.parallel.timeline import Timeline

COLOURS = {
    "copy": "#60a060",
    "input": "#e0a030",
    "compute": "#3070b0",
    "pass": "#c0c0c0",
    "output": "#b05030",
}
WIDTH, ROW, LEFT, TOP = 900, 18, 60, 34


def svg(timeline: Timeline, title: str = "") -> str:
    """Ranks from top to bottom, microseconds from left to right; a pass runs below its kernel."""
    ranks = len(timeline.end_us)
    scale = WIDTH / timeline.us if timeline.us else 0.0
    height = TOP + ranks * ROW + 24
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 20}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f"<title>{escape(title or 'Timeline')}</title>",
        f'<text x="{LEFT}" y="14" font-size="13">{escape(title)}</text>',
    ]
    for i, (kind, colour) in enumerate(COLOURS.items()):
        x = LEFT + i * 90
        out.append(f'<rect x="{x}" y="20" width="9" height="9" fill="{colour}"/>')
        out.append(f'<text x="{x + 13}" y="28">{kind}</text>')
    for rank in range(ranks):
        y = TOP + rank * ROW
        out.append(f'<text x="{LEFT - 6}" y="{y + 12}" text-anchor="end">rank {rank}</text>')
    for event in timeline.events:
        y = TOP + event.rank * ROW
        low = event.kind == "pass"
        out.append(
            f'<rect x="{LEFT + event.start_us * scale:.2f}" y="{y + (11 if low else 1)}" '
            f'width="{(event.end_us - event.start_us) * scale:.2f}" height="{4 if low else 10}" '
            f'fill="{COLOURS[event.kind]}" stroke="white" stroke-width="0.3"/>'
        )
    bottom = TOP + ranks * ROW + 14
    out.append(f'<text x="{LEFT}" y="{bottom}">0</text>')
    out.append(
        f'<text x="{LEFT + WIDTH}" y="{bottom}" text-anchor="end">{timeline.us:.0f} us, '
        f"{timeline.idle:.0%} of it without a kernel</text>"
    )
    return "\n".join([*out, "</svg>", ""])
