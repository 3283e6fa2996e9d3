"""What came of one candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdsl.autotune.compiling import Built

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """A candidate's status, time and resources. Times in microseconds, sizes in bytes.

    ``final`` marks a second look at a candidate that was timed before; ``typical_error`` is
    that of `kdsl.runtime.predict.Prediction`.
    """

    params: Params
    status: str
    reason: str = ""
    median_us: float | None = None
    interval_us: tuple[float, float] | None = None
    samples: tuple[float, ...] = ()
    built: Built | None = None
    error: float | None = None
    clock_mhz: float | None = None
    temp_c: float | None = None
    final: bool = False
    typical_error: float | None = None

    @property
    def upper_us(self) -> float:
        """Upper end of the median's interval."""
        return self.interval_us[1] if self.interval_us else self.median_us or float("inf")
