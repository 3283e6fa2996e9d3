"""What won on workloads and GPUs like this one: where a search starts.

Times are never carried over.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

from kdsl.autotune.search.space import Params, point
from kdsl.runtime.records import Key, Source, Trial, Workload, ranked
from kdsl.runtime.records.keys import distance, hard, same_device

NEAREST = 4
"""Workloads whose winners are looked at."""
OF_EACH = 2
"""Winners taken from a group of rows of one workload, GPU and toolchain."""
MOST = 6


def kin(
    key: Key, sources: Sequence[Source], legal: Callable[[Params], str | None], most: int = MOST
) -> list[Params]:
    """Measured winners that are legal here, nearest first: of this GPU before its siblings, of like
    workloads before others of the operation."""
    found: dict[tuple[tuple[str, object], ...], Params] = {}
    for group in _groups(key, sources):
        for standing in ranked(group)[:OF_EACH]:
            params = standing.trial.candidate.params
            if legal(params) is None:
                found.setdefault(point(params), dict(params))
    return list(found.values())[:most]


def _groups(key: Key, sources: Sequence[Source]) -> list[list[Trial]]:
    """Measured rows by workload, GPU and toolchain; nearest first."""
    known = {w.id: w for source in sources for w in source.workloads(key.workload.op)}
    nearest = sorted(known.values(), key=lambda w: (*_apart(key.workload, w), w.id))
    out = []
    for place, workload in enumerate(nearest[:NEAREST]):
        groups: defaultdict[tuple[str, str], dict[str, Trial]] = defaultdict(dict)
        for trial in (t for source in sources for t in source.trials(workload.id)):
            if trial.measurement.kind == "measured":
                row = trial.measurement.id
                groups[trial.device.id, trial.toolchain.id][row] = trial
        out += [(_strange(key, g), place, ids, g) for ids, g in groups.items()]
    return [list(group.values()) for *_, group in sorted(out, key=lambda item: item[:3])]


def _apart(a: Workload, b: Workload) -> tuple[int, float]:
    parts = set(hard(a).items()) ^ set(hard(b).items())
    away = distance(a, b)
    return len(parts), away if away < math.inf else 1e9


def _strange(key: Key, group: dict[str, Trial]) -> int:
    """0: the same GPU, 1: the same compute capability, 2: another one."""
    device = next(iter(group.values())).device
    if same_device(key.device, device):
        return 0
    return 1 if device.cc == key.device.cc else 2
