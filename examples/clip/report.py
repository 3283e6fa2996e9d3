"""The run as one HTML page: pictures inside it, nothing loaded, readable in light and dark."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from examples.clip import pictures
from examples.clip.axis_orders import ORDERS
from examples.clip.facts import ClipFacts
from examples.clip.look import Glance
from kdsl.calibrate import keep_rows
from kdsl.errors import InputError

TEMPLATE = Path(__file__).with_name("template.html")
AXIS = {"F": "frames", "H": "height", "W": "width"}
STRIP = 7  # frames shown of what a token sees
STRONG = 20  # full heat begins at this many strongest places: one token often outshines the rest


def write(path: Path, facts: ClipFacts) -> Path:
    """Draw ``facts`` and write the page; returns where it stands.

    Raises ``InputError`` where the page cannot be written.
    """
    page = render(facts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"the report cannot be written: {error}", where=str(path)) from error
    return path


def render(facts: ClipFacts) -> str:
    """The whole page as text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, figure=figure)
    found = facts.found
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        facts=facts,
        grid=found.grid,
        settings=found.settings,
        orders=ORDERS,
        uniform=math.log(found.grid.tokens),
        density_before=_before(facts).mean(),
        middle=pictures.photo(facts.clip.frames[len(facts.clip.frames) // 2]),
        stills=_stills(facts),
        strong=STRONG,
        cards=_cards(facts),
        views=[_view(facts, glance) for glance in facts.glances],
        agrees=sum(paro == order for paro, order in zip(found.paro, found.orders, strict=True)),
        winners=sorted(set(found.orders), key=ORDERS.index),
    )


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage: 0.214 is ``21.4 %``."""
    return f"{share * 100:.{digits}f} %"


def figure(value: float) -> str:
    """A number with three significant digits, in plain notation from 0.001 to 10,000."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}"
    return f"{value:.2e}"


def reading(order: str) -> str:
    """What an order means: HWF is ``frames fastest, then width``."""
    return f"{AXIS[order[2]]} fastest, then {AXIS[order[1]]}"


@dataclass(frozen=True)
class Still:
    """A sampled frame in the film strip."""

    uri: str
    seconds: float


@dataclass(frozen=True)
class Card:
    """One head: its blocks as numbered and as stored, and what they cost and hold."""

    name: str
    order: str
    reading: str
    before: str
    after: str
    density_before: float
    density: float
    retained: float
    entropy: float
    effective: int
    best: float
    error: float


@dataclass(frozen=True)
class Shown:
    """One frame with the attention on it."""

    seconds: float
    dense: str
    sparse: str


@dataclass(frozen=True)
class View:
    """What one token attends to: shown frames, dense and sparse, and what is left out."""

    name: str
    order: str
    place: str
    held: float
    shown: float
    frames: tuple[Shown, ...]


def _before(facts: ClipFacts) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Blocks that each head would have to keep without reordering."""
    return keep_rows(facts.mass_before, facts.found.settings.keep)


def _stills(facts: ClipFacts) -> list[Still]:
    clip = facts.clip
    return [
        Still(pictures.photo(frame, width=216), seconds)
        for i, (frame, seconds) in enumerate(zip(clip.frames, clip.seconds, strict=True))
        if i != len(clip.frames) // 2  # stands beside them, large
    ]


def _cards(facts: ClipFacts) -> list[Card]:
    found, before, best = facts.found, _before(facts), facts.found.held_by_best()
    return [
        Card(
            name=name,
            order=found.orders[h],
            reading=reading(found.orders[h]),
            before=pictures.block_map(before[h], facts.mass_before[h]),
            after=pictures.block_map(found.blocks[h], found.mass[h]),
            density_before=float(before[h].mean()),
            density=found.densities[h],
            retained=found.retained[h],
            entropy=found.entropy[h],
            effective=round(math.exp(found.entropy[h])),
            best=best[h],
            error=facts.errors[h],
        )
        for h, name in enumerate(found.names)
    ]


def _view(facts: ClipFacts, glance: Glance) -> View:
    grid, clip = facts.clip.grid, facts.clip
    dense, sparse = (pictures.on_frames(p, grid) for p in (glance.dense, glance.sparse))
    frame, row, column = (int(c) for c in grid.coordinates()[:, glance.token])
    peak = float(np.sort(glance.dense)[-STRONG:].min())
    picked = frames_around(frame, len(clip.frames))
    shown = []
    for f in picked:
        query = (row, column) if f == frame else None
        uris = [pictures.overlay(clip.frames[f], p[f], peak, query) for p in (dense, sparse)]
        shown.append(Shown(clip.seconds[f], *uris))
    return View(
        name=facts.found.names[glance.head],
        order=facts.found.orders[glance.head],
        place=f"frame {frame}, row {row}, column {column}",
        held=float(glance.dense[glance.sparse > 0].sum()),
        shown=float(dense[picked].sum()),
        frames=tuple(shown),
    )


def frames_around(frame: int, count: int) -> list[int]:
    """At most ``STRIP`` frames, ``frame`` among them, evenly spaced where they fit."""
    step = max(1, (count - 1) // (STRIP - 1))
    first = frame % step
    line = list(range(first, count, step))
    start = min(max(line.index(frame) - STRIP // 2, 0), max(len(line) - STRIP, 0))
    return line[start : start + STRIP]
