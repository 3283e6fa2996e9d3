"""``python -m autotune --gpu NAME``."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from rich.console import Console

from kdsl.autotune.cli.hardware import Hardware
from kdsl.autotune.cli.plan import Plan, understood
from kdsl.autotune.cli.revision import revision
from kdsl.autotune.fleet import Gathered, Task, cut
from kdsl.autotune.fleet.cluster import Cluster
from kdsl.autotune.fleet.here import run_here
from kdsl.autotune.fleet.station import compiler_environment, open_lab
from kdsl.autotune.measuring.present import Present
from kdsl.autotune.screen import report
from kdsl.autotune.screen.progress import watch_on
from kdsl.autotune.session.budget import Budget
from kdsl.autotune.session.campaign import Campaign
from kdsl.autotune.store import Store, scrub
from kdsl.errors import StoreError
from kdsl.runtime.records import Run
from kdsl.runtime.records.link import is_server
from kdsl.runtime.records.postgres import shown

DONE, FAILED, ABSENT, INTERRUPTED = 0, 1, 3, 130
CANDIDATES = 40
"""Of a workload, unless a budget is given."""
ABSENT_S = 9 * 60.0
"""Of a run for a GPU that is not here, unless a budget is given."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def tune(given: argparse.Namespace, hardware: Hardware) -> int:
    """Do what the command line says, and return the exit code."""
    plan = understood(given)
    elsewhere = plan.ray is not None or plan.world is not None
    gpus = [] if elsewhere else hardware.gpus(plan.target)
    if not gpus and plan.require_device and plan.ray is None:
        print(f"no {plan.target.name} here, and --require-device was given", file=sys.stderr)
        return ABSENT
    session = Session(plan, hardware, gpus, report.console())
    with terminable():
        try:
            session.run()
        except KeyboardInterrupt:
            session.report()
            print(f"interrupted: every result so far is stored. {session.onward}", file=sys.stderr)
            return INTERRUPTED
        except StoreError:
            if session.campaign is not None:  # else nothing was begun that could go on
                session.report()
                print(f"stopped: every result so far is stored. {session.onward}", file=sys.stderr)
            raise
    session.report()
    return session.verdict()


class Session:
    """One run with everything it opens: database, GPUs, compilers, screen."""

    def __init__(
        self, plan: Plan, hardware: Hardware, gpus: Sequence[Present], console: Console
    ) -> None:
        self.plan, self.hardware, self.gpus, self.console = plan, hardware, gpus, console
        self.measured = bool(gpus) or plan.ray is not None
        candidates = None if plan.record else CANDIDATES
        self.budget = plan.budget or Budget(candidates, None if self.measured else ABSENT_S)
        self.campaign: Campaign | Gathered | None = None
        self.finished = False

    def run(self) -> None:
        """Tune everything; however this ends, children are ended and the run's row is closed."""
        plan = self.plan
        with ExitStack() as stack:
            store = stack.enter_context(Store(plan.storage))
            study = plan.study or (str(store.place) if is_server(store.place) else None)
            if plan.ray is not None:
                self._in_cluster(stack, store, study, plan.ray)
            elif len(self.gpus) > 1:
                self._on_several(stack, store, study)
            else:
                self._on_one(stack, store, study)
            self.finished = True

    def _on_one(self, stack: ExitStack, store: Store, study: str | None) -> None:
        """The GPU here, or a model of an absent one; in this process."""
        plan, found = self.plan, next(iter(self.gpus), None)
        environment = compiler_environment(stack)
        lab = open_lab(stack, self.hardware, plan.target, found, environment)
        run = self._begin(stack, store)
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
            study=study,
        )
        self.campaign = campaign
        campaign.run(run, [make for _, make in plan.jobs])

    def _on_several(self, stack: ExitStack, store: Store, study: str | None) -> None:
        """The GPUs of this machine, each in a process of its own."""
        if study is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kdsl-study-"))
            study = str(Path(folder) / "study.log")
        run = self._begin(stack, store)
        shares = cut(self.plan.jobs, len(self.gpus), self.budget, self.plan.seed)
        self.campaign = gathered = Gathered(shares)
        processes = max(self.plan.processes // len(self.gpus), 1)
        task = Task(self.plan.target.name, store.place, study, run.id, processes, self.plan.record)
        watch = stack.enter_context(watch_on(self.console))
        stack.callback(_ignore_signals)
        seconds = self.budget.seconds
        run_here(task, gathered, self.hardware, self.gpus, watch, seconds=seconds)

    def _in_cluster(self, stack: ExitStack, store: Store, study: str | None, address: str) -> None:
        """The GPUs of a Ray cluster."""
        cluster = Cluster(address)
        stack.callback(cluster.close)
        run = self._begin(stack, store)
        shares = cut(self.plan.jobs, cluster.gpus, self.budget, self.plan.seed)
        self.campaign = gathered = Gathered(shares)
        processes = self.plan.asked_processes or cluster.processes
        task = Task(self.plan.target.name, store.place, study, run.id, processes, self.plan.record)
        watch = stack.enter_context(watch_on(self.console))
        stack.callback(_ignore_signals)
        cluster.run(task, gathered, self.hardware, watch)

    def _begin(self, stack: ExitStack, store: Store) -> Run:
        """The run's row; its end is written when the stack closes."""
        rev, dirty = revision()
        run = store.begin(
            self.plan.command,
            host=socket.gethostname(),
            card=self.gpus[0].card if len(self.gpus) == 1 else "",
            budget=str(self.budget),
            sampler="record" if self.plan.record else "tpe",
            seed=self.plan.seed,
            git_rev=rev,
            git_dirty=dirty,
        )
        stack.callback(self._close, store, run)
        return run

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
        place = self.plan.storage
        storage = shown(place) if isinstance(place, str) and is_server(place) else place
        words = [f" --storage {storage}" if storage else ""]
        words.append(f" --ray {scrub(self.plan.ray)}" if self.plan.ray is not None else "")
        return f"To go on: python -m autotune --resume{''.join(words)}"

    def report(self) -> None:
        """Tables, what is left, and the one line that says it all."""
        tallies = self.campaign.tallies if self.campaign else []
        gpu = self.plan.target.name
        report.summary(self.console, [(gpu, tally) for tally in tallies])
        for tally in tallies:
            report.ranking(self.console, tally)
        if self.left:
            self._say(f"left: {', '.join(self.left)}. {self.onward}")
        timed = sum(tally.fresh["ok"] for tally in tallies)
        failed = sum(tally.new for tally in tallies) - timed
        known = sum(tally.known for tally in tallies)
        rest = f", {failed} failed" if failed else ""
        rest += f" ({known} more known before)" if known else ""
        if self.plan.world is not None:
            self._say(f"{self.plan.world} x {gpu}, simulated: {timed} predicted, 0 measured{rest}")
        elif not self.measured:
            self._say(f"no {gpu} here: {timed} predicted, 0 measured{rest}")
        else:
            self._say(f"{gpu}: {timed} measured{rest}")

    def verdict(self) -> int:
        """Exit code: a default without a time is a fault, for everything is held against it."""
        tallies = self.campaign.tallies if self.campaign else []
        lost = [(t.name, t.default) for t in tallies if t.default and t.default.status != "ok"]
        for name, default in lost:
            said = f"{default.status}: {default.reason}" if default.reason else default.status
            print(f"{name}: the built-in default has no time: {said}", file=sys.stderr)
        return FAILED if lost else DONE

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


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
