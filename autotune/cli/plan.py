"""From a parsed command line to what is to be done."""

from __future__ import annotations

import argparse
import shlex
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdsl import targets, workloads
from kdsl.autotune.cli.arguments import Usage, default_jobs, tune_parser
from kdsl.autotune.session import job as jobs
from kdsl.autotune.session.budget import Budget
from kdsl.autotune.session.job import Job
from kdsl.autotune.store import Store
from kdsl.errors import KdslError
from kdsl.runtime.records import Place, Run, default_place
from kdsl.runtime.records.link import is_server
from kdsl.runtime.tunables import operations
from kdsl.specs import Partition, Spec
from kdsl.targets import Target

PROGRAM = ("python", "-m", "autotune")


@dataclass(frozen=True)
class Plan:
    """A command line, understood. ``jobs`` pairs names with what makes them."""

    target: Target
    jobs: tuple[tuple[str, Callable[[], Job]], ...]
    budget: Budget | None
    seed: int
    processes: int
    asked_processes: int | None
    """What the command line says of it."""
    storage: Place | None
    study: str | None
    ray: str | None
    require_device: bool
    world: int | None
    """Ranks that workloads are divided over, by simulation; None: kernels are tuned."""
    record: bool
    """Go through the whole space instead of searching."""
    words: tuple[str, ...]
    """The command line again, in one order, without the places of database, study and cluster."""

    @property
    def command(self) -> str:
        """The whole command."""
        return shlex.join([*PROGRAM, *self.words])


@contextmanager
def understanding() -> Iterator[None]:
    """Within it a fault is one of the command line."""
    try:
        yield
    except KdslError as error:
        raise Usage(error.what, where=error.where, hint=error.hint) from error


def understood(given: argparse.Namespace) -> Plan:
    """The plan of a parsed command line; Usage for unknown names and wrong budgets."""
    with understanding():
        if given.resume:
            given = _resumed(given)
        return _understood(given)


def _understood(given: argparse.Namespace) -> Plan:
    if given.gpu is None:
        raise Usage("--gpu is missing", hint="python -m autotune --gpu a100; --help lists them")
    if given.tables is not None and given.spec is None:
        raise Usage("--tables belongs to --spec", hint="--spec my.json --tables my.npz")
    if given.jobs is not None and given.jobs < 1:
        raise Usage(f"--jobs {given.jobs}", hint="1 or more")
    if given.ray is not None:
        place = default_place() if given.storage is None else given.storage
        for option, where in (("storage", place), ("study", given.study or place)):
            if not is_server(where):
                raise Usage(
                    f"--ray needs a --{option} that all machines of the cluster reach",
                    hint=f"--{option} postgresql://user@host/name",
                )
    target = targets.get(given.gpu)
    _check_world(given)
    todo: list[tuple[str, Callable[[], Job]]] = []
    direction = given.direction or "forward"
    if given.spec is not None:
        first = jobs.from_file(given.spec, given.tables)
        for op in _operations(first.tunable.spec, direction):
            again = partial(jobs.make, first.name, first.tunable.spec, first.tables, op)
            todo.append((jobs.titled(first.name, op), again))
    todo += _catalogue(given, direction)
    if not todo:
        raise Usage("there is nothing backward to tune about this", hint="--direction forward")
    return Plan(
        target=target,
        jobs=tuple(todo),
        budget=Budget.parse(given.budget) if given.budget is not None else None,
        seed=0 if given.seed is None else given.seed,
        processes=given.jobs or default_jobs(),
        asked_processes=given.jobs,
        storage=given.storage,
        study=given.study,
        ray=given.ray,
        require_device=given.require_device,
        world=given.world,
        record=given.record,
        words=tuple(_words(given)),
    )


def _check_world(given: argparse.Namespace) -> None:
    """Usage for options that say nothing of a division, or that need one."""
    if given.world is None:
        for option in ("node", "link", "drift"):
            if getattr(given, option) is not None:
                raise Usage(f"--{option} belongs to --world", hint="--world 8")
        return
    if given.world < 1:
        raise Usage(f"--world {given.world}", hint="1 or more")
    for option in ("spec", "direction", "ray", "require_device"):
        if getattr(given, option):
            name = option.replace("_", "-")
            raise Usage(f"--{name} says nothing of --world: times are simulated", hint="leave it")
    if given.drift is not None and not 0 < given.drift <= 1:
        raise Usage(f"--drift {given.drift:g}", hint="above 0 and at most 1")
    if given.node is not None and (given.node < 1 or given.world % given.node):
        raise Usage(f"--world {given.world} on nodes of {given.node}", hint="equal nodes")


