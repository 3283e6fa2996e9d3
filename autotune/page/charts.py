"""Charts as SVG text: no library, no script, colours of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from kdsl.autotune.page.facts import Guess, Section, Step

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 460.0, 250.0, 54.0, 34.0, 18.0, 12.0


class Axis:
    """A logarithmic axis from data to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        pad = max(math.log(high / low) * 0.06, 0.02)
        self.low, self.high = math.log(low) - pad, math.log(high) + pad
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        """Where a value stands."""
        share = (math.log(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Round values, at most about six."""
        decades = range(
            math.floor(self.low / math.log(10)), math.ceil(self.high / math.log(10)) + 1
        )
        for digits in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [d * 10.0**e for e in decades for d in digits]
            within = [v for v in found if self.low <= math.log(v) <= self.high]
            if len(within) <= 6:
                break
        if len(within) < 2:
            return [math.exp(self.low + f * (self.high - self.low)) for f in (0.1, 0.5, 0.9)]
        return within


def number(value: float) -> str:
    """Three digits, plain."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def history(steps: Sequence[Step], default_us: float | None) -> str:
    """Medians in the order of time, failures at the top, and the best so far as a line."""
    times = [s.us for s in steps if s.us]
    y = Axis(min(times), max(times), HEIGHT - BOTTOM, TOP)
    span = (WIDTH - LEFT - RIGHT) / max(len(steps), 1)

    def x(step: int) -> float:
        return LEFT + (step - 0.5) * span

    marks = [
        f'<circle class="point" cx="{x(s.number):.1f}" cy="{y(s.us):.1f}" r="2.6">'
        f"<title>{s.number}: {number(s.us)} us</title></circle>"
        if s.us
        else f'<path class="fail" d="M{x(s.number) - 3:.1f} {TOP - 2}l6 6m0-6l-6 6">'
        f"<title>{s.number}: failed</title></path>"
        for s in steps
    ]
    line = [f"{x(s.number):.1f},{y(s.best_us):.1f}" for s in steps if s.best_us]
    out = [_frame_y(y), *marks, f'<polyline class="best" points="{" ".join(line)}"/>']
    if default_us:
        at = y(default_us)
        out.append(_line("rule", LEFT, at, WIDTH - RIGHT, at))
        out.append(_text(WIDTH - RIGHT, at - 4, "default", "end"))
    out.append(_text((LEFT + WIDTH) / 2, HEIGHT - 6, "measurement", "middle"))
    return _svg("Times in the order of measuring, in microseconds", out)


def scatter(guesses: Sequence[Guess], typical: float | None) -> str:
    """Predicted against measured, with the band of the typical error."""
    values = [v for g in guesses for v in (g.predicted_us, g.measured_us)]
    low, high = min(values), max(values)
    x, y = Axis(low, high, LEFT, WIDTH - RIGHT), Axis(low, high, HEIGHT - BOTTOM, TOP)
    out = [_frame_y(y), _frame_x(x)]
    for factor in (1.0, *((typical, 1 / typical) if typical else ())):
        start, stop = max(low, low / factor), min(high, high / factor)
        if start < stop:
            style = "rule" if factor == 1 else "band"
            out.append(_line(style, x(start), y(start * factor), x(stop), y(stop * factor)))
    out += [
        f'<circle class="point" cx="{x(g.measured_us):.1f}" cy="{y(g.predicted_us):.1f}" r="2.6">'
        f"<title>{escape(g.settings)}: predicted {number(g.predicted_us)}, measured "
        f"{number(g.measured_us)} us</title></circle>"
        for g in guesses
    ]
    out.append(_text(WIDTH - RIGHT, HEIGHT - BOTTOM - 6, "measured", "end"))
    out.append(_text(LEFT - 6, 11, "predicted", "start"))
    return _svg("Predicted against measured, in microseconds", out)


def intervals(section: Section) -> str:
    """The fastest few and the default, with 95 % intervals of their medians."""
    shown = section.shown
    ends = [v for o in shown for v in (*(o.interval_us or ()), o.median_us or 0.0) if v]
    wide, row = 720.0, 22.0
    x = Axis(min(ends), max(ends), 330.0, wide - 12)
    height = row * len(shown) + BOTTOM + TOP
    out = []
    for tick in x.ticks:
        at = x(tick)
        out.append(_line("grid", at, TOP, at, height - BOTTOM))
        out.append(_text(at, height - BOTTOM + 15, number(tick), "middle"))
    for place, o in enumerate(shown):
        at = TOP + row * (place + 0.5)
        middle = o.median_us or 0.0
        low, high = o.interval_us or (middle, middle)
        kind = "default" if o is section.default else "chosen" if place == 0 else "other"
        label = " ".join(str(v) for v in o.params.values())
        out.append(_text(322, at + 4, label + (" (default)" if kind == "default" else ""), "end"))
        out.append(_line(f"{kind} span", x(low), at, x(high), at))
        out.append(
            f'<circle class="{kind} dot" cx="{x(middle):.1f}" cy="{at}" r="4">'
            f"<title>{number(middle)} us [{number(low)}, {number(high)}]</title></circle>"
        )
    out.append(
        _text((330 + wide) / 2, height - 3, "microseconds, 95 % interval of the median", "middle")
    )
    return _svg("The fastest candidates", out, wide, height)


def bars(shares: Mapping[str, float]) -> str:
    """Shares of one."""
    row, wide = 24.0, 460.0
    out = []
    for place, (name, share) in enumerate(shares.items()):
        at = place * row
        out.append(_text(110, at + 16, name, "end"))
        long = max(share, 0.0) * 280
        out.append(f'<rect class="bar" x="118" y="{at + 4}" width="{long:.1f}" height="15"/>')
        out.append(_text(124 + long, at + 16, f"{share:.0%}", "start"))
    return _svg("Importance of each setting", out, wide, row * len(shares) + 4)


def _frame_y(y: Axis) -> str:
    parts = []
    for tick in y.ticks:
        at = y(tick)
        parts.append(_line("grid", LEFT, at, WIDTH - RIGHT, at))
        parts.append(_text(LEFT - 6, at + 4, number(tick), "end"))
    return "".join(parts)


def _frame_x(x: Axis) -> str:
    parts = []
    for tick in x.ticks:
        at = x(tick)
        parts.append(_line("grid", at, TOP, at, HEIGHT - BOTTOM))
        parts.append(_text(at, HEIGHT - BOTTOM + 16, number(tick), "middle"))
    return "".join(parts)


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="{style}" {ends}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, parts: Sequence[str], width: float = WIDTH, height: float = HEIGHT) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
