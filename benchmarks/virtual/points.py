"""One attention over some ranks: the plans beside each other, sampled shards timed, and what
follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from benchmarks.virtual.cases import Point
from benchmarks.virtual.shards import Bench, Shard, Timer
from kdsl.parallel import families, metrics, partition
from kdsl.parallel.chooser import candidates
from kdsl.parallel.cost import Costs, kernel_us, simulate
from kdsl.parallel.mesh import Mesh
from kdsl.parallel.pieces import Masks
from kdsl.parallel.plan import Plan
from kdsl.parallel.topology import Floats, Link
from kdsl.parallel.work import BlockWork

RATES = (0.5, 1.0, 2.0)
"""Links at these multiples of their rate: how much the modelled network matters."""
RANKS, STEPS = 3, 4
"""Ranks of a plan that are timed, and steps of a ring of each; all where there are no more."""
UNEVEN = 1.05
"""Timeline ratio of a baseline from which on balance has something to gain."""
OURS = {"ulysses": "A whole heads", "split": "B split heads", "rows": "C rows", "mesh": "D ring"}


@dataclass(frozen=True, eq=False)
class Candidate:
    """A plan that is compared: ours, or a baseline."""

    name: str
    plan: Plan
    ours: bool
    predicted_us: float


@dataclass(frozen=True)
class Timed:
    """A plan with its times: ``us`` by multiple of the links' rate, from measured kernels.

    ``errors`` are those of the kernel model on the shards that were timed, ``even_us`` the time if
    all ranks' kernels took their mean, ``kernel_us`` the slowest rank's kernels, ``wrong`` the
    largest error of an output.  ``megabytes``: mean and most that come to a rank.
    """

    name: str
    plan: str
    ours: bool
    predicted_us: float
    us: Mapping[str, float]
    even_us: float
    kernel_us: float
    ratio: float
    timeline_ratio: float
    megabytes: tuple[float, float]
    shards: int
    errors: tuple[float, ...]
    wrong: float

    @property
    def ms(self) -> float:
        """With links as they are taken to be."""
        return self.us["1.0"] / 1e3


def baselines(work: BlockWork, world: int) -> Iterator[tuple[str, Plan]]:
    """Plain Ulysses, plain ring and the meshes between, and the snake."""
    yield "ulysses", families.plain(work, Mesh(world))
    owner = partition.snake(work.heads, world)
    yield "snake", families.ulysses(work, world, owner=owner)
    degrees = sorted({world // 2, world // 4, min(8, world)} - {0, 1, world}, reverse=True)
    for ulysses in degrees:
        if world % ulysses == 0:
            name = f"mesh {ulysses} x {world // ulysses}"
            yield name, families.plain(work, Mesh(ulysses, world // ulysses))
    yield "ring", families.plain(work, Mesh(1, world))


def compared(work: BlockWork, costs: Costs) -> list[Candidate]:
    """The baselines, db-SP's best and each family's best by the model, which is what is chosen
    among."""
    world = costs.topology.world
    named = {name: Candidate(name, plan, False, 0.0) for name, plan in baselines(work, world)}
    best: dict[str, Candidate] = {}
    for name, plan in candidates(work, costs):
        if "plain" in name:
            continue
        us = simulate(plan, work, costs).us
        group = OURS.get(plan.family, "db-SP")
        if group not in best or us < best[group].predicted_us:
            best[group] = Candidate(group, plan, group != "db-SP", us)
    named |= {
        group: replace(best[group], plan=best[group].plan)
        for group in (*OURS.values(), "db-SP")
        if group in best
    }
    return [
        replace(c, predicted_us=c.predicted_us or simulate(c.plan, work, costs).us)
        for c in named.values()
    ]


def sampled(plan: Plan, predicted: Floats) -> dict[int, list[int]]:
    """The ranks and steps of a plan to time: the fullest and the emptiest that has work, and others
    between them."""
    busy = np.flatnonzero(predicted.sum(axis=1) > 0)
    order = busy[np.argsort(-predicted[busy].sum(axis=1), kind="stable")]
    ranks = (
        order if len(order) <= RANKS else order[np.linspace(0, len(order) - 1, RANKS).astype(int)]
    )
    out = {}
    for rank in ranks.tolist():
        steps = np.flatnonzero(predicted[rank] > 0)
        if len(steps) > STEPS:
            by_size = steps[np.argsort(-predicted[rank, steps], kind="stable")]
            steps = by_size[np.linspace(0, len(by_size) - 1, STEPS).astype(int)]
        out[int(rank)] = sorted(steps.tolist())
    return out


def measured(
    point: Point, work: BlockWork, cut: Masks, bench: Bench, costs: Costs, timer: Timer
) -> list[Timed]:
    """Every plan of a point, its sampled shards built, checked and timed."""
    costs = replace(costs, topology=point.topology)
    found = compared(work, costs)
    models = {c.name: kernel_us(c.plan, work, costs) for c in found}
    shards: list[Shard] = []
    # Plans that several names stand for are timed once.
    first: dict[str, str] = {}
    for c in found:
        if c.plan.hash in first:
            continue
        first[c.plan.hash] = c.name
        shards += bench.shards(c.name, c.plan, work, cut, sampled(c.plan, models[c.name]))
    took = timer({shard.name: shard.run for shard in shards})
    by_plan: dict[str, list[tuple[Shard, float]]] = {}
    for shard in shards:
        by_plan.setdefault(shard.plan, []).append((shard, took[shard.name]))
    del shards
    return [
        _timed(c, work, costs, models[c.name], by_plan.get(first[c.plan.hash], [])) for c in found
    ]


def _timed(
    c: Candidate, work: BlockWork, costs: Costs, model: Floats, shards: list[tuple[Shard, float]]
) -> Timed:
    predicted = [sum(map(costs.kernel.us, shard.counts)) for shard, _ in shards]
    errors = [p / us - 1 for p, (_, us) in zip(predicted, shards, strict=True)]
    # What is not timed is predicted, in the proportion that the plan's timed shards are off.
    factor = median([us / p for p, (_, us) in zip(predicted, shards, strict=True)] or [1.0])
    kernels = model * factor
    for shard, us in shards:
        kernels[shard.rank, shard.step] = us
    even = np.broadcast_to(kernels.mean(axis=0, keepdims=True), kernels.shape)
    moved = costs.traffic(c.plan, work)
    near, far = costs.topology.inside, costs.topology.between
    us = {}
    for rate in RATES:
        links = (Link(link.alpha_us, link.bytes_per_us * rate) for link in (near, far))
        inside, between = links
        other = replace(costs, topology=replace(costs.topology, inside=inside, between=between))
        us[str(rate)] = simulate(c.plan, work, other, moved=moved, kernels=kernels).us
    mean, most = moved.copied(costs.line_bytes)
    return Timed(
        c.name, c.plan.hash, c.ours, c.predicted_us, us,
        simulate(c.plan, work, costs, moved=moved, kernels=even).us,
        float(kernels.sum(axis=1).max()),
        metrics.rank_ratio(c.plan.loads(work)),
        metrics.timeline_ratio(c.plan.cells(work), c.plan.mesh),
        (mean / 1e6, most / 1e6), len(shards), tuple(errors),
        max((shard.error for shard, _ in shards), default=0.0),
    )  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What a point says: who was chosen, how it compares with the baselines.

    ``recovered`` is the share of what perfect balance would gain over the best baseline that the
    choice gains; None where that baseline's timeline ratio is below 1.05.  ``loss`` is the choice
    over the best baseline (1: level), ``regret`` over the best plan of all.
    """

    chosen: str
    us: float
    best_baseline: str
    speedups: Mapping[str, float]
    recovered: float | None
    loss: float
    regret: float
    megabytes_saved: float


