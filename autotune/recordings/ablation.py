"""What mask statistics in the key are worth, from workloads of one size under different masks.

For each recording three answers are compared: its own best (what an exact hit gives), the best of
the other mask that is nearest by statistics (what the look-up takes on a miss), and the best of any
other mask of that size (what a key of sizes alone would hold, whichever mask was tuned first).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from kdsl.autotune.recordings.recording import Recording
from kdsl.autotune.search.space import Point
from kdsl.runtime.records.keys import buckets, distance, hard, soft_dims


@dataclass(frozen=True)
class Ablation:
    """Times over the best of a recording: 1 is its own best, which an exact hit is.

    ``nearest`` by mask statistics, at ``distance`` in octaves; ``mean`` and ``worst`` over all
    other masks of the size; ``default`` the built-in rule, None where it was not measured.
    ``same_bucket`` says that both masks share a key, so that only exact values tell them apart.
    """

    recording: Recording
    others: int
    nearest: float
    distance: float
    same_bucket: bool
    mean: float
    worst: float
    default: float | None


def ablate(found: Sequence[Recording]) -> list[Ablation]:
    """One line for each recording that has a sibling of equal sizes under another mask."""
    families: defaultdict[tuple[object, ...], list[Recording]] = defaultdict(list)
    for recording in found:
        workload = recording.key.workload
        sizes = tuple(sorted(soft_dims(workload).items()))
        family = (recording.key.device.id, tuple(sorted(hard(workload).items())), sizes)
        families[family].append(recording)
    return [
        _one(recording, [o for o in family if o is not recording])
        for family in families.values()
        if len(family) > 1
        for recording in family
    ]


def _one(recording: Recording, others: Sequence[Recording]) -> Ablation:
    workload = recording.key.workload
    near = min(others, key=lambda o: (distance(workload, o.key.workload), o.key.workload.id))
    costs = [_carried(other, recording) for other in others]
    return Ablation(
        recording,
        len(others),
        _carried(near, recording),
        distance(workload, near.key.workload),
        buckets(workload) == buckets(near.key.workload),
        math.exp(sum(map(math.log, costs)) / len(costs)),
        max(costs),
        recording.regret(recording.default),
    )


def _carried(giver: Recording, taker: Recording) -> float:
    """The giver's best that runs for the taker, as a time over the taker's own best."""
    ordered: list[Point] = sorted(giver.times, key=lambda at: (giver.times[at], at))
    best = next((at for at in ordered if at in taker.times), None)
    return taker.times[best] / taker.best_us if best is not None else math.inf
