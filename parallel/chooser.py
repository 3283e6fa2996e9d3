"""Which plan: every family at every degree by one cost model; when to keep the one there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from kdsl.errors import InputError
from kdsl.parallel import families, partition
from kdsl.parallel.cost import MB, Costs, most_chunks, simulate
from kdsl.parallel.dbsp import BONUS, REPLAN, dbsp
from kdsl.parallel.mesh import meshes
from kdsl.parallel.metrics import imbalance_ratio
from kdsl.parallel.plan import FAMILIES, Delivery, Family, Plan
from kdsl.parallel.split import chopped, in_nodes, split
from kdsl.parallel.work import BlockWork

Mode = Literal["static", "lagged", "exact"]
WEIGHTS = (0.0, 0.5, 1.0)
"""Byte weights that head splitting is tried with, in what a row of a head costs by the model."""


@dataclass(frozen=True)
class Choice:
    """A plan, in how many chunks its all-to-alls go, and what that takes by the model."""

    plan: Plan
    chunks: int
    us: float
    name: str = ""
    """How it was made, for people."""


def candidates(
    work: BlockWork,
    costs: Costs,
    *,
    among: Sequence[Family] = FAMILIES,
    tolerance: float = 0.005,
    weights: Sequence[float] = WEIGHTS,
    bonus: float = BONUS,
) -> Iterator[tuple[str, Plan]]:
    """Plans of some families at every degree of the ranks, with a name each.

    Rings and needed keys are among them where ``work`` knows its blocks.  Plain Ulysses x ring
    belongs to ``"mesh"`` and ``"ulysses"``.
    """
    world, known = costs.topology.world, work.blocks is not None
    deliveries: tuple[Delivery, ...] = ("all", "needed") if known else ("all",)
    if "ulysses" in among:
        yield "ulysses", families.ulysses(work, world)
        most = -(-work.shape.heads // world)
        owner = partition.lpt_swap(work.heads, world, most)
        yield "ulysses, equal counts", families.ulysses(work, world, owner=owner)
        yield "ulysses plain", families.plain(work, meshes(world)[0])
    if "split" in among:
        for name, made in _split(work, costs, tolerance, weights):
            for delivery in deliveries:
                yield f"{name}, {delivery} keys", replace(made, delivery=delivery)
    for mesh in meshes(world):
        size = f"{mesh.ulysses} x {mesh.ring}"
        if "rows" in among and mesh.ring > 1:
            made = families.rows(work, mesh)
            for delivery in deliveries:
                yield f"rows {size}, {delivery} keys", replace(made, delivery=delivery)
        if "mesh" in among and mesh.ring > 1 and known:
            yield f"mesh {size}", families.ring(work, mesh)
            yield f"mesh {size} plain", families.plain(work, mesh)
        if "dbsp" in among and (known or mesh.ring == 1):
            yield f"db-SP {size}", dbsp(work, mesh, bonus=bonus)


def _split(
    work: BlockWork, costs: Costs, tolerance: float, weights: Sequence[float]
) -> Iterator[tuple[str, Plan]]:
    """Ways to split heads: by work and bytes, in equal numbers of pieces, inside nodes."""
    world, node, unit = costs.topology.world, costs.topology.node, row_weight(work, costs)
    made = []
    for weight in weights:
        extra = weight * unit
        made.append((f"split, byte weight {weight:g}", split(
            work, world, tolerance=tolerance, byte_weight=extra
        )))  # fmt: skip
    least = -(-work.shape.heads // world)
    for each in (least, least + 1):
        for weight in weights[:: len(weights) - 1 or 1]:
            extra = weight * unit
            made.append((f"chopped, {each} a rank, byte weight {weight:g}", chopped(
                work, world, each=each, byte_weight=extra
            )))  # fmt: skip
    if node < world:
        made.append((f"split in nodes of {node}", in_nodes(work, world, node)))
    seen = set()
    for name, plan in made:
        if plan.ranks not in seen:
            seen.add(plan.ranks)
            yield name, plan


def row_weight(work: BlockWork, costs: Costs) -> float:
    """What a row of blocks of a head costs beside its kept blocks, in kept blocks: its kernels, and
    bringing and packing q, k, v and the result over the slower of the links."""
    model, topology = costs.kernel, costs.topology
    link = topology.inside if topology.node == topology.world else topology.between
    moved = 4 * work.shape.block[0] * costs.line_bytes
    us = model.row_us + moved * (1 / link.bytes_per_us + 2 * costs.handling.copy_us / MB)
    return us / model.block_us if model.block_us else 0.0


def ranked(
    work: BlockWork,
    costs: Costs,
    *,
    among: Sequence[Family] = FAMILIES,
    chunks: Sequence[int] = (1, 2, 4),
) -> list[Choice]:
    """Every candidate with its time, the fastest first; ties go to the one named first."""
    found = []
    for name, plan in candidates(work, costs, among=among):
        moved = costs.traffic(plan, work)
        for count in (c for c in chunks if c <= most_chunks(plan)):
            us = simulate(plan, work, costs, chunks=count, moved=moved).us
            found.append(Choice(replace(plan, predicted_us=us), count, us, name))
    if not found:
        raise InputError(f"no plan of families {tuple(among)}", hint=", ".join(FAMILIES))
    return sorted(found, key=lambda c: c.us)


def choose(work: BlockWork, costs: Costs) -> Choice:
    """The fastest candidate by the model."""
    return ranked(work, costs)[0]


class Replan(Protocol):
    """When to look for another plan."""

    def keep(self, held: Choice, work: BlockWork, costs: Costs) -> bool:
        """Whether a plan stays, before another one is looked for."""

    def take(self, held: Choice, found: Choice, now_us: float) -> bool:
        """Whether another plan that was found replaces it; ``now_us`` is what the old one takes."""


@dataclass(frozen=True)
class ByRatio:
    """db-SP's rule: a plan stays while its imbalance ratio is at most a threshold."""

    threshold: float = REPLAN

    def keep(self, held: Choice, work: BlockWork, costs: Costs) -> bool:
        """By the ratio alone."""
        del costs
        return imbalance_ratio(held.plan.cells(work)) <= self.threshold

    def take(self, held: Choice, found: Choice, now_us: float) -> bool:
        """Always."""
        del held, found, now_us
        return True


