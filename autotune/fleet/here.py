"""The GPUs of this machine: a process for each, which takes one share after the other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from kdsl.autotune.children import Child, ChildDied
from kdsl.autotune.cli.hardware import Hardware
from kdsl.autotune.fleet.share import Failure, Gathered, Share, Task
from kdsl.autotune.measuring.present import Present
from kdsl.autotune.session.tuner import Watch
from kdsl.errors import KdslError

ATTEMPTS = 3
"""How often a share is begun whose process died, and a process replaced."""


@dataclass
class _Seat:
    """A GPU, its process, and the share it is at."""

    gpu: Present
    child: Child
    ready: bool = False
    share: Share | None = None
    deaths: int = 0


def run_here(
    task: Task,
    gathered: Gathered,
    hardware: Hardware,
    gpus: Sequence[Present],
    watch: Watch,
    *,
    seconds: float | None,
) -> None:
    """Do every share; results so far stand in ``gathered``, also when this is interrupted.

    A process that dies is replaced and its share begun again. A GPU that is ill is given no more,
    and its share goes to another one. KdslError if no GPU is left, or a share failed for reasons of
    its own; the others are done first.
    """
    crew = _Crew(task, gathered, hardware, watch, seconds)
    try:
        crew.run(gpus)
    finally:
        crew.close()


class _Crew:
    def __init__(
        self,
        task: Task,
        gathered: Gathered,
        hardware: Hardware,
        watch: Watch,
        seconds: float | None,
    ) -> None:
        self.task, self.gathered, self.hardware, self.watch = task, gathered, hardware, watch
        self.end = None if seconds is None else time.monotonic() + seconds
        self.waiting = deque(gathered.shares)
        self.seats: list[_Seat] = []
        self.begun: dict[int, int] = {}
        self.last: Failure | None = None

    def _start(self, gpu: Present) -> Child:
        return Child("kdsl.autotune.fleet.station:serve", self.task, self.hardware, gpu)

    def run(self, gpus: Sequence[Present]) -> None:
        self.seats = [_Seat(gpu, self._start(gpu)) for gpu in gpus]
        while self.waiting or any(seat.share for seat in self.seats):
            if not self.seats:
                assert self.last is not None
                raise KdslError(self.last.what, where=self.last.where, hint=self.last.hint)
            links: list[Connection[Any, Any]] = [s.child.connection for s in self.seats]
            said = wait(links)
            for seat in list(self.seats):
                if seat.child.connection in said:
                    self._hear(seat)
        for failed in self.gathered.failures.values():
            raise KdslError(failed.what, where=failed.where, hint=failed.hint)

    def close(self) -> None:
        """End every process."""
        for seat in self.seats:
            seat.child.kill()

    def _hear(self, seat: _Seat) -> None:
        try:
            what, told, outcome = seat.child.receive(60.0)
        except ChildDied as error:
            self._died(seat, str(error))
            return
        if what == "failed":
            self._failed(seat, told)
        elif what in ("ready", "done"):
            seat.ready, seat.share = True, None
        elif seat.share is not None:
            self.gathered.put(seat.share, told)
            if what == "step":
                self.watch.step(told, outcome)
            else:
                (self.watch.begin if what == "begin" else self.watch.end)(told)
        if seat in self.seats and seat.ready and seat.share is None and self.waiting:
            self._give(seat)

    def _give(self, seat: _Seat) -> None:
        share = self.waiting.popleft()
        if self.end is not None:
            # What others did not need of their time is there for the rest.
            left = max(self.end - time.monotonic(), 0.0)
            rounds = max((len(self.waiting) + 1) / len(self.seats), 1.0)
            share = replace(share, budget=replace(share.budget, seconds=left / rounds))
        self.begun[share.number] = self.begun.get(share.number, 0) + 1
        seat.share = share
        try:
            seat.child.send(share)
        except ChildDied as error:
            self._died(seat, str(error))

    def _failed(self, seat: _Seat, told: Failure) -> None:
        self.last = told
        share, seat.share = seat.share, None
        if told.lost:
            if share is not None:
                self.waiting.appendleft(share)
            self._withdraw(seat)
        elif share is not None:
            self.gathered.failures[share.number] = told

    def _died(self, seat: _Seat, why: str) -> None:
        self.last = Failure(f"the process of {self.task.gpu} number {seat.gpu.index} ended: {why}")
        share, seat.share, seat.ready = seat.share, None, False
        seat.deaths += 1
        if share is not None and self.begun[share.number] < ATTEMPTS:
            self.waiting.appendleft(share)
        elif share is not None:
            self.gathered.failures[share.number] = self.last
        if seat.deaths < ATTEMPTS:
            seat.child.kill()
            seat.child = self._start(seat.gpu)
        else:
            self._withdraw(seat)

    def _withdraw(self, seat: _Seat) -> None:
        seat.child.kill()
        self.seats.remove(seat)
