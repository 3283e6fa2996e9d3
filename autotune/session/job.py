"""What there is to tune: a workload of the catalogue, or a spec from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl import workloads
from kdsl.errors import InputError
from kdsl.parallel.tunable import PartitionTunable
from kdsl.runtime.tunable import Tunable
from kdsl.runtime.tunables import tunable_for
from kdsl.specs import Partition, Spec, from_json

Tables = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Job:
    """A named tunable with the values of all its tables."""

    name: str
    tunable: Tunable = field(repr=False)
    tables: Tables = field(repr=False)


def from_catalogue(name: str, density: float | None = None, op: str = "") -> Job:
    """A workload of the catalogue with its sample tables; SpecError lists the known ones.

    ``density`` asks for another one than the catalogue's, where the mask is a block plan, ``op``
    for another operation than the spec's first.
    """
    workload = workloads.get(name)
    return make(named(name, density), workload.spec, workload.sample(density), op)


def named(name: str, density: float | None) -> str:
    """A workload's name, with the density if it is not the catalogue's."""
    return name if density is None else f"{name}@{density:g}"


def from_file(spec_path: Path, tables_path: Path | None = None, op: str = "") -> Job:
    """A spec from its canonical JSON, and arrays by table name from an ``.npz`` file."""
    try:
        spec = from_json(json.loads(spec_path.read_text()))
    except OSError as error:
        raise InputError(f"--spec {spec_path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"--spec {spec_path} is no spec: {type(error).__name__}: {error}",
            hint="a file written with json.dumps(spec.to_json())",
        ) from error
    tables: dict[str, npt.NDArray[Any]] = {}
    if tables_path is not None:
        try:
            with np.load(tables_path, allow_pickle=False) as held:
                tables = {name: held[name] for name in held.files}
        except (OSError, ValueError) as error:
            raise InputError(
                f"--tables {tables_path} cannot be read: {error}",
                hint="a file written with numpy.savez(path, name=array)",
            ) from error
    return make(spec_path.stem, spec, tables, op)


def make(name: str, spec: Spec, tables: Tables, op: str = "") -> Job:
    """A job of one of the spec's operations, the first unless given.

    InputError names the table whose values are missing.
    """
    values: dict[str, npt.NDArray[Any]] = {}
    for table in spec.tables:
        given = table.values if table.values is not None else tables.get(table.name)
        if given is None:
            raise InputError(
                f"{name}: table {table.name!r} has no values, and a kernel is tuned on real ones",
                where=repr(table),
                hint=f"--tables FILE.npz with an array {table.name!r} of shape {table.shape}",
            )
        values[table.name] = table.checked(given)
    if isinstance(spec, Partition):
        return Job(name, PartitionTunable(spec, values), values)
    return Job(titled(name, op), tunable_for(spec, values, op=op), values)


def divided(
    name: str,
    density: float | None,
    world: int,
    node: int | None = None,
    link: str = "nvlink",
    drift: float = 0.0,
) -> Job:
    """A workload of the catalogue over ``world`` ranks: how it is best divided, while such a share
    of its mask changes from step to step."""
    workload = workloads.get(name)
    spec = Partition(attention=workload.spec, world=world, node=node, link=link)
    job = make(over(named(name, density), world), spec, workload.sample(density))
    if not drift:
        return job
    return replace(job, tunable=PartitionTunable(spec, workload.sample(density), drift=drift))


def over(name: str, world: int) -> str:
    """A name that says over how many ranks."""
    return f"{name} on {world}"


def titled(name: str, op: str) -> str:
    """A name that says which operation of the workload it is; the first goes without saying."""
    _, found, part = op.partition("backward")
    return f"{name} backward{part.replace('_', ' ')}" if found else name
