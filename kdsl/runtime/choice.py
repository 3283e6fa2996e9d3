"""Which configuration a build runs with, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdsl.errors import ConfigError
from kdsl.runtime.tunable import Tunable
from kdsl.targets import Target

MODES = ("off", "strict", "nearest", "predict", "now")


@dataclass(frozen=True)
class Choice:
    """A configuration, the rung of the look-up it came from, and the look-up's own words."""

    params: Mapping[str, Any]
    rung: str
    lines: tuple[str, ...]
    measured_us: float | None = None
    predicted_us: float | None = None


def choose(tunable: Tunable, target: Target, given: Mapping[str, Any] | None, mode: str) -> Choice:
    """The first rung that gives a legal configuration; ConfigError if the given one is illegal."""
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r}", hint=" or ".join(map(repr, MODES)))
    if given is not None:
        default = tunable.default(target)
        params = {**default, **given}
        reason = tunable.legal(params, target)
        if reason:
            raise ConfigError(
                f"the given configuration is illegal: {reason}",
                where=repr(dict(given)),
                hint=f"for instance {default}",
            )
        return Choice(params, "given", ("given: used as it is",))
    return Choice(tunable.default(target), "rule", ("rule: the built-in default",))
