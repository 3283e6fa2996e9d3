"""Plans: what a calibration found for one model, as one file.

A plan is arrays with named axes and a header that says what they are for.  It is a safetensors file
whose metadata holds the header as JSON under ``"kdsl"``; any safetensors reader can open it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import SpecError, StoreError, reading
from kdsl.grid import Grid
from kdsl.specs.common import canonical, optional

KINDS = ("attention", "quantization", "partition")
"""Masks and orders by head, layer and step; quantization recipes; degrees over ranks."""

VERSION = 1
"""Version of the format that this code writes, the newest that it reads."""

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32")

NAME = re.compile(r"[a-z][a-z0-9_.]{0,63}")
ORDER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.(), -]{0,127}")


@dataclass(frozen=True)
class Payload:
    """One array with a name for each axis, such as ``("layers", "heads", "rows", "bytes")``."""

    axes: tuple[str, ...]
    values: npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Plan:
    """Calibrated arrays for one model, and what they mean.

    Axes of one name have one length throughout.  ``orders`` names the token orders that arrays
    choose from by position, so that a file never depends on numbering in code; ``steps`` are the
    inclusive ranges of sampling steps that an axis called ``"steps"`` runs over; ``thresholds`` the
    numbers the search used.  ``provenance`` is any JSON: data, seeds, commands, versions, dates.
    """

    kind: str
    model: str
    payload: Mapping[str, Payload]
    grid: Grid | None = None
    orders: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[tuple[int, int], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION
    layers: tuple[Mapping[str, Any], ...] = ()
    """JSON about each layer, where arrays belong to layers of different sizes."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpecError(f"plan kind {self.kind!r}", hint=" or ".join(map(repr, KINDS)))
        if self.version != VERSION:
            raise SpecError(f"plan version {self.version!r}", hint=str(VERSION))
        if not isinstance(self.model, str) or not self.model:
            raise SpecError(f"model={self.model!r}", hint="the name of the model it was made for")
        for name in self.orders:
            if not isinstance(name, str) or not ORDER_NAME.fullmatch(name):
                raise SpecError(f"order name {name!r}", hint='names such as "FHW"')
        for first, last in self.steps:
            if not 0 <= first <= last:
                raise SpecError(f"steps {first} to {last}", hint="inclusive ranges from 0")
        object.__setattr__(self, "payload", _checked(self.payload, len(self.steps)))
        try:
            canonical(self.header)
        except (TypeError, ValueError) as error:
            raise SpecError(
                "a plan's header holds what JSON does not", hint="text, lists, finite numbers"
            ) from error

    @property
    def header(self) -> dict[str, Any]:
        """Everything but the values of the arrays, as JSON."""
        layers = {"layers": [dict(one) for one in self.layers]} if self.layers else {}
        return layers | {
            "kind": self.kind,
            "version": self.version,
            "model": self.model,
            "grid": self.grid.to_json() if self.grid else None,
            "orders": list(self.orders),
            "thresholds": dict(self.thresholds),
            "steps": [list(s) for s in self.steps],
            "provenance": dict(self.provenance),
            "arrays": {
                name: {
                    "axes": list(p.axes),
                    "shape": list(p.values.shape),
                    "dtype": p.values.dtype.name,
                }
                for name, p in self.payload.items()
            },
        }

    @property
    def fingerprint(self) -> str:
        """Identity of header and values."""
        found = sha256(canonical(self.header).encode())
        for name in sorted(self.payload):
            found.update(self.payload[name].values.tobytes())
        return found.hexdigest()[:32]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Values of an array by name (read-only)."""
        if name not in self.payload:
            raise SpecError(f"plan has no array {name!r}", hint=", ".join(sorted(self.payload)))
        return self.payload[name].values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan; a reader sees the old file or the whole new one, never a part.

        StoreError where the place cannot be written, and nothing is left behind.
        """
        save = _safetensors(path).save
        arrays = {name: p.values for name, p in self.payload.items()}
        data = save(arrays, metadata={"kdsl": canonical(self.header)})
        _replace(Path(path), data)


