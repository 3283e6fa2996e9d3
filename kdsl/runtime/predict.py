"""Time of a kernel from its work alone, for a GPU that may not be there."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.targets import Target, occupancy
from kdsl.work import Work

ISSUE = {8: 0.62, 9: 0.50, 10: 0.35, 12: 0.60}
"""Share of the dense peak that the portable attention inner loop reaches with full multiprocessors,
by major compute capability.  9: 452 to 492 TFLOP/s of 989 on an H100 (docs/performance.md); the
others are guesses until a row of the database says better."""
BANDWIDTH = 0.85
"""Share of the data sheet's memory bandwidth that a plain copy reaches (H100: 3.0 of 3.35 TB/s)."""
STEPS_OF_OVERHEAD = 4.0
"""Prologue and epilogue of a program, in inner-loop steps."""
LAUNCH_US = 3.0


def predict_us(work: Work, target: Target, *, registers: int = 128, spill_bytes: int = 0) -> float:
    """Predicted time in microseconds: the slower of bytes and of arithmetic with its waves.

    Programs go to free multiprocessor slots in launch order, as the hardware does it, so a long
    tail of the real row lengths shows.  Registers and spills are the compiler's where known.
    """
    bytes_us = work.bytes / max(target.bandwidth * BANDWIDTH, 1.0) * 1e6
    if not work.step_flop:
        return max(bytes_us, 0.0) + LAUNCH_US
    peak = target.peak(work.unit) or target.peak("float32") or 1.0
    slots = max(occupancy(target, registers, work.shared_bytes, work.threads // 32), 1)
    warps = slots * work.threads / 32
    # Fewer than eight warps leave the tensor cores waiting for softmax and loads.
    busy = min(1.0, warps / 8) ** 0.5
    rate = peak * ISSUE.get(target.capability[0], 0.5) * busy / target.sms / slots
    step_us = work.step_flop / rate * 1e6 * (1 + spill_bytes / 512)
    load = work.step_bytes * target.sms * slots / max(target.bandwidth * 2.5, 1.0) * 1e6
    each = (work.steps + STEPS_OF_OVERHEAD) * max(step_us, load)
    return max(finish(each, target.sms * slots), bytes_us) + LAUNCH_US


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
