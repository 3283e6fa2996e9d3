"""Time of a kernel from its work alone, for a GPU that may not be there.

`physical_us` is a bound from the data sheet, the compiler's figures and the real row lengths.  What
it leaves out is fitted to measured rows: see `kdsl.runtime.calibration`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdsl.targets import Target, occupancy
from kdsl.work import Work

if TYPE_CHECKING:
    from kdsl.runtime.calibration import Calibration

ISSUE = 0.8
"""Share of the dense peak that products reach alone (H100: 740 to 751 of 989 TFLOP/s in a product
of 8192^3, docs/performance.md)."""
EXPONENTIALS = 16
"""A cycle and multiprocessor, on every architecture here (CUDA programming guide, throughput of
native arithmetic)."""
AROUND_EXPONENTIAL = 8
"""Other operations on a score, about: scale, maximum, difference, sum, conversion."""
BANDWIDTH = 0.85
"""Share of the data sheet's memory bandwidth that a plain copy reaches (H100: 3.0 of 3.35 TB/s)."""
LAUNCH_US = 3.0
REGISTERS = 128
"""A thread, where neither the compiler nor the operation says."""

Span = Callable[[npt.NDArray[Any], int, float], float]


@dataclass(frozen=True)
class Physics:
    """What the bound assumes and no data sheet says.

    ``overhead`` is a program's prologue and epilogue in inner-loop steps, ``l2`` the bandwidth of
    the L2 cache over that of memory, ``exposed`` the share of the shorter of products and
    exponentials that is not hidden behind the longer.
    """

    overhead: float = 4.0
    l2: float = 2.5
    exposed: float = 0.3


@dataclass(frozen=True)
class Figures:
    """What a compiler says of a kernel: registers a thread, bytes of spills and shared memory."""

    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None


UNCOMPILED = Figures()


