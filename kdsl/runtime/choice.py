"""Which configuration a build runs with, and why."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from kdsl.errors import ConfigError
from kdsl.runtime.keying import key_for, space_hash
from kdsl.runtime.records import Found, Mode, lookup
from kdsl.runtime.tunable import Tunable
from kdsl.runtime.tunables import operations
from kdsl.specs import canonical
from kdsl.targets import Target

MODES: tuple[str, ...] = get_args(Mode)
MEASURED = ("exact", "soft", "nearest", "same-cc")
"""Rungs whose time was measured, if not always for quite this workload or card."""


@dataclass(frozen=True)
class Choice:
    """A configuration, the rung of the look-up it came from, and the look-up's own words."""

    params: Mapping[str, Any]
    rung: str
    lines: tuple[str, ...]
    measured_us: float | None = None
    predicted_us: float | None = None


def choose(
    tunable: Tunable,
    target: Target,
    given: Mapping[str, Any] | None,
    mode: str,
    *,
    here: bool = False,
    tables: Mapping[str, npt.NDArray[Any]] | None = None,
) -> Choice:
    """Go down the look-up's ladder; see `kdsl.runtime.records.lookup`.

    ``given`` may name some settings, the default supplies the others.  With mode ``"now"`` and the
    GPU ``here``, a workload that was not measured yet is measured first, by the tuner, in a process
    of its own.
    """
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r}", hint=" or ".join(map(repr, MODES)))
    default = tunable.default(target)
    merged = None if given is None else {**default, **given}

    def ask() -> Found:
        return lookup(
            key_for(tunable, target),
            legal=lambda config: tunable.legal(config, target),
            default=default,
            given=merged,
            mode=cast(Mode, mode),
            space_hash=space_hash(tunable.space(target)),
        )

    found = ask()
    if mode == "now" and here and found.rung not in ("given", "exact"):
        measure(tunable, target, tables or {})
        found = ask()
    measured = found.expected_us if found.rung in MEASURED else None
    predicted = found.expected_us if found.rung == "predicted" else None
    return Choice(found.config or default, found.rung, found.lines, measured, predicted)


def measure(
    tunable: Tunable, target: Target, tables: Mapping[str, npt.NDArray[Any]], budget: str = "40"
) -> None:
    """Start the tuner for one spec and wait; ConfigError with its last words if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        spec, values = Path(folder) / "spec.json", Path(folder) / "tables.npz"
        spec.write_text(canonical(tunable.spec.to_json()))
        command = [sys.executable, "-m", "kdsl.autotune", "--gpu", target.name]
        command += ["--spec", str(spec), "--budget", budget]
        if tunable.op != operations(tunable.spec)[0]:
            command += ["--direction", "backward"]
        if tables:
            np.savez(values, **tables)  # type: ignore[arg-type]
            command += ["--tables", str(values)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise ConfigError(
            f"the tuner ended with exit code {done.returncode}",
            where=json.dumps(words),
            hint='mode="predict", or run the tuner by hand: ' + " ".join(command[1:5]),
        )
