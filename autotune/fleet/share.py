"""How a run is cut into shares, one workload for one GPU, and how results are put together.

Shares travel to other processes and machines, and results do not come back with them: each GPU
writes what it finds into the shared database at once. A share may be done twice, or stopped
anywhere and started again elsewhere: it goes on from the rows that are there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from kdsl.autotune.session.budget import Budget
from kdsl.autotune.session.job import Job
from kdsl.autotune.session.tuner import Tally
from kdsl.runtime.records import Place


@dataclass(frozen=True)
class Task:
    """What the shares of a run have in common. ``processes`` compile for each GPU."""

    gpu: str
    storage: Place = field(repr=False)  # it may hold a password
    study: str | None = field(repr=False)
    run_id: str
    processes: int
    record: bool = False


@dataclass(frozen=True)
class Share:
    """A workload for one GPU. ``number`` is the same when it is started again."""

    number: int
    name: str
    make: Callable[[], Job]
    budget: Budget
    seed: int


@dataclass(frozen=True)
class Failure:
    """Why a share was not done; ``lost`` says that its GPU can do no more."""

    what: str
    where: str = ""
    hint: str = ""
    lost: bool = False


def cut(
    jobs: Sequence[tuple[str, Callable[[], Job]]], gpus: int, budget: Budget, seed: int
) -> list[Share]:
    """A share for each workload; several of one workload where there are more GPUs than workloads.

    GPUs at one workload take part in one study. Time is dealt out evenly.
    """
    if not jobs:
        return []
    fold, rest = divmod(max(gpus, len(jobs)), len(jobs))
    repeats = [fold + (n < rest) for n in range(len(jobs))] if gpus > len(jobs) else [1] * len(jobs)
    total = sum(repeats)
    seconds = None if budget.seconds is None else budget.seconds * min(gpus / total, 1.0)
    shares: list[Share] = []
    for (name, make), times in zip(jobs, repeats, strict=True):
        for _ in range(times):
            number = len(shares)
            each = replace(budget, seconds=seconds)
            shares.append(Share(number, name, make, each, seed + number))
    return shares


class Gathered:
    """What has come of a run's shares so far."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self.shares = list(shares)
        self.failures: dict[int, Failure] = {}
        self._tallies: dict[int, Tally] = {}

    def put(self, share: Share, tally: Tally) -> None:
        """The latest of a share."""
        self._tallies[share.number] = tally

    @property
    def tallies(self) -> list[Tally]:
        """One for each workload that was begun, in their order."""
        found: dict[str, list[Tally]] = {}
        for share in self.shares:
            if share.number in self._tallies:
                found.setdefault(share.name, []).append(self._tallies[share.number])
        return [_joined(tallies) for tallies in found.values()]

    @property
    def counts(self) -> dict[str, int]:
        """New candidates by status, and the points that the static model refused."""
        total: Counter[str] = Counter()
        for tally in self._tallies.values():
            total.update(tally.fresh)
        for tally in self.tallies:
            total["illegal"] += tally.illegal
        return dict(total)


def _joined(tallies: Sequence[Tally]) -> Tally:
    """What several GPUs did for one workload: the fullest view, and what is new from all."""
    if len(tallies) == 1:
        return tallies[0]
    fullest = max(tallies, key=lambda t: (t.settled, len(t.outcomes)))
    fresh: Counter[str] = Counter()
    for tally in tallies:
        fresh.update(tally.fresh)
    known = max(len(fullest.outcomes) - fresh.total(), 0)
    return replace(
        fullest,
        fresh=fresh,
        known=known,
        exhausted=any(t.exhausted for t in tallies),
        seconds=max(t.seconds for t in tallies),
    )