def _operations(spec: Spec, direction: str) -> tuple[str, ...]:
    """Operations of a spec in a direction; the forward comes first."""
    found = ("partition",) if isinstance(spec, Partition) else operations(spec)
    return {"forward": found[:1], "backward": found[1:], "both": found}[direction]


def _catalogue(given: argparse.Namespace, direction: str) -> list[tuple[str, Callable[[], Job]]]:
    """Workloads at densities; without names all of them, or with densities those that have any."""
    densities: list[float | None] = list(dict.fromkeys(given.density or [None]))
    if given.workload:
        names = [workloads.get(name).name for name in dict.fromkeys(given.workload)]
    elif given.spec is not None:
        if given.density:
            raise Usage("--density belongs to workloads", hint="--workload NAME --density 0.1")
        names = []
    else:
        names = [w.name for w in workloads.CATALOGUE if w.density or not given.density]
    for name in names if given.density else ():
        for density in densities:
            workloads.get(name).mean_density(density)
    if given.world is not None:
        near = {
            "node": given.node,
            "link": given.link or "nvlink",
            "drift": given.drift or 0.0,
        }
        return [
            (
                jobs.over(jobs.named(name, density), given.world),
                partial(jobs.divided, name, density, given.world, **near),
            )
            for name in names
            for density in densities
        ]
    return [
        (
            jobs.titled(jobs.named(name, density), op),
            partial(jobs.from_catalogue, name, density, op),
        )
        for name in names
        for density in densities
        for op in _operations(workloads.get(name).spec, direction)
    ]


def _words(given: argparse.Namespace) -> list[str]:
    out = ["--gpu", given.gpu]
    for name in given.workload or ():
        out += ["--workload", name]
    for density in given.density or ():
        out += ["--density", f"{density:g}"]
    for option in ("spec", "tables"):
        path: Path | None = getattr(given, option)
        if path is not None:
            out += [f"--{option}", str(path)]
    for option in ("direction", "world", "node", "link", "drift", "budget", "seed", "jobs"):
        if getattr(given, option) is not None:
            out += [f"--{option}", str(getattr(given, option))]
    out += ["--record"] if given.record else []
    return [*out, "--require-device"] if given.require_device else out


def _resumed(given: argparse.Namespace) -> argparse.Namespace:
    """The command line of the last run that was cut off, with what is given now over it.

    Only this machine's runs, and of a GPU and its workloads the newest: one that went on from
    another replaces it.
    """
    with Store(given.storage) as store:
        here = store.pseudonym(socket.gethostname())
        runs = [row for row in store.rows() if isinstance(row, Run)]
    whole = {row.closes for row in runs if row.closes and row.complete}
    own = (row for row in runs if not (row.closes or row.part_of) and row.host == here)
    opened = sorted(own, key=lambda row: row.started)
    seen = set()
    for row in reversed(opened):
        words = shlex.split(row.command)
        if tuple(words[: len(PROGRAM)]) != PROGRAM:
            continue
        old = tune_parser().parse_args(words[len(PROGRAM) :])
        names = (tuple(old.workload or ()), tuple(old.density or ()), old.spec, old.record)
        what = (*names, old.world, old.node, old.link, old.drift)
        subject = (targets.get(old.gpu), old.direction, *what)
        if subject in seen or (given.gpu is not None and subject[0] != targets.get(given.gpu)):
            continue
        seen.add(subject)
        if row.id not in whole:
            return _over(old, given)
    if given.gpu is None:
        raise Usage("no run was cut off, so there is nothing to go on with", hint="--gpu NAME")
    return given


def _over(old: argparse.Namespace, given: argparse.Namespace) -> argparse.Namespace:
    """An older command line with the options that are given now."""
    for name, value in vars(given).items():
        if value not in (None, False):
            setattr(old, name, value)
    for name in ("spec", "tables"):
        path: Path | None = getattr(old, name)
        if path is not None:
            # Home folders are not written into rows.
            setattr(old, name, path.expanduser())
    return old
