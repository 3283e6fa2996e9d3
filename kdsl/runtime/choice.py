"""Which configuration a build runs with, and why."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from kdsl.errors import ConfigError, StoreError
from kdsl.runtime.keying import key_for, space_hash
from kdsl.runtime.records import Found, Mode, Source, lookup, shipped
from kdsl.runtime.tunable import Tunable
from kdsl.runtime.tunables import operations
from kdsl.specs import canonical
from kdsl.targets import Target
from kdsl.targets import get as target_named

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


def settle(
    tunable: Tunable,
    target: Target | None,
    backend: str,
    given: Mapping[str, Any] | None,
    mode: str,
    *,
    here: bool,
    tables: Mapping[str, npt.NDArray[Any]],
) -> Choice | None:
    """The choice for a kernel; None for the reference, whose requests are checked all the same."""
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r}", hint=" or ".join(map(repr, MODES)))
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"config={given!r}", hint='settings by name, such as {"num_warps": 4}')
    if target is not None and backend != "reference":
        return choose(tunable, target, given, mode, here=here, tables=tables)
    # No GPU says what fits; a name or value that no GPU knows is wrong anyhow.
    space = tunable.space(target or target_named("a100"))
    for name, value in (given or {}).items():
        if value not in space.get(name, ()):
            fault = f"{name}={value!r}" if name in space else f"unknown setting {name!r}"
            hint = f"one of {space[name]}" if name in space else ", ".join(space)
            raise ConfigError(fault, where="config=", hint=hint)
    return None


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

    With mode ``"predict"`` a database of the user's that cannot be read is left out, with a
    warning: whoever serves goes on.  The other modes raise StoreError.
    """
    default = tunable.default(target)
    merged = None if given is None else {**default, **given}

    def ask(sources: Sequence[Source] | None = None) -> Found:
        return lookup(
            key_for(tunable, target),
            legal=lambda config: tunable.legal(config, target),
            default=default,
            given=merged,
            mode=cast(Mode, mode),
            space_hash=space_hash(tunable.space(target)),
            sources=sources,
        )

    lost: tuple[str, ...] = ()
    try:
        found = ask()
    except StoreError as error:
        if mode != "predict":
            raise
        warnings.warn(
            f"{error}\nThe configuration comes without that database; "
            'kdsl.build(..., mode="off") asks none.',
            RuntimeWarning,
            stacklevel=2,
        )
        lost = (f"database   left out: {error.what}",)
        found = ask([shipped()])
    if mode == "now" and here and found.rung not in ("given", "exact"):
        measure(tunable, target, tables or {})
        found = ask()
    measured = found.expected_us if found.rung in MEASURED else None
    predicted = found.expected_us if found.rung == "predicted" else None
    lines = (*lost, *found.lines)
    return Choice(found.config or default, found.rung, lines, measured, predicted)


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