def load(path: str | os.PathLike[str], kind: str | None = None) -> Plan:
    """The plan in a file; StoreError where it is no plan, a newer one, or not of this ``kind``."""
    _safetensors(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("kdsl")
            if text is None:
                raise StoreError("no plan: the file has no kdsl header", where=str(path))
            header = _header(text, path)
            arrays = {name: _own(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StoreError(f"the plan cannot be read: {error}", where=str(path)) from error
    if kind is not None and header["kind"] != kind:
        raise StoreError(f"a plan for {header['kind']!r}, not for {kind!r}", where=str(path))
    try:
        return _assemble(header, arrays)
    except SpecError as error:
        raise StoreError(error.what, where=str(path), hint=error.hint) from error


def _header(text: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        header = json.loads(text)
        kind, version = header["kind"], header["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"the plan's header is damaged: {error!r}", where=str(path)) from error
    if version != VERSION:
        raise StoreError(
            f"a plan of format {version!r}, this library reads {VERSION}",
            where=str(path),
            hint="a newer kdsl" if isinstance(version, int) and version > VERSION else "",
        )
    if kind not in KINDS:
        raise StoreError(
            f"a plan for {kind!r}", where=str(path), hint=" or ".join(map(repr, KINDS))
        )
    return dict(header)


FIELDS = (
    *("kind", "version", "model", "grid", "orders", "thresholds", "steps", "provenance"),
    "arrays",
)


@reading("plan")
def _assemble(header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Plan:
    unknown = sorted((set(header) - {"layers"}) ^ set(FIELDS))
    if unknown:
        raise SpecError(f"header fields missing or unknown: {', '.join(unknown)}")
    told = header["arrays"]
    if set(told) != set(arrays):
        odd = ", ".join(sorted(set(told) ^ set(arrays)))
        raise SpecError(f"the header and the file hold different arrays: {odd}")
    for name, values in arrays.items():
        found = [list(values.shape), values.dtype.name]
        if found != [told[name]["shape"], told[name]["dtype"]]:
            raise SpecError(f"array {name!r} is {found[1]} {found[0]}, its header differs")
    return Plan(
        kind=header["kind"],
        model=header["model"],
        payload={n: Payload(tuple(told[n]["axes"]), values) for n, values in arrays.items()},
        grid=optional(Grid.from_json)(header["grid"]),
        orders=tuple(header["orders"]),
        thresholds=dict(header["thresholds"]),
        steps=tuple((int(a), int(b)) for a, b in header["steps"]),
        provenance=dict(header["provenance"]),
        layers=tuple(dict(one) for one in header.get("layers", ())),
    )


def _checked(payload: Mapping[str, Payload], steps: int) -> dict[str, Payload]:
    """Read-only arrays, sorted by name; SpecError where names, dtypes or axes do not fit."""
    sizes: dict[str, int] = {"steps": steps} if steps else {}
    out = {}
    for name in sorted(payload):
        values = _own(payload[name].values)
        axes = tuple(payload[name].axes)
        for each in (name, *axes):
            if not NAME.fullmatch(each):
                raise SpecError(f"name {each!r} in a plan", hint='lower case, such as "rows"')
        if values.dtype.name not in DTYPES:
            raise SpecError(f"array {name!r} of {values.dtype}", hint=", ".join(DTYPES))
        if len(axes) != values.ndim or len(set(axes)) != len(axes):
            raise SpecError(f"array {name!r} of shape {values.shape} has axes {axes}")
        for axis, size in zip(axes, values.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise SpecError(
                    f"axis {axis!r} of array {name!r} has {size} entries, elsewhere {sizes[axis]}"
                )
        out[name] = Payload(axes, values)
    return out


def _own(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array that nobody writes to: a copy of one that somebody could (plans have gigabytes)."""
    held = values if not values.flags.writeable else np.array(values, order="C")
    held = np.ascontiguousarray(held) if held.ndim else held
    held.setflags(write=False)
    return held


def _safetensors(path: str | os.PathLike[str]) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise StoreError(
            "plans are safetensors files, and safetensors is not installed",
            where=str(path),
            hint="pip install safetensors",
        ) from error
    return safetensors.numpy


def _replace(path: Path, data: bytes) -> None:
    """Write a file at once: under another name beside it, then renamed."""
    held = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with held.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        held.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            held.unlink()
        raise StoreError(f"the plan cannot be written: {error}", where=str(path)) from error
