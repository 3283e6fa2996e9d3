"""What the measuring process asks of a device, and what it answers to the tuner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kdsl.work import Check

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What a device is, and the versions that a run on it depends on; empty where unknown.

    ``card`` tells this very card from others of its model; it is stored as a pseudonym only.
    """

    name: str
    card: str = ""
    driver: str = ""
    cuda: str = ""
    torch: str = ""
    triton: str = ""
    power_cap_w: float | None = None


@dataclass(frozen=True)
class Vitals:
    """Clock of the multiprocessors and temperature, now; None where nobody says."""

    clock_mhz: float | None = None
    temp_c: float | None = None


@dataclass(frozen=True)
class Opening:
    """A workload: the spec as canonical JSON, values of all its tables, batch, seed of inputs.

    ``op`` names one of the spec's operations, the first unless given.
    """

    spec_json: str
    tables: Mapping[str, npt.NDArray[np.integer]] = field(repr=False)
    batch: int = 1
    seed: int = 0
    op: str = ""


@dataclass(frozen=True)
class Order:
    """Measure one candidate; it may stop when it cannot come below ``bar_us`` any more."""

    params: Params
    bar_us: float | None = None


@dataclass(frozen=True)
class Finals:
    """Time several candidates by turns, ``rounds`` times each."""

    candidates: tuple[Params, ...]
    rounds: int


@dataclass(frozen=True)
class Timing:
    """What came of an order. Samples in microseconds; ``error`` as `kdsl.work.Check` has it.

    ``sticky`` says that the process can do no more and must be replaced.
    """

    status: str
    reason: str = ""
    samples: tuple[float, ...] = ()
    error: float | None = None
    clock_mhz: float | None = None
    temp_c: float | None = None
    sticky: bool = False


class Device(Protocol):
    """A GPU, or something that behaves like one."""

    def facts(self) -> Facts:
        """What it is."""

    def open(self, opening: Opening) -> None:
        """Prepare for the candidates of a workload."""

    def start(self, params: Params) -> None:
        """Compile a candidate for its first call, and make that call."""

    def check(self, params: Params, turn: int) -> Check:
        """Is its result right? Every ``turn`` has other inputs; outputs are poisoned before."""

    def sample(self, params: Params, count: int) -> list[float]:
        """Times of ``count`` calls in microseconds, each with a cold L2 cache."""

    def vitals(self) -> Vitals:
        """Clock and temperature."""

    def rest(self) -> None:
        """Wait a little for a hot device to recover."""


class Card(Protocol):
    """Makes the device inside the measuring process; a plain value that travels there."""

    def make(self) -> Device:
        """The device."""
