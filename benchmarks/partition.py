"""``python -m benchmarks partition``: how even plans are, how long planning takes, what they save.

No GPU: masks are made up from seeds, times are simulated with assumed links (`kdsl.parallel`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from kdsl import targets
from kdsl.parallel import families, metrics, partition
from kdsl.parallel.chooser import ByGain, ByRatio, Planner, ranked
from kdsl.parallel.cost import Costs
from kdsl.parallel.dbsp import dbsp
from kdsl.parallel.drift import Drift, replay
from kdsl.parallel.mesh import Mesh
from kdsl.parallel.plan import Plan
from kdsl.parallel.split import chopped, split, wrapped
from kdsl.parallel.topology import presets
from kdsl.parallel.work import BlockWork, Shape
from kdsl.specs import Attention

ROWS, BLOCK = 1184, 64
"""Wan2.1-14B at 720p in blocks of 64, filled up to a multiple of eight."""
WORLDS = (2, 4, 8, 16, 32, 64)
HEADS = (12, 24, 30, 40, 48, 56)
SKEWS = ((0.41, 0.55), (0.1, 0.9), (0.7, 0.3))
"""Mean density and coefficient of variation over heads."""


def counts(heads: int, density: float, spread: float, seed: int) -> BlockWork:
    """Row counts of heads whose densities follow a gamma distribution; rows differ up to threefold
    within a head."""
    rng = np.random.default_rng(seed)
    share = rng.gamma(1 / spread**2, density * spread**2, (heads, 1))
    row = np.clip(share * ROWS * rng.uniform(0.5, 1.5, (heads, ROWS)), 1, ROWS)
    tokens = ROWS * BLOCK
    return BlockWork(Shape(heads, heads, tokens, tokens, (BLOCK, BLOCK)), row.astype(np.int64))


PLANNERS: dict[str, Callable[[BlockWork, int], Plan]] = {
    "plain ulysses": lambda work, world: families.plain(work, Mesh(world)),
    "snake": lambda work, world: families.ulysses(
        work, world, owner=partition.snake(work.heads, world)
    ),
    "db-SP heads": lambda work, world: dbsp(work, Mesh(world)),
    "whole heads": families.ulysses,
    "split heads": split,
    "equal pieces": chopped,
    "wrap-around": wrapped,
    "uneven rows": lambda work, world: families.rows(work, Mesh(1, world)),
}


def ratios() -> Iterator[str]:
    """The largest rank ratio of each planner over heads and skews, by ranks."""
    yield f"rank ratio, worst of {len(HEADS)} head counts and {len(SKEWS)} skews, {ROWS} rows"
    yield f"{'':15}" + "".join(f"{f'P={p}':>9}" for p in WORLDS)
    works = [
        counts(heads, density, spread, seed)
        for heads in HEADS
        for seed, (density, spread) in enumerate(SKEWS)
    ]
    for name, make in PLANNERS.items():
        worst = [max(metrics.rank_ratio(make(w, p).loads(w)) for w in works) for p in WORLDS]
        yield f"{name:15}" + "".join(f"{r:9.4f}" for r in worst)


def times() -> Iterator[str]:
    """Median milliseconds from row counts to a plan, and for the sets of needed keys apart."""
    yield f"planning, ms a layer, 40 heads x {ROWS} rows (median of 50)"
    yield f"{'':15}" + "".join(f"{f'P={p}':>9}" for p in WORLDS)
    work = counts(40, *SKEWS[0], seed=0)
    for name, make in PLANNERS.items():
        row = [_median(lambda make=make, p=p: make(_fresh(work), p)) for p in WORLDS]
        yield f"{name:15}" + "".join(f"{ms:9.3f}" for ms in row)
    known = next(Drift(Shape(40, 40, 592 * 64, 592 * 64, (64, 64)), 1).works())
    _ = known.bits
    for world in (8, 64):
        plan = families.rows(known, Mesh(1, world))
        ms = _median(lambda plan=plan: plan_keys(plan, known), 3)
        yield f"needed keys of all ranks, 40 heads x 592 rows, P={world}: {ms:.1f} ms"


def plan_keys(plan: Plan, work: BlockWork) -> int:
    """Sets of needed keys of every rank; their number."""
    wanted = replace(plan, delivery="needed")
    return sum(len(wanted.keys_of(rank, work)) for rank in range(plan.world))


@dataclass(frozen=True)
class Model:
    """A model's attention in blocks of 128: heads, blocks a row."""

    name: str
    heads: int
    rows: int


MODELS = (Model("wan2.1-14b-720p", 40, 591), Model("cogvideox1.5-5b", 48, 350))


def simulated(worlds: tuple[int, ...] = (8, 16, 64)) -> Iterator[str]:
    """Simulated attention of each model: ours against the best plain layout and db-SP's best."""
    yield "simulated attention, us (assumed links and kernel rates, not measured)"
    for model in MODELS:
        tokens = model.rows * 128
        spec = Attention(tokens=tokens, heads=model.heads, head_dim=128)
        for density, spread in ((0.41, 0.55), (0.1, 0.9)):
            drift = Drift(Shape.of(spec), 1, density, spread)
            work = next(drift.works())
            for world in worlds:
                for name, topology in presets(world).items():
                    costs = Costs.of(spec, targets.get("h100"), topology)
                    found = ranked(work, costs)
                    plain = next(c for c in found if "plain" in c.name)
                    theirs = next(c for c in found if c.plan.family == "dbsp")
                    mean = work.total / world * costs.kernel.block_us
                    yield (
                        f"{model.name:16} d={density:4.2f} P={world:2} {name:10} even {mean:7.0f} "
                        f"plain {plain.us:7.0f} db-SP {theirs.us:7.0f} ours {found[0].us:7.0f} "
                        f"({found[0].name}, {found[0].chunks} chunks)"
                    )


def drifts() -> Iterator[str]:
    """Plans made in 50 drifting steps and the mean step, by re-planning rule."""
    yield "50 denoising steps of a drifting mask, 12 heads x 118 rows, 8 ranks"
    spec = Attention(tokens=118 * 128, heads=12, head_dim=128)
    costs = Costs.of(spec, targets.get("h100"), presets(8)["nvlink"])
    for rate in (0.005, 0.02, 0.1):
        drift = Drift(Shape.of(spec), 50, 0.3, 0.55, rate)
        for name, planner in (
            ("static", Planner(costs, "static")),
            ("ratio 1.10", Planner(costs, policy=ByRatio())),
            ("gain", Planner(costs, policy=ByGain(change_us=100.0))),
            ("gain, lagged", Planner(costs, "lagged", ByGain(change_us=100.0))),
        ):
            made = replay(drift, planner)
            yield f"rate {rate:5.3f} {name:13} {made.plans:3} plans, {made.mean_us:7.1f} us a step"


def suite() -> Iterator[str]:
    """Lines of the whole report."""
    for part in (ratios, times, drifts, simulated):
        yield from part()
        yield ""


def _fresh(work: BlockWork) -> BlockWork:
    """The same work with nothing computed from it yet."""
    return BlockWork(work.shape, work.rows)


def _median(call: Callable[[], object], times: int = 50) -> float:
    took = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        took.append(time.perf_counter() - begin)
    return float(np.median(took)) * 1e3
