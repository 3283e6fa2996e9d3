"""Corrections of the physical cost model that were fitted to measured rows, as data.

One entry an operation, dtype and compute capability.  ``python -m autotune calibrate`` writes them:
beside the user's database, or into ``tuning_db/`` to ship them.  Each names the rows it came from.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from kdsl.errors import StoreError
from kdsl.runtime.predict import UNCOMPILED, Figures, Loading, Physics, Prediction, predict, traits
from kdsl.runtime.records.link import data_folder, default_place
from kdsl.runtime.tunable import Tunable
from kdsl.targets import Target
from kdsl.work import Work

FILE = "calibration.json"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far measured times lie above the bound: the exponential of a sum of weights.

    ``weights`` go by `kdsl.runtime.predict.traits`, ``low`` and ``high`` are the least and greatest
    sum among the rows of the fit, beyond which nothing is believed.  Errors are factors between
    predicted and measured on workloads left out of the fit: half of all are within
    ``typical_error``, nine tenths within ``large_error``.  ``evidence`` is a hash of the ids of all
    rows.
    """

    op: str
    unit: str
    cc: int
    overhead: float
    l2: float
    exposed: float
    intercept: float
    weights: Mapping[str, float]
    low: float
    high: float
    typical_error: float
    large_error: float
    rows: int
    workloads: tuple[str, ...]
    devices: tuple[str, ...]
    templates: tuple[str, ...]
    evidence: str
    notes: Mapping[str, float] = field(default_factory=dict)
    """Figures of the fit for readers: rank correlation and regret of held-out workloads."""

    def knows(self, target: Target) -> bool:
        """Whether cards of this compute capability were measured."""
        return target.cc == self.cc

    @property
    def physics(self) -> Physics:
        """The bound's own parameters."""
        return Physics(self.overhead, self.l2, self.exposed)

    @cached_property
    def id(self) -> str:
        """The first digits of a hash of everything that predictions depend on."""
        form = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(form.encode()).hexdigest()[:12]

    def factor(self, params: Mapping[str, Any], work: Work, loading: Loading) -> float:
        """Measured over bound."""
        return math.exp(min(max(self.total(traits(params, work, loading)), self.low), self.high))

    def total(self, found: Mapping[str, float]) -> float:
        """The weighted sum of traits; those that no row of the fit had count nothing."""
        return self.intercept + sum(self.weights.get(n, 0.0) * v for n, v in found.items())

    def to_json(self) -> dict[str, Any]:
        """The fields, numbers to six digits."""
        out: dict[str, Any] = {}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, Mapping):
                value = {k: _rounded(v) for k, v in sorted(value.items())}
            out[spec.name] = list(value) if isinstance(value, tuple) else _rounded(value)
        return out

    @staticmethod
    def from_json(value: Any) -> Calibration:
        """A calibration from its fields; StoreError names what is wrong."""
        try:
            kinds = {spec.name: str(spec.type) for spec in fields(Calibration)}
            checked = {name: _checked(name, kinds[name], value[name]) for name in kinds}
            return Calibration(**checked)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"no calibration: {type(error).__name__}: {error}") from error


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _checked(name: str, kind: str, value: Any) -> Any:
    if kind == "int":
        return int(value)
    if kind == "float":
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{name} is not finite")
        return number
    if kind == "str":
        return str(value)
    if kind.startswith("tuple"):
        return tuple(map(str, value))
    return {str(k): _checked(name, "float", v) for k, v in dict(value).items()}


def parse(text: str, where: str) -> tuple[Calibration, ...]:
    """The entries of a file's text; StoreError if it is none or a newer version's."""
    try:
        held = json.loads(text)
        version, entries = held["version"], held["entries"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{where} holds no calibrations: {error}") from error
    if version != VERSION:
        raise StoreError(f"{where} has version {version!r}, this kdsl reads {VERSION}")
    return tuple(Calibration.from_json(entry) for entry in entries)


def text(entries: tuple[Calibration, ...]) -> str:
    """A file's text, the same for the same entries in any order."""
    ordered = sorted(entries, key=lambda e: (e.op, e.unit, e.cc))
    held = {"version": VERSION, "entries": [e.to_json() for e in ordered]}
    return json.dumps(held, indent=1, sort_keys=True) + "\n"


def own_path() -> Path:
    """The user's file, beside the database; with a server's, in the user's data folder."""
    place = default_place()
    return place.with_name(FILE) if isinstance(place, Path) else data_folder() / FILE


def find(op: str, unit: str, cc: int, own: Path | None = None) -> Calibration | None:
    """The user's calibration for a compute capability, else the shipped one, else that of the
    nearest other one, else None."""
    path = own or own_path()
    entries = shipped()
    if path.exists():
        entries = (*parse(path.read_text(), str(path)), *entries)
    fitting = [e for e in entries if (e.op, e.unit) == (op, unit)]
    return min(fitting, key=lambda e: abs(e.cc - cc), default=None)


@cache
def shipped() -> tuple[Calibration, ...]:
    """What came with the library; read once a process."""
    try:
        place = files("kdsl.tuning_db").joinpath(FILE)
    except ModuleNotFoundError:
        return ()
    return parse(place.read_text(), FILE) if place.is_file() else ()


@dataclass(frozen=True)
class CostModel:
    """Predicts one tunable on one GPU, with the calibration that was found for them."""

    tunable: Tunable
    target: Target
    calibration: Calibration | None

    @staticmethod
    def of(tunable: Tunable, target: Target, own: Path | None = None) -> CostModel:
        """With the calibration of `find`."""
        unit = tunable.work(tunable.default(target), target).unit
        return CostModel(tunable, target, find(tunable.op, unit, target.cc, own))

    @property
    def calibrated(self) -> bool:
        """Whether cards of this compute capability were measured."""
        return self.calibration is not None and self.calibration.knows(self.target)

    def __call__(self, params: Mapping[str, Any], figures: Figures = UNCOMPILED) -> Prediction:
        """The time of a configuration."""
        work = self.tunable.work(params, self.target)
        return predict(params, work, self.target, figures, self.calibration)
