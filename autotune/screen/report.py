"""Tables at the end of a run and for ``show``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from kdsl.autotune.session.outcome import Outcome
from kdsl.autotune.session.tuner import Tally

TOP = 3
PLAIN_WIDTH = 120
"""Columns where the output is no terminal."""


def console() -> Console:
    """Standard output."""
    out = Console()
    return out if out.is_terminal else Console(width=PLAIN_WIDTH)


def summary(console: Console, found: Sequence[tuple[str, Tally]]) -> None:
    """Default against best for each GPU and workload, with how many candidates ended how."""
    if not found:
        return
    table = Table()
    for name in ("workload", "GPU", "from"):
        table.add_column(name)
    for name in ("default us", "best us", "gain"):
        table.add_column(name, justify="right")
    table.add_column("candidates")
    for gpu, tally in found:
        best = tally.ranking[:1]
        table.add_row(
            tally.name,
            gpu,
            tally.kind,
            _us(tally.default),
            _us(best[0] if best else None),
            "" if tally.gain is None else f"{tally.gain:.3f}x",
            statuses(tally.counts),
        )
    console.print(table)


def ranking(console: Console, tally: Tally) -> None:
    """The fastest few with what the compiler says of them, and the default if it is not among
    them."""
    chosen = tally.ranking[:TOP]
    if tally.default is not None and tally.default.status == "ok" and tally.default not in chosen:
        chosen.append(tally.default)
    if not chosen:
        return
    same = alike([outcome.params for outcome in chosen])
    table = Table(
        title=f"{tally.name}, {tally.kind}",
        title_justify="left",
        caption=f"in all of them {settings(same)}" if same else None,
        caption_justify="left",
    )
    table.add_column("")
    for name in ("us", "registers", "spilled", "KiB shared"):
        table.add_column(name, justify="right")
    table.add_column("configuration")
    for place, outcome in enumerate(chosen, 1):
        is_default = outcome is tally.default
        built = outcome.built
        known = [built.registers, built.spill_bytes, built.shared_bytes] if built else [None] * 3
        registers, spilled, shared = known
        table.add_row(
            "default" if place > TOP else f"{place}{' (default)' if is_default else ''}",
            _us(outcome),
            _count(registers),
            _count(spilled),
            "" if shared is None else f"{shared / 1024:.0f}",
            settings({n: v for n, v in outcome.params.items() if n not in same}),
        )
    console.print(table)


def statuses(counts: Mapping[str, int]) -> str:
    """How many ended how, those that ran first."""
    order = sorted(counts.items(), key=lambda item: (item[0] != "ok", -item[1], item[0]))
    return ", ".join(f"{n} {status}" for status, n in order if n) or "none"


def settings(params: Mapping[str, object]) -> str:
    """A configuration in a line, in the names that ``config=`` takes."""
    return " ".join(f"{name}={value}" for name, value in params.items())


def alike(configurations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings that several configurations share; none of a single one."""
    first, *others = configurations
    if not others:
        return {}
    return {n: v for n, v in first.items() if all(o.get(n) == v for o in others)}


def left_over(tallies: Iterable[Tally], untouched: Sequence[str]) -> list[str]:
    """Workloads that the budget asked more of, in words."""
    parts = [f"{t.name} ({t.left} candidates)" for t in tallies if t.left]
    return parts + list(untouched)


def _us(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    return f"{outcome.median_us:.1f}" if outcome.status == "ok" else outcome.status


def _count(value: int | None) -> str:
    return "" if value is None else str(value)
