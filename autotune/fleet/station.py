"""One GPU with all that tuning on it takes: lock, measuring process, compilers, database."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import ExitStack
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from kdsl import targets
from kdsl.autotune.cli.hardware import Hardware
from kdsl.autotune.fleet.share import Failure, Share, Task
from kdsl.autotune.measuring import Bench, DeviceIll
from kdsl.autotune.measuring.lock import hold
from kdsl.autotune.measuring.present import Present
from kdsl.autotune.session.campaign import AbsentGpu, Campaign, Lab, PresentGpu
from kdsl.autotune.session.outcome import Outcome
from kdsl.autotune.session.tuner import Tally, Watch
from kdsl.autotune.store import Store
from kdsl.errors import KdslError
from kdsl.targets import Target


def compiler_environment(stack: ExitStack) -> dict[str, str]:
    """A cache of Triton's for this run alone: hundreds of losers must not fill the user's."""
    if "TRITON_CACHE_DIR" in os.environ:
        return {}
    folder = tempfile.TemporaryDirectory(prefix="kdsl-tune-", ignore_cleanup_errors=True)
    return {"TRITON_CACHE_DIR": stack.enter_context(folder)}


def open_lab(
    stack: ExitStack,
    hardware: Hardware,
    target: Target,
    found: Present | None,
    environment: dict[str, str],
) -> Lab:
    """The GPU under its lock with its measuring process, or the model of an absent one."""
    if found is None:
        return AbsentGpu(target)
    descriptor = stack.enter_context(hold(found.card))
    bench = Bench(hardware.card(found), keep=(descriptor,), environment=environment)
    return PresentGpu(found.target, stack.enter_context(bench))


class Station:
    """Does the shares of a task on one GPU, one after the other."""

    def __init__(self, task: Task, hardware: Hardware, gpu: Present) -> None:
        self.task, self.gpu = task, gpu
        self.target = targets.get(task.gpu)
        with ExitStack() as stack:
            self.store = stack.enter_context(Store(task.storage))
            environment = compiler_environment(stack)
            self.lab = open_lab(stack, hardware, self.target, gpu, environment)
            self.pool = stack.enter_context(hardware.pool(task.processes, environment))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def tune(self, share: Share, watch: Watch) -> Tally:
        """Do a share; the part of this GPU in the run is a row of its own."""
        task = self.task
        run = self.store.begin(
            "a share of a run",
            host=socket.gethostname(),
            card=self.gpu.card,
            budget=str(share.budget),
            sampler="record" if task.record else "tpe",
            seed=share.seed,
            part_of=task.run_id,
        )
        campaign = Campaign(
            self.lab,
            self.target,
            self.pool,
            self.store,
            watch,
            budget=share.budget,
            seed=share.seed,
            record=task.record,
            study=task.study,
            driver=f"{task.run_id}-{share.number}",
        )
        finished = False
        try:
            (tally,) = campaign.run(run, [share.make])
            finished = True
        finally:
            self.store.finish(run, complete=finished, counts=campaign.counts)
        return tally


class Telling:
    """A watch that sends what it sees to another process."""

    def __init__(self, link: Connection[Any, Any]) -> None:
        self.link = link

    def begin(self, tally: Tally) -> None:
        """A workload starts."""
        self.link.send(("begin", tally, None))

    def step(self, tally: Tally, outcome: Outcome) -> None:
        """A candidate has its outcome."""
        self.link.send(("step", tally, outcome))

    def end(self, tally: Tally) -> None:
        """A workload ends."""
        self.link.send(("end", tally, None))


class Silent:
    """A watch that nobody looks at."""

    def begin(self, tally: Tally) -> None:
        """Nothing to say."""

    def step(self, tally: Tally, outcome: Outcome) -> None:
        """Nothing to say."""

    def end(self, tally: Tally) -> None:
        """Nothing to say."""


def failure(error: KdslError, *, lost: bool = False) -> Failure:
    """An error as a plain value."""
    return Failure(error.what, error.where, error.hint, lost or isinstance(error, DeviceIll))


def serve(link: Connection[Any, Any], task: Task, hardware: Hardware, gpu: Present) -> None:
    """Process for one GPU of this machine: says that it is ready, then does the shares that come.

    Sends ``(what, tally or Failure, outcome)``.
    """
    try:
        with Station(task, hardware, gpu) as station:
            link.send(("ready", None, None))
            while True:
                share = link.recv()
                try:
                    station.tune(share, Telling(link))
                except KdslError as error:
                    told = failure(error)
                    link.send(("failed", told, None))
                    if told.lost:
                        return
                else:
                    link.send(("done", None, None))
    except KdslError as error:
        link.send(("failed", failure(error, lost=True), None))
