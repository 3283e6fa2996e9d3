"""How long a compiler may take, learnt from how long it took."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Limit:
    """Twice the 90th percentile of the seconds seen, within ``low`` and ``high``."""

    low: float = 10.0
    high: float = 60.0
    seen: list[float] = field(default_factory=list)

    def add(self, seconds: float) -> None:
        """One more time; what was cut off counts with the time it was given."""
        self.seen.append(seconds)

    @property
    def seconds(self) -> float:
        """The limit now; the highest one until a few times have been seen."""
        if len(self.seen) < 5:
            return self.high
        ordered = sorted(self.seen)
        ninetieth = ordered[-(-9 * len(ordered) // 10) - 1]
        return min(max(2 * ninetieth, self.low), self.high)
