"""The tuner's end of the measuring process: limits, replacement, the canary."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from kdsl.autotune.children import Child, ChildDied, ChildHung
from kdsl.autotune.measuring.device import Card, Facts, Finals, Opening, Order, Params, Timing
from kdsl.errors import KdslError


class DeviceIll(KdslError, RuntimeError):
    """A device that fails with what it could do before."""


@dataclass(frozen=True)
class Patience:
    """Seconds to wait for a process, for a workload to open, and for each part of an order."""

    start: float = 180.0
    open: float = 300.0
    compile: float = 90.0
    check: float = 60.0
    time: float = 60.0


_HUNG = {"compile": "compile_timeout"}


class Bench:
    """One long-lived measuring process, replaced when it hangs, dies or says that it is lost.

    After a replacement a candidate that was right before, the canary, has to be right again:
    DeviceIll if it is not.
    """

    def __init__(
        self,
        card: Card,
        *,
        patience: Patience = Patience(),
        keep: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.card, self.patience = card, patience
        self._keep, self._environment = tuple(keep), dict(environment or {})
        self._opening: Opening | None = None
        self._canary: Params | None = None
        self._child: Child | None = None
        self.replaced = 0
        self.facts = self._begin()

    def open(self, opening: Opening) -> None:
        """Prepare for the candidates of a workload; KdslError if the device cannot."""
        self._opening, self._canary = opening, None
        said = self._ask(opening, self.patience.open)
        if said:
            raise KdslError(f"the workload cannot be set up on {self.facts.name}: {said}")

    def measure(self, params: Params, bar_us: float | None = None) -> Timing:
        """Measure one candidate; every fault of its own is a status."""
        timing: Timing = self._order(Order(params, bar_us))
        if timing.status == "ok" and self._canary is None:
            self._canary = params
        if timing.sticky:
            self._replace(timing.reason)
        return timing

    def finals(self, candidates: Sequence[Params], rounds: int) -> list[list[float]]:
        """Samples of each candidate, taken by turns; empty lists if the process was lost."""
        said = self._order(Finals(tuple(candidates), rounds))
        if isinstance(said, list):
            return said
        if said.sticky:
            self._replace(said.reason)
        return [[] for _ in candidates]

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self) -> Facts:
        self._child = Child(
            "kdsl.autotune.measuring.worker:serve",
            self.card,
            keep=self._keep,
            environment=self._environment,
        )
        try:
            facts: Facts = self._child.receive(self.patience.start)
        except (ChildDied, ChildHung) as error:
            self.close()
            raise DeviceIll(f"the measuring process did not start: {error}") from error
        return facts

    def _ask(self, message: Any, seconds: float) -> Any:
        assert self._child is not None
        try:
            self._child.send(message)
            return self._child.receive(seconds)
        except (ChildDied, ChildHung) as error:
            self.close()
            raise DeviceIll(f"the measuring process was lost: {error}") from error

    def _order(self, order: Order | Finals) -> Any:
        """The answer; a process that hangs or dies gives a sticky timing."""
        assert self._child is not None
        part = "start"
        try:
            self._child.send(order)
            while True:
                limit: float = getattr(self.patience, part)
                said = self._child.receive(limit)
                if not isinstance(said, str):
                    return said
                part = said
        except ChildHung:
            status = _HUNG.get(part, "run_timeout")
            return Timing(status, f"killed after {limit:.0f} s of {part}", sticky=True)
        except ChildDied as error:
            return Timing("crash", f"{error} (during {part})", sticky=True)

    def _replace(self, reason: str) -> None:
        self.close()
        self.replaced += 1
        self._begin()
        if self._opening is None:
            return
        said = self._ask(self._opening, self.patience.open)
        if not said and self._canary is not None:
            timing = self._order(Order(self._canary))
            said = "" if timing.status == "ok" else f"{timing.status}: {timing.reason}"
        if said:
            with contextlib.suppress(KdslError):
                self.close()
            raise DeviceIll(
                f"{self.facts.name} is ill: what it could do before now fails: {said}",
                where=f"after a candidate ended with: {reason}",
                hint="look at the GPU with nvidia-smi, reset it, and run the same command again",
            )
