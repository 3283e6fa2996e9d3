"""How it goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from kdsl.autotune.screen.report import settings
from kdsl.autotune.session.outcome import Outcome
from kdsl.autotune.session.tuner import Tally, Watch

EVERY_S = 30.0
"""Seconds between plain lines within a workload."""


def watch_on(console: Console) -> AbstractContextManager[Watch]:
    """A bar where there is a terminal, else lines."""
    return Bar(console) if console.is_terminal else Lines(console)


def standing(tally: Tally) -> str:
    """The best so far relative to the default."""
    best = tally.ranking
    if not best:
        return "nothing yet"
    text = f"best {best[0].median_us:.0f} us"
    return text if tally.gain is None else f"{text}, {tally.gain:.3f}x as fast as the default"


class Lines:
    """One line when a workload begins and ends, and one now and then between."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock, self._said = console, clock, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to put away."""

    def begin(self, tally: Tally) -> None:
        """A workload starts."""
        known = f", {tally.known} known" if tally.known else ""
        self._print(f"{tally.name}: {_wanted(tally)}{known}")
        self._said = self.clock()

    def step(self, tally: Tally, outcome: Outcome) -> None:
        """A candidate is done."""
        del outcome
        if self.clock() - self._said >= EVERY_S:
            self._print(f"{tally.name}: {len(tally.outcomes)} done, {standing(tally)}")
            self._said = self.clock()

    def end(self, tally: Tally) -> None:
        """A workload ends."""
        took = f"{tally.new} new in {tally.seconds:.0f} s"
        self._print(f"{tally.name}: {took}, {standing(tally)}")

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class Bar:
    """A bar a workload, with the last candidate and the best."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[best]}"),
            TextColumn("[dim]{task.fields[last]}[/]"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def begin(self, tally: Tally) -> None:
        """A workload starts."""
        if tally.name in self._tasks:  # another GPU is at it already
            return
        self._tasks[tally.name] = self.progress.add_task(
            tally.name,
            total=tally.wanted,
            completed=len(tally.outcomes),
            best=standing(tally),
            last="",
        )

    def step(self, tally: Tally, outcome: Outcome) -> None:
        """A candidate is done."""
        last = settings(outcome.params)
        if outcome.status != "ok":
            last += f": {outcome.status}"
        task = self._tasks[tally.name]
        self.progress.update(task, completed=len(tally.outcomes), best=standing(tally), last=last)

    def end(self, tally: Tally) -> None:
        """A workload ends."""
        task = self._tasks[tally.name]
        self.progress.update(task, best=standing(tally), last="")
        self.progress.stop_task(task)


def _wanted(tally: Tally) -> str:
    if tally.wanted is None:
        return "as many candidates as the time allows"
    return f"{tally.wanted} candidates"
