"""Kernel and link weights that were fitted to measurements, kept beside the tuning database.

One file of entries, as `kdsl.runtime.calibration` keeps its own: the fitted figures alone, with the
number of samples and the error they came with.  What is not in it comes from data sheets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from kdsl.errors import StoreError
from kdsl.parallel.cost import Costs, Handling, KernelModel
from kdsl.parallel.topology import Link
from kdsl.runtime.calibration import own_path
from kdsl.specs import Partition
from kdsl.targets import Target

FILE = "partition_costs.json"
VERSION = 1
BETWEEN = "network"
"""Name of the link between nodes; those inside are `kdsl.specs.LINKS`."""


@dataclass(frozen=True)
class KernelEntry:
    """A fitted kernel model and what it holds for; ``error`` is `Fitted.error`."""

    cc: int
    dtype: str
    head_dim: int
    block: tuple[int, int]
    batch: int
    model: KernelModel
    error: float
    samples: int


@dataclass(frozen=True)
class LinkEntry:
    """A fitted link by name, between GPUs of one model."""

    gpu: str
    name: str
    link: Link
    samples: int


@dataclass(frozen=True)
class HandlingEntry:
    """What calls take beside kernels and links on GPUs of one model, and how far passes overlap."""

    gpu: str
    dtype: str
    head_dim: int
    batch: int
    handling: Handling
    slowdown: float
    hidden: float
    samples: int


Entry = KernelEntry | LinkEntry | HandlingEntry


def place() -> Path:
    """The user's file, beside the database."""
    return own_path().with_name(FILE)


def save(entries: Sequence[Entry], path: Path | None = None) -> None:
    """Write entries over those for the same thing; others stay."""
    path = path or place()
    held = {_subject(e): e for e in (*load(path), *entries)}
    rows = [{"kind": type(e).__name__, **asdict(e)} for _, e in sorted(held.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    text = json.dumps({"version": VERSION, "entries": rows}, indent=1, sort_keys=True)
    fresh.write_text(text + "\n")
    fresh.replace(path)


def load(path: Path | None = None) -> tuple[Entry, ...]:
    """All entries; none where there is no file.  StoreError for a file that is none."""
    path = path or place()
    if not path.exists():
        return ()
    try:
        text = path.read_text()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    return _read(text, str(path))


def _read(text: str, where: str) -> tuple[Entry, ...]:
    """The entries of a file's text; StoreError for another's."""
    try:
        held = json.loads(text)
        if held["version"] != VERSION:
            raise StoreError(f"{where} has version {held['version']!r}, this kdsl reads {VERSION}")
        return tuple(_entry(row) for row in held["entries"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{where} holds no fitted costs: {error}") from error


def shipped() -> tuple[Entry, ...]:
    """The entries that come with kdsl, if any do; the user's own take their place."""
    try:
        place = files("kdsl.tuning_db").joinpath(FILE)
    except ModuleNotFoundError:
        return ()
    return _read(place.read_text(), FILE) if place.is_file() else ()


def fitted(
    costs: Costs, spec: Partition, target: Target, batch: int = 1, path: Path | None = None
) -> Costs:
    """Costs with what was fitted in place of what data sheets say."""
    attention, topology = spec.attention, costs.topology
    wanted = ("kernel", target.cc, spec.dtype, spec.head_dim, attention.block, batch)
    held = {_subject(e): e for e in (*(shipped() if path is None else ()), *load(path))}
    for entry in held.values():
        if isinstance(entry, KernelEntry):
            if _subject(entry) == repr(wanted):
                costs = replace(costs, kernel=entry.model)
        elif isinstance(entry, HandlingEntry):
            if _subject(entry) == repr(("handling", target.name, *wanted[2:4], batch)):
                costs = replace(
                    costs,
                    handling=entry.handling,
                    slowdown=entry.slowdown,
                    hidden=entry.hidden,
                )
        elif (entry.gpu, entry.name) == (target.name, spec.link):
            topology = replace(topology, inside=entry.link)
        elif (entry.gpu, entry.name) == (target.name, BETWEEN):
            topology = replace(topology, between=entry.link)
    return replace(costs, topology=topology)


def _subject(entry: Entry) -> str:
    if isinstance(entry, KernelEntry):
        what = (entry.cc, entry.dtype, entry.head_dim, entry.block, entry.batch)
        return repr(("kernel", *what))
    if isinstance(entry, HandlingEntry):
        return repr(("handling", entry.gpu, entry.dtype, entry.head_dim, entry.batch))
    return repr(("link", entry.gpu, entry.name))


def _entry(row: dict[str, Any]) -> Entry:
    fields = {name: value for name, value in row.items() if name != "kind"}
    if row["kind"] == "KernelEntry":
        model = KernelModel(**fields.pop("model"))
        return KernelEntry(block=tuple(fields.pop("block")), model=model, **fields)
    if row["kind"] == "LinkEntry":
        return LinkEntry(link=Link(**fields.pop("link")), **fields)
    if row["kind"] == "HandlingEntry":
        return HandlingEntry(handling=Handling(**fields.pop("handling")), **fields)
    raise ValueError(f"an entry of kind {row['kind']!r}")
