"""A few processes that compile, each killed and replaced when it takes too long."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

from kdsl.autotune.children import Child, ChildDied
from kdsl.autotune.compiling.limits import Limit
from kdsl.autotune.compiling.worker import Built
from kdsl.errors import UnsupportedError
from kdsl.targets import Target
from kdsl.work import AheadOfTime

PATIENCE = 3.0
START_S = 120.0
"""How long a process may take to import the compiler."""


def identity(what: AheadOfTime, target: Target) -> str:
    """A hash of everything that the compiler sees."""
    parts = (what.source, what.entry, sorted(map(repr, what.signature.items())),
             sorted(map(repr, what.constants.items())), what.divisible,
             sorted(map(repr, what.options.items())), target.capability)  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass
class _Station:
    """A process and what it is at; ``key`` is None while it starts or waits."""

    child: Child
    ready: bool = False
    key: Hashable | None = None
    patience: float = 1.0
    since: float = field(default_factory=time.monotonic)

    @property
    def idle(self) -> bool:
        return self.ready and self.key is None


class CompilePool:
    """Compiles in up to ``jobs`` processes; results are fetched by the key they were asked under.

    Processes start when there is work for them.  ``start`` makes one, ``limit`` says how long one
    kernel may take.
    """

    def __init__(
        self,
        jobs: int,
        *,
        environment: Mapping[str, str] | None = None,
        limit: Limit | None = None,
        start: Callable[[], Child] | None = None,
    ) -> None:
        self.jobs, self.limit = max(jobs, 1), limit or Limit()
        variables = {"OMP_NUM_THREADS": "1", **(environment or {})}
        self._start = start or (
            lambda: Child("kdsl.autotune.compiling.worker:serve", environment=variables)
        )
        self._stations: list[_Station] = []
        self._queue: deque[tuple[Hashable, AheadOfTime, Target, float]] = deque()
        self._done: dict[Hashable, Built] = {}
        self._names: dict[Hashable, str] = {}
        self._made: dict[str, Built] = {}
        """Every kernel compiled so far by what it is: workloads that differ in their tables' values
        alone share all of theirs."""

    def submit(
        self, key: Hashable, what: AheadOfTime, target: Target, *, patient: bool = False
    ) -> None:
        """Put a kernel in the queue; a ``patient`` one may take `PATIENCE` times the limit."""
        if (same := identity(what, target)) in self._made:
            self._done[key] = self._made[same]
            return
        self._names[key] = same
        self._queue.append((key, what, target, PATIENCE if patient else 1.0))
        self._feed()

    def result(self, key: Hashable, until: float | None = None) -> Built | None:
        """Wait for a kernel that was submitted; None if ``until`` (monotonic seconds) passes first.

        UnsupportedError where there is no compiler.
        """
        while key not in self._done:
            if until is not None and time.monotonic() >= until:
                return None
            self._turn(until)
        return self._done.pop(key)

    def drop(self, *, refill: bool = False) -> None:
        """Forget everything that was asked for; what is being compiled is killed.

        With ``refill`` new processes start right away, to have imported the compiler by the time
        there is work again.
        """
        self._queue.clear()
        self._done.clear()
        self._names.clear()
        for station in [s for s in self._stations if s.key is not None]:
            self._remove(station)
            if refill:
                self._stations.append(_Station(self._start()))

    def close(self) -> None:
        """End the processes."""
        self._queue.clear()
        for station in list(self._stations):
            self._remove(station)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _feed(self) -> None:
        idle = [s for s in self._stations if s.idle]
        while self._queue and idle:
            station = idle.pop()
            station.key, what, target, station.patience = self._queue.popleft()
            station.since = time.monotonic()
            try:
                station.child.send((what, target))
            except ChildDied as error:
                self._failed(station, Built("compile_error", f"the compiler died: {error}"))
        starting = sum(not s.ready for s in self._stations)
        while len(self._stations) < self.jobs and starting < len(self._queue):
            self._stations.append(_Station(self._start()))
            starting += 1

    def _turn(self, until: float | None) -> None:
        """Wait for the next message or limit, and act on it."""
        self._feed()
        now = time.monotonic()
        ends = [self._end(s) for s in self._stations if not s.idle]
        if until is not None:
            ends.append(until)
        waiting: list[Connection[Any, Any]] = [s.child.connection for s in self._stations]
        said = wait(waiting, max(min(ends, default=now) - now, 0.0))
        for station in list(self._stations):
            if station.child.connection in said:
                self._hear(station)
            elif not station.idle and time.monotonic() >= self._end(station):
                self._overrun(station)

    def _end(self, station: _Station) -> float:
        limit = self.limit.seconds * station.patience if station.ready else START_S
        return station.since + limit

    def _hear(self, station: _Station) -> None:
        try:
            message = station.child.receive(1.0)
        except ChildDied as error:
            if not station.ready:
                self._remove(station)
                raise UnsupportedError(f"a compiling process did not start: {error}") from error
            self._failed(station, Built("compile_error", f"the compiler died: {error}"))
            return
        if not station.ready:
            if message:
                self.close()
                raise UnsupportedError(
                    f"compiling needs Triton, which cannot be imported: {message}",
                    hint="pip install 'kdsl-kernels[triton]'",
                )
            station.ready = True
        elif station.key is not None:
            self.limit.add(time.monotonic() - station.since)
            self._done[station.key] = message
            self._made[self._names.pop(station.key)] = message
            station.key = None

    def _overrun(self, station: _Station) -> None:
        if not station.ready:
            self._remove(station)
            raise UnsupportedError(f"a compiling process did not start within {START_S:.0f} s")
        taken = time.monotonic() - station.since
        self.limit.add(taken)
        self._failed(
            station, Built("compile_timeout", f"killed after {taken:.0f} s", seconds=taken)
        )

    def _failed(self, station: _Station, built: Built) -> None:
        if station.key is not None:
            self._done[station.key] = built
        self._remove(station)

    def _remove(self, station: _Station) -> None:
        self._stations.remove(station)
        station.child.kill()