def verdict(plans: Sequence[Timed], rate: str = "1.0") -> Verdict:
    """The chooser takes the plan that its model puts first, the baselines among them."""
    chosen = min(plans, key=lambda t: t.predicted_us)
    rivals = [t for t in plans if not t.ours]
    best = min(rivals, key=lambda t: t.us[rate])
    recovered: float | None = None
    if best.timeline_ratio >= UNEVEN and best.us[rate] > best.even_us:
        recovered = (best.us[rate] - chosen.us[rate]) / (best.us[rate] - best.even_us)
    return Verdict(
        chosen.name,
        chosen.us[rate],
        best.name,
        {t.name: t.us[rate] / chosen.us[rate] for t in rivals},
        recovered,
        chosen.us[rate] / best.us[rate],
        chosen.us[rate] / min(t.us[rate] for t in plans) - 1,
        best.megabytes[0] - chosen.megabytes[0],
    )


def lines(case: str, plans: Sequence[Timed]) -> Iterator[str]:
    """A point's table."""
    found = verdict(plans)
    yield case
    for t in plans:
        name = t.name + (" <- chosen" if t.name == found.chosen else "")
        yield (
            f"  {name:24} {t.ms:9.3f} ms, kernels {t.kernel_us / 1e3:9.3f}  "
            f"chosen takes {found.us / t.ms / 1e3:6.3f} of it  rank {t.ratio:.3f}  "
            f"timeline {t.timeline_ratio:.3f}  {t.megabytes[0]:7.1f} MB ({t.megabytes[1]:.1f})  "
            f"{t.shards} shards"
        )


def row(case: str, t: Timed, chosen: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """A result: ``ms`` is the time of the slowest rank, kernels measured, network modelled."""
    impl = "kdsl" if t.name == chosen else f"kdsl/{t.name}" if t.ours else t.name
    held = {**asdict(t), "modelled": "network"}
    return {
        "suite": "virtual-ranks", "case": case, "impl": impl, "ms": round(t.ms, 5),
        "error": round(t.wrong, 6), "virtual": held, **about,
    }  # fmt: skip


def timed_of(row: Mapping[str, Any]) -> Timed:
    """What a row holds."""
    held = {name: value for name, value in row["virtual"].items() if name != "modelled"}
    return Timed(**{**held, "megabytes": tuple(held["megabytes"]), "errors": tuple(held["errors"])})
