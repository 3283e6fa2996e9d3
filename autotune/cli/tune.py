"""``python -m autotune --gpu NAME``."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

from rich.console import Console

from kdsl.autotune.cli.hardware import Hardware
from kdsl.autotune.cli.plan import Plan, understood
from kdsl.autotune.cli.revision import revision
from kdsl.autotune.measuring import Bench
from kdsl.autotune.measuring.lock import hold
from kdsl.autotune.measuring.present import Present
from kdsl.autotune.screen import report
from kdsl.autotune.screen.progress import watch_on
from kdsl.autotune.session.budget import Budget
from kdsl.autotune.session.campaign import AbsentGpu, Campaign, Lab, PresentGpu
from kdsl.autotune.store import Store
from kdsl.runtime.records import Run

DONE, ABSENT, INTERRUPTED = 0, 3, 130
CANDIDATES = 40
"""Of a workload, unless a budget is given."""
ABSENT_S = 9 * 60.0
"""Of a run for a GPU that is not here, unless a budget is given."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def tune(given: argparse.Namespace, hardware: Hardware) -> int:
    """Do what the command line says, and return the exit code."""
    plan = understood(given)
    found = hardware.present(plan.target)
    if found is None and plan.require_device:
        print(f"no {plan.target.name} here, and --require-device was given", file=sys.stderr)
        return ABSENT
    session = Session(plan, hardware, found, report.console())
    with terminable():
        try:
            session.run()
        except KeyboardInterrupt:
            session.report()
            print(f"interrupted: every result so far is stored. {session.onward}", file=sys.stderr)
            return INTERRUPTED
    session.report()
    return DONE


class Session:
    """One run with everything it opens: database, GPU, compilers, screen."""

    def __init__(
        self, plan: Plan, hardware: Hardware, found: Present | None, console: Console
    ) -> None:
        self.plan, self.hardware, self.found, self.console = plan, hardware, found, console
        candidates = None if plan.record else CANDIDATES
        self.budget = plan.budget or Budget(candidates, None if found else ABSENT_S)
        self.campaign: Campaign | None = None
        self.finished = False

    def run(self) -> None:
        """Tune everything; however this ends, children are ended and the run's row is closed."""
        plan = self.plan
        with ExitStack() as stack:
            store = stack.enter_context(Store(plan.storage))
            environment = _compiler_environment(stack)
            lab = self._lab(stack, environment)
            run = self._begin(store)
            stack.callback(self._close, store, run)
            watch = stack.enter_context(watch_on(self.console))
            pool = stack.enter_context(self.hardware.pool(plan.processes, environment))
            stack.callback(_ignore_signals)
            campaign = Campaign(
                lab,
                plan.target,
                pool,
                store,
                watch,
                budget=self.budget,
                seed=plan.seed,
                record=plan.record,
            )
            self.campaign = campaign
            campaign.run(run, [make for _, make in plan.jobs])
            self.finished = True

    def _lab(self, stack: ExitStack, environment: dict[str, str]) -> Lab:
        """The GPU under its lock with its measuring process, or the model of an absent one."""
        if self.found is None:
            return AbsentGpu(self.plan.target)
        descriptor = stack.enter_context(hold(self.found.card))
        card = self.hardware.card(self.found)
        bench = Bench(card, keep=(descriptor,), environment=environment)
        return PresentGpu(self.found.target, stack.enter_context(bench))

    def _begin(self, store: Store) -> Run:
        rev, dirty = revision()
        return store.begin(
            self.plan.command,
            host=socket.gethostname(),
            card=self.found.card if self.found else "",
            budget=str(self.budget),
            sampler="record" if self.plan.record else "tpe",
            seed=self.plan.seed,
            git_rev=rev,
            git_dirty=dirty,
        )

    def _close(self, store: Store, run: Run) -> None:
        counts = self.campaign.counts if self.campaign else {}
        store.finish(run, complete=self.finished and not self.left, counts=counts)

    @property
    def left(self) -> list[str]:
        """What the budget asked for and did not get, in words."""
        tallies = self.campaign.tallies if self.campaign else []
        names = [name for name, _ in self.plan.jobs]
        return report.left_over(tallies, names[len(tallies) :])

    @property
    def onward(self) -> str:
        """How to go on."""
        storage = f" --storage {self.plan.storage}" if self.plan.storage else ""
        return f"To go on: python -m autotune --resume{storage}"

    def report(self) -> None:
        """Tables, what is left, and the one line that says it all."""
        tallies = self.campaign.tallies if self.campaign else []
        gpu = self.plan.target.name
        report.summary(self.console, [(gpu, tally) for tally in tallies])
        for tally in tallies:
            report.ranking(self.console, tally)
        if self.left:
            self._say(f"left: {', '.join(self.left)}. {self.onward}")
        new = sum(tally.new for tally in tallies)
        known = sum(tally.known for tally in tallies)
        before = f" ({known} more known before)" if known else ""
        if self.found is None:
            self._say(f"no {gpu} here: {new} predicted, 0 measured{before}")
        else:
            self._say(f"{gpu}: {new} measured{before}")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _compiler_environment(stack: ExitStack) -> dict[str, str]:
    """A cache of Triton's for this run alone: hundreds of losers must not fill the user's."""
    if "TRITON_CACHE_DIR" in os.environ:
        return {}
    folder = tempfile.TemporaryDirectory(prefix="kdsl-tune-", ignore_cleanup_errors=True)
    return {"TRITON_CACHE_DIR": stack.enter_context(folder)}


@contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM stops the run as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = [(number, signal.signal(number, stop)) for number in _SIGNALS]
    except ValueError:  # not the main thread, which alone hears signals
        before = []
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _ignore_signals() -> None:
    """While results are put away, a second Ctrl-C would only leave processes behind."""
    with suppress(ValueError):
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