@dataclass(frozen=True)
class Loading:
    """How a kernel fills a multiprocessor: programs that run at once there, registers, spills."""

    slots: int
    registers: int
    spill_bytes: int

    @staticmethod
    def of(work: Work, target: Target, figures: Figures = UNCOMPILED) -> Loading:
        """The compiler's figures where known, else the operation's own estimates."""
        registers = figures.registers or work.registers or REGISTERS
        spills = work.spill_bytes if figures.spill_bytes is None else figures.spill_bytes
        shared = figures.shared_bytes or work.shared_bytes
        slots = occupancy(target, min(registers, 255), shared, max(work.threads // 32, 1))
        return Loading(max(slots, 1), registers, spills)


@dataclass(frozen=True)
class Prediction:
    """A time in microseconds that nobody measured.

    ``typical_error`` is the factor by which half of such predictions were off on workloads outside
    the fit, None where no calibration knows the compute capability; ``model`` is its name.
    """

    us: float
    typical_error: float | None = None
    model: str = ""

    def __str__(self) -> str:
        if self.typical_error is None:
            return f"{self.us:.0f} us, never calibrated on such a card"
        return f"{self.us:.0f} us, typical error {self.typical_error:.2f}x"


def predict(
    params: Mapping[str, Any],
    work: Work,
    target: Target,
    figures: Figures = UNCOMPILED,
    calibration: Calibration | None = None,
) -> Prediction:
    """The physical bound, times what the calibration found measured rows to be above it.

    A calibration of another compute capability still orders configurations, and its error is not
    believed.
    """
    loading, before = Loading.of(work, target, figures), before_us(work, target)
    if calibration is None:
        return Prediction(physical_us(work, target, loading) + before)
    bound = physical_us(work, target, loading, calibration.physics)
    factor = calibration.factor(params, work, loading)
    known = calibration.typical_error if calibration.knows(target) else None
    return Prediction(bound * factor + before, known, calibration.id)


def before_us(work: Work, target: Target) -> float:
    """What a launch of its own takes to move bytes first, in microseconds: a plain copy."""
    return work.before_bytes / _copied(target) + LAUNCH_US if work.before_bytes else 0.0


def physical_us(
    work: Work,
    target: Target,
    loading: Loading,
    physics: Physics = Physics(),
    span: Span | None = None,
) -> float:
    """The slower of bytes and of arithmetic with its waves, in microseconds, of the main launch.

    Programs go to free multiprocessor slots in launch order, as the hardware does it, so a long
    tail of the real row lengths shows.  ``span`` may remember what `makespan` gives.
    """
    bytes_us = work.bytes / _copied(target)
    if not work.step_flop:
        return bytes_us + LAUNCH_US
    peak = target.peak(work.unit) or target.peak("float32") or 1.0
    slots = loading.slots
    product = work.step_flop * target.sms * slots / (peak * ISSUE) * 1e6
    scores = work.step_exp * slots * _cycles_of_a_score(target) / _clock(target) * 1e6
    # Fewer than eight warps leave the units waiting for each other.
    busy = math.sqrt(min(1.0, slots * work.threads / 32 / 8))
    step_us = max(product, scores) + physics.exposed * min(product, scores)
    step_us *= (1 + loading.spill_bytes / 512) / busy
    load = work.step_bytes * target.sms * slots / max(target.bandwidth * physics.l2, 1.0) * 1e6
    waves: float = (span or makespan)(work.steps, target.sms * slots, physics.overhead)
    return max(waves * max(step_us, load), bytes_us) + LAUNCH_US


def _copied(target: Target) -> float:
    """Bytes a microsecond that a plain copy moves."""
    return max(target.bandwidth * BANDWIDTH, 1.0) / 1e6


def _cores(target: Target) -> int:
    """Float32 units of a multiprocessor."""
    return 64 if target.capability == (8, 0) else 128


def _clock(target: Target) -> float:
    """Cycles a second, as the data sheet's float32 peak has it."""
    return (target.peak("float32") or 1.0) / (2 * _cores(target) * target.sms)


def _cycles_of_a_score(target: Target) -> float:
    return 1 / EXPONENTIALS + AROUND_EXPONENTIAL / _cores(target)


def makespan(steps: npt.NDArray[Any], slots: int, overhead: float) -> float:
    """Steps until the last program ends, each ``overhead`` longer than its own."""
    return finish(steps + overhead, slots)


def finish(times: npt.NDArray[Any], slots: int) -> float:
    """When the last program ends if each free slot takes the next one."""
    if len(times) <= slots:
        return float(times.max(initial=0.0))
    if len(times) > 64 * slots:
        # With this many programs a slot, the longest one bounds what greedy filling leaves over.
        return float(times.sum() / slots + times[-slots:].max())
    heap = [0.0] * slots
    for t in np.asarray(times, dtype=np.float64):
        heapq.heapreplace(heap, heap[0] + float(t))
    return max(heap)


def traits(params: Mapping[str, Any], work: Work, loading: Loading) -> dict[str, float]:
    """What a calibration may put the rest down to: a few physical ratios, and each setting.

    Ratios are logarithms to base 2; a setting is one where it is chosen and absent elsewhere.
    Those of `LEVEL` are the same for all configurations of a workload.
    """
    warps = work.threads / 32
    found = {
        "warps": math.log2(max(loading.slots * warps, 1.0)),
        "alone": float(loading.slots == 1),
        "spills": math.log2(1.0 + loading.spill_bytes / 64),
        "registers": max(loading.registers - 160, 0) / 64,
    }
    if work.step_flop:
        step = math.log2(work.step_flop / warps) - 14
        found |= {
            "intensity": math.log2(work.step_flop / max(work.step_bytes, 1.0)) - 6,
            "step": step,
            "partial": work.partial,
            "partial step": work.partial * step,
            "steps": math.log2(float(work.steps.mean()) + 1 if len(work.steps) else 1.0) - 5,
            "reuse": math.log2(max(work.useful_flop, 1.0) / max(work.bytes, 1.0)) - 10,
        }
    return found | {f"{name}={value}": 1.0 for name, value in params.items()}


LEVEL = ("partial", "reuse")
"""Traits that lift a workload as a whole: share of partial steps, operations a byte."""