@dataclass(frozen=True)
class ByGain:
    """A plan is replaced where the predicted gain over its expected reuse pays for the change.

    ``reuse`` counts the attentions (steps) that a plan is expected to serve, ``change_us`` how
    long a change holds up the GPUs (index arrays are made beside them).  ``look`` is the fullest
    rank over the mean up to which nothing better is looked for, for nothing can be worth it.
    """

    reuse: int = 10
    change_us: float = 2_000.0
    look: float = 1.005

    def keep(self, held: Choice, work: BlockWork, costs: Costs) -> bool:
        """Where the kernels' own imbalance cannot pay for a change."""
        loads = held.plan.loads(work)
        excess = (float(loads.max()) - float(loads.mean())) * costs.kernel.block_us
        close = float(loads.max()) <= self.look * float(loads.mean())
        return close or excess * self.reuse <= self.change_us

    def take(self, held: Choice, found: Choice, now_us: float) -> bool:
        """Where it pays."""
        del held
        return (now_us - found.us) * self.reuse > self.change_us


@dataclass
class Planner:
    """Plans of one run: a layer and a denoising step after the other.

    ``"exact"`` plans on the counts of the step at hand; ``"lagged"`` on those of the step before,
    so that planning runs beside the GPU; ``"static"`` plans each layer once, on its first counts.
    ``find`` looks for a plan, by default among all families.
    """

    costs: Costs
    mode: Mode = "exact"
    policy: Replan = field(default_factory=ByGain)
    find: Callable[[BlockWork, Costs], Choice] = choose
    plans_made: int = 0
    """How often another plan came into use."""
    _held: dict[int, Choice] = field(default_factory=dict, repr=False)
    _before: dict[int, BlockWork] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in ("static", "lagged", "exact"):
            raise InputError(f"mode={self.mode!r}", hint="'static', 'lagged' or 'exact'")

    def plan(self, layer: int, work: BlockWork) -> Choice:
        """The plan for a layer's next attention, whose counts are ``work``."""
        held = self._held.get(layer)
        known = self._before.get(layer, work) if self.mode == "lagged" else work
        self._before[layer] = work
        if held is None or held.plan.shape != work.shape:
            return self._use(layer, self.find(work, self.costs))
        if self.mode == "static" or self.policy.keep(held, known, self.costs):
            return held
        found = self.find(known, self.costs)
        now = simulate(held.plan, known, self.costs, chunks=held.chunks).us
        if found.plan.hash == held.plan.hash or not self.policy.take(held, found, now):
            return held
        return self._use(layer, found)

    def _use(self, layer: int, found: Choice) -> Choice:
        self._held[layer] = found
        self.plans_made += 1
        return found
