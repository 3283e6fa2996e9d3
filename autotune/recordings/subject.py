"""From a workload's row back to the workload, with the values of its tables."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from kdsl import workloads
from kdsl.autotune.session import job as jobs
from kdsl.autotune.session.job import Job
from kdsl.errors import KdslError
from kdsl.runtime import keying
from kdsl.runtime.records import Run, Workload
from kdsl.runtime.tunables import tunable_for
from kdsl.specs import Spec, canonical, from_json


class Subjects:
    """Finds the job of a row.

    A spec without open tables says everything itself.  Values of tables are in no row: those of the
    catalogue are made again from the name and the density in a run's command, and taken if they
    have the row's statistics.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self._commands = [shlex.split(run.command) for run in runs if run.command]
        self._made: dict[tuple[str, float | None], Job] = {}

    def job(self, row: Workload) -> Job | None:
        """The workload, or None where the values of its tables cannot be had, or the operation is
        none of the spec's."""
        job = self._job(row)
        return job if job is not None and job.tunable.op == row.op else None

    def _job(self, row: Workload) -> Job | None:
        try:
            spec = from_json(json.loads(row.spec_json))
        except (KdslError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
        named = [w for w in workloads.CATALOGUE if w.spec == spec]
        batch = row.dims.get("batch", 1)
        if all(table.values is not None for table in spec.tables):
            name = named[0].name if named else described(row)
            return _with_batch(jobs.make(name, spec, {}), spec, batch)
        for workload in named:
            for density in (None, *self._densities):
                job = self._catalogue(workload.name, density)
                if _alike(keying.workload(job.tunable), row):
                    return _with_batch(job, spec, batch)
        return None

    @cached_property
    def _densities(self) -> tuple[float, ...]:
        found: dict[float, None] = {}
        for words in self._commands:
            for word, value in itertools.pairwise(words):
                if word == "--density":
                    found.setdefault(_number(value))
        return tuple(value for value in found if 0 < value <= 1)

    def _catalogue(self, name: str, density: float | None) -> Job:
        if (name, density) not in self._made:
            self._made[name, density] = jobs.from_catalogue(name, density)
        return self._made[name, density]


class Names:
    """What rows of workloads are called."""

    def __init__(self) -> None:
        self._known = {canonical(w.spec.to_json()): w for w in workloads.CATALOGUE}

    def catalogue(self, row: Workload) -> str:
        """The catalogue's name, or nothing."""
        found = self._known.get(row.spec_json)
        return found.name if found else ""

    def of(self, row: Workload) -> str:
        """The catalogue's name, with the density of a block plan that is not the catalogue's."""
        found = self._known.get(row.spec_json)
        density = row.mask_stats.get("density", 0.0)
        if found is None:
            return described(row)
        if not found.density or not density or 0.8 < density / found.density < 1.25:
            return found.name
        return jobs.named(found.name, round(density, 2))


def described(row: Workload) -> str:
    """A workload that is not in the catalogue."""
    sizes = row.dims
    parts = [str(sizes[name]) for name in ("heads", "queries", "keys", "head_dim") if name in sizes]
    density = row.mask_stats.get("density")
    said = f" at density {density:.2f}" if density is not None else ""
    return f"{row.op} {' x '.join(parts)}{said}"


def _alike(made: Workload, row: Workload) -> bool:
    """Whether masks and sizes agree; what else a row says may be another version's."""
    same = {k: v for k, v in made.dims.items() if k != "batch"}
    return made.mask_stats == row.mask_stats and same == {
        k: v for k, v in row.dims.items() if k != "batch"
    }


def _with_batch(job: Job, spec: Spec, batch: int) -> Job:
    if batch == 1:
        return job
    tables: dict[str, Any] = dict(job.tables)
    return Job(job.name, tunable_for(spec, tables, batch), tables)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
