"""What is known near a key, in groups, and which groups a rung of the ladder may take."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from kdsl.runtime.records import keys
from kdsl.runtime.records.keys import Key
from kdsl.runtime.records.rows import Workload
from kdsl.runtime.records.select import Standing, Trial, ranked
from kdsl.runtime.records.sources import Source


@dataclass(frozen=True)
class Group:
    """The sound candidates of one key and kind, best first, beside the key that is wanted."""

    key: Key
    kind: str
    standings: Sequence[Standing]
    distance: float
    """Infinite if a hard part of the key differs."""
    same_key: bool
    changes: Sequence[tuple[str, str, str]]


def gather(wanted: Key, sources: Sequence[Source], limit: float) -> list[Group]:
    """The groups of every comparable workload within ``limit``, else of the nearest one there is.

    Nothing beyond the limit is of use but to explain a miss.
    """
    op, program = wanted.workload.op, wanted.workload.program
    condemned = {binary for source in sources for binary in source.condemned()}
    for among in (program, None):  # other programs are looked at only after a miss
        known = {w.id: w for source in sources for w in source.workloads(op, among)}
        found = _nearest(wanted, known.values(), sources, condemned, limit)
        if found:
            return found
    return []


def _nearest(
    wanted: Key,
    workloads: Collection[Workload],
    sources: Sequence[Source],
    condemned: Collection[str],
    limit: float,
) -> list[Group]:
    parts = set(keys.hard(wanted.workload).items())
    apart = {
        w.id: (len(parts ^ set(keys.hard(w).items())), keys.distance(wanted.workload, w), w.id)
        for w in workloads
    }
    found: list[Group] = []
    for workload in sorted(workloads, key=lambda w: apart[w.id]):
        differing, distance, _ = apart[workload.id]
        if found and (differing or distance > limit):
            break
        away = math.inf if differing else distance
        found += _of_workload(wanted, workload, sources, condemned, away)
    return found


def _of_workload(
    wanted: Key,
    workload: Workload,
    sources: Sequence[Source],
    condemned: Collection[str],
    distance: float,
) -> list[Group]:
    sets: defaultdict[tuple[str, str], dict[str, Trial]] = defaultdict(dict)
    for trial in (t for source in sources for t in source.trials(workload.id)):
        sets[trial.device.id, trial.toolchain.id][trial.measurement.id] = trial
    same_key = distance < math.inf and keys.buckets(wanted.workload) == keys.buckets(workload)
    found = []
    for trials in sets.values():
        one = next(iter(trials.values()))
        key = Key(workload, one.device, one.toolchain)
        for kind in ("measured", "predicted"):
            # What was measured to be wrong speaks against predictions, too.
            of_kind = [
                t
                for t in trials.values()
                if t.measurement.kind == kind or t.measurement.status == "wrong"
            ]
            standings = ranked(of_kind, condemned)
            if standings:
                changes = keys.changes(wanted, key)
                found.append(Group(key, kind, standings, distance, same_key, changes))
    return found


def on_rung(rung: str, groups: Iterable[Group], wanted: Key, space_hash: str) -> list[Group]:
    """The groups that a rung may take, nearest first; ``groups`` are within the limit."""
    kind = "predicted" if rung == "predicted" else "measured"
    fitting = [g for g in groups if g.kind == kind and _fits(rung, g, wanted)]
    if rung == "predicted" and space_hash:
        fitting = [replace(g, standings=_of_space(g, space_hash)) for g in fitting]

    def order(group: Group) -> tuple[float, ...]:
        first = len(group.changes) if rung == "soft" else group.distance
        apart = abs(group.key.device.sms - wanted.device.sms)
        return (first, group.distance, apart, len(group.changes))

    fitting = sorted((g for g in fitting if g.standings), key=lambda g: [p.id for p in g.key])
    if rung == "predicted":  # a newer calibration speaks first
        fitting.sort(key=lambda g: max(s.trial.measurement.created for s in g.standings))
        fitting.reverse()
    return sorted(fitting, key=order)


def _fits(rung: str, group: Group, wanted: Key) -> bool:
    same_device = keys.same_device(wanted.device, group.key.device)
    if rung == "same-cc":
        return not same_device
    if rung == "predicted":
        return same_device and (group.key.toolchain.template_hash == wanted.toolchain.template_hash)
    if rung == "nearest":
        return same_device and not group.same_key
    return same_device and group.same_key and bool(group.changes) == (rung == "soft")


def _of_space(group: Group, space_hash: str) -> list[Standing]:
    return [s for s in group.standings if s.trial.candidate.space_hash == space_hash]


def fence(nearest: Group, groups: Iterable[Group], wanted: Key) -> tuple[Group, Standing] | None:
    """The default, if it won on one side of the wanted size and something else on the other.

    Between two sizes that disagree the nearest row is a guess, and the default the safer one.
    """

    def side(group: Group) -> int:
        here, there = (
            math.prod(max(size, 1) for size in keys.soft_dims(key.workload).values())
            for key in (group.key, wanted)
        )
        return (here > there) - (here < there)

    across = next((g for g in groups if side(g) == -side(nearest) != 0), None)
    if across is None:
        return None
    bests = [(group, group.standings[0]) for group in (nearest, across)]
    if bests[0][1].trial.candidate.params == bests[1][1].trial.candidate.params:
        return None
    return next(((group, best) for group, best in bests if best.default), None)
