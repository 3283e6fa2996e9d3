"""How much a run may try."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kdsl.errors import ConfigError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TIME = re.compile(r"(\d+(?:\.\d+)?)([smh])")
EXAMPLES = "40 (candidates a workload), 2m or 90s (the whole run), or both: 40,10m"


@dataclass(frozen=True)
class Budget:
    """``candidates`` a workload, those known before included; ``seconds`` for the whole run."""

    candidates: int | None = None
    seconds: float | None = None

    @staticmethod
    def parse(text: str) -> Budget:
        """``40``, ``90s``, ``2m``, ``1.5h``, or a number and a time with a comma between."""
        budget = Budget()
        for part in text.split(","):
            budget = budget._with(part.strip().lower(), text)
        return budget

    def _with(self, part: str, text: str) -> Budget:
        matched = _TIME.fullmatch(part)
        if part.isascii() and part.isdecimal() and int(part) and self.candidates is None:
            return Budget(int(part), self.seconds)
        if matched and float(matched[1]) and self.seconds is None:
            return Budget(self.candidates, float(matched[1]) * _UNITS[matched[2]])
        raise ConfigError(f"--budget {text!r} is no budget", hint=EXAMPLES)

    def __str__(self) -> str:
        parts = [str(self.candidates)] if self.candidates is not None else []
        if self.seconds is not None:
            parts.append(f"{self.seconds:.10g}s")
        return ",".join(parts)
