"""``python -m benchmarks sequence_parallel --virtual 2,4,8``: ranks one by one on one GPU.

Each rank's share is built, checked on sampled rows and timed, or a sample of them; only the network
is modelled.  Rows are kept point by point, so that the next run goes on where one ended.
Without a GPU a tiny model runs by the reference, which shows that it works.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rows
from benchmarks.virtual import layer, points, whole
from benchmarks.virtual.cases import MODELS, Model, Point, grid, kept, work_of
from benchmarks.virtual.fit import fitted
from benchmarks.virtual.shards import Bench, Timer, timer
from kdsl.parallel import calibration
from kdsl.parallel.cost import Costs
from kdsl.parallel.pieces import Masks
from kdsl.runtime.builder import device_target
from kdsl.targets import Target, get

SUITE = "virtual-ranks"
WHOLE, WIDEST = ("video", 0.3), 8
"""Where whole calls are run too, up to so many ranks: indices of larger rings take long to make."""


@dataclass(frozen=True)
class Asked:
    """What a run is to do.

    ``budget_s`` ends it before the next point; ``fit`` keeps the costs that it fits, also of models
    whose points are all there.
    """

    worlds: Sequence[int]
    models: Sequence[str]
    results: Path
    commit: str
    budget_s: float
    fit: bool = False


@dataclass(frozen=True)
class Fit:
    """A model's tensors on the device, its fitted costs, and the entries that say them."""

    bench: Bench
    costs: Costs
    entries: list[calibration.Entry]


@dataclass(frozen=True)
class Ready:
    """Models that are ready to run, made when they are first asked for."""

    device: Any
    target: Target
    clock: Timer
    held: dict[str, Fit]

    def of(self, model: Model) -> Fit:
        """One model."""
        if model.name not in self.held:
            bench = Bench(model, self.device)
            self.held[model.name] = Fit(bench, *fitted(model, bench, self.target, self.clock))
        return self.held[model.name]


def suite(asked: Asked, clock: Timer | None = None) -> Iterator[str]:
    """Lines of the report; rows are written as points end."""
    import torch

    gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    clock = clock or timer(device)
    card = torch.cuda.get_device_name() if gpu else "cpu"
    names = asked.models or (["cogvideox", "wan14b"] if gpu else ["tiny"])
    target = device_target() or get("h100")
    about = {
        "run": uuid.uuid4().hex[:12], "gpu": card, "commit": asked.commit,
        "sources": rows.sources_hash(), "versions": rows.versions(), "date": rows.today(),
    }  # fmt: skip
    place = asked.results / card.replace(" ", "-") / f"{SUITE}.jsonl"
    held = known(place, str(about["sources"]))
    begin, left, done = time.monotonic(), 0, dict(held)
    ready = Ready(device, target, clock, {})
    for name in names if asked.fit else ():
        calibration.save(ready.of(MODELS[name]).entries)
        yield f"{name}: {ready.of(MODELS[name]).costs} kept in {calibration.place()}"
    for model, mask, density in grid(names):
        todo = [Point(model, mask, density, world) for world in asked.worlds]
        missing = [point for point in todo if point.id not in held]
        found = work = cut = None
        for point in missing:
            if time.monotonic() - begin > asked.budget_s:
                left += 1
                continue
            if found is None or work is None or cut is None:
                found = kept(model, mask, density)
                work = work_of(model, found)
                cut = Masks(work)
            has = ready.of(model)
            plans = points.measured(point, work, cut, has.bench, has.costs, clock)
            more = {
                **about, "dtype": model.dtype, "unit": "flop",
                "work": 4.0 * model.head_dim * model.block**2 * work.total,
                "density": round(float(found.mean()), 6),
            }  # fmt: skip
            chosen = points.verdict(plans).chosen
            rows.append(
                [points.row(point.id, t, chosen, more) for t in plans], asked.results,
                card.replace(" ", "-"), SUITE,
            )  # fmt: skip
            done[point.id] = plans
            yield from points.lines(point.id, plans)
            if (mask, density) == WHOLE and point.world <= WIDEST:
                yield from whole.lines(point, work, has.bench, has.costs, clock)
    wanted = {
        point.id
        for point in (Point(*what, world) for what in grid(names) for world in asked.worlds)
    }
    done = {case: plans for case, plans in done.items() if case in wanted}
    yield ""
    yield from summary(done)
    yield ""
    yield from _layers(asked, names, done, device, clock)
    if left:
        yield f"{left} points are left: the same command goes on"


def known(place: Path, sources: str) -> dict[str, list[points.Timed]]:
    """Points of these sources that are there already."""
    out: dict[str, list[points.Timed]] = {}
    for row in rows.load(place.parent) if place.exists() else []:
        if row["suite"] == SUITE and row["sources"] == sources:
            out.setdefault(row["case"], []).append(points.timed_of(row))
    return out


def summary(done: Mapping[str, Sequence[points.Timed]]) -> Iterator[str]:
    """The table that db-SP prints, and what the goals are about: every case."""
    errors: list[float] = []
    yield (
        "attention, times of the chosen plan: over Ulysses, ring, the meshes, db-SP, snake; share "
        "of perfect balance recovered; over the best baseline; regret; MB a rank saved"
    )
    for case, plans in done.items():
        found = points.verdict(plans)
        errors += [abs(e) for t in plans for e in t.errors]
        said = "  ".join(f"{name} {gain:.3f}x" for name, gain in found.speedups.items())
        part = "-" if found.recovered is None else f"{found.recovered:.0%}"
        slow = " SLOWER" if found.loss > 1.03 else ""
        other = " ".join(f"{points.verdict(plans, str(r)).loss:.3f}" for r in points.RATES)
        yield (
            f"{case:34} {found.chosen:14} {said}  recovered {part}  of {found.best_baseline} "
            f"{found.loss:.3f} (links x {points.RATES}: {other}){slow}  regret {found.regret:.1%}  "
            f"{found.megabytes_saved:.1f} MB"
        )
    if errors:
        wide = np.asarray(errors)
        yield (
            f"kernel model on {len(wide)} timed shards that it was not fitted to: mean error "
            f"{wide.mean():.1%}, nine tenths within {np.quantile(wide, 0.9):.1%}"
        )


def _layers(
    asked: Asked,
    names: Sequence[str],
    done: Mapping[str, Sequence[points.Timed]],
    device: Any,
    clock: Timer,
) -> Iterator[str]:
    """Layers of the models at their first density."""
    yield "a layer and a denoising step; db-SP reports 1.25x end to end over plain layouts"
    for name in names:
        model: Model = MODELS[name]
        for world in asked.worlds:
            case = Point(model, "video", 0.3, world).id
            if case in done:
                rest = layer.rest_us(model, world, device, clock)
                yield from layer.lines(model, case, done[case], rest)
