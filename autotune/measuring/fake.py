"""A device that is made up: a landscape of times, with faults at chosen points.

It obeys the protocol of the real one, so that everything but CUDA itself is tested where there is
no GPU.
"""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdsl.autotune.measuring.device import Facts, Opening, Params, Vitals
from kdsl.work import Check

FAULTS = (
    "hang", "hang_compile", "kill", "illegal_access", "wrong", "wrong_later", "lie", "oom", "smem",
    "compile_error", "throttle",
)  # fmt: skip


@dataclass(frozen=True)
class FakeCard:
    """``base_us`` times the factor of each setting, with log-normal ``noise``.

    ``faults`` pairs settings with one of `FAULTS`; a candidate that has them all shows it.  Once a
    candidate was killed or made an illegal access and ``scar`` is a path, the device stays ill.
    """

    base_us: float = 100.0
    factors: Mapping[str, Mapping[Any, float]] = field(default_factory=dict)
    noise: float = 0.01
    seed: int = 0
    faults: tuple[tuple[Mapping[str, Any], str], ...] = ()
    scar: Path | None = None
    name: str = "fake"

    def make(self) -> FakeDevice:
        """The device."""
        return FakeDevice(self)

    def time_us(self, params: Params) -> float:
        """The true time."""
        factors = (self.factors.get(name, {}).get(value, 1.0) for name, value in params.items())
        return self.base_us * math.prod(factors)

    def fault(self, params: Params) -> str:
        """The fault of a candidate, or nothing."""
        for where, fault in self.faults:
            if all(params.get(name) == value for name, value in where.items()):
                return fault
        return ""


class FakeDevice:
    """The device of a `FakeCard`."""

    def __init__(self, card: FakeCard) -> None:
        self.card, self.random, self.heat = card, random.Random(card.seed), 0

    def facts(self) -> Facts:
        """What it is."""
        return Facts(self.card.name, card=f"{self.card.name}-0", driver="0", power_cap_w=1.0)

    def open(self, opening: Opening) -> None:
        """Start the noise again."""
        self.random = random.Random(self.card.seed + opening.seed)

    def start(self, params: Params) -> None:
        """Fail as the candidate's fault says."""
        if self.card.scar is not None and self.card.scar.exists():
            raise RuntimeError("CUDA error: unspecified launch failure")
        fault = self.card.fault(params)
        if fault == "hang_compile":
            time.sleep(3600)
        if fault == "oom":
            raise MemoryError("CUDA out of memory")
        if fault == "smem":
            raise RuntimeError("out of resource: shared memory")
        if fault == "compile_error":
            raise RuntimeError("PassManager::run failed")

    def check(self, params: Params, turn: int) -> Check:
        """Right unless the fault says otherwise."""
        fault = self.card.fault(params)
        wrong = fault == "wrong" or (fault == "wrong_later" and turn > 1)
        return Check(0.5 if wrong else 1e-3, 1e-2, "the numbers are off" if wrong else "")

    def sample(self, params: Params, count: int) -> list[float]:
        """Noisy times."""
        fault = self.card.fault(params)
        if fault == "hang":
            time.sleep(3600)
        if fault in ("kill", "illegal_access") and self.card.scar is not None:
            self.card.scar.touch()
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "illegal_access":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self.heat += count if fault == "throttle" else 0
        slow = 1.0 + 0.1 * (self.heat > 0)
        true = self.card.time_us(params) * (1e-6 if fault == "lie" else slow)
        return [true * math.exp(self.random.gauss(0.0, self.card.noise)) for _ in range(count)]

    def vitals(self) -> Vitals:
        """A clock that falls with heat."""
        return Vitals(1000.0 - 10.0 * min(self.heat, 50), 40.0 + self.heat)

    def rest(self) -> None:
        """Cool down."""
        self.heat = 0
