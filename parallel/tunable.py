"""Partition as something to tune: families, degrees and their settings, over simulated time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.blocks import Blocks, from_maps
from kdsl.errors import ConfigError, UnsupportedError
from kdsl.parallel import families, partition
from kdsl.parallel.calibration import fitted
from kdsl.parallel.cost import Costs, most_chunks, simulate
from kdsl.parallel.dbsp import BONUS, REPLAN, dbsp
from kdsl.parallel.mesh import Mesh
from kdsl.parallel.metrics import imbalance_ratio
from kdsl.parallel.plan import Plan
from kdsl.parallel.split import chopped, in_nodes, split
from kdsl.parallel.timeline import Timeline
from kdsl.parallel.topology import Topology
from kdsl.parallel.work import BlockWork
from kdsl.runtime.tunable import Runner
from kdsl.specs import Partition
from kdsl.targets import Target
from kdsl.work import AheadOfTime, Work

SPACE: dict[str, tuple[Any, ...]] = {
    "family": ("ulysses", "equal", "split", "pieces", "nodes", "rows", "mesh", "dbsp", "plain"),
    "delivery": ("all", "needed", "ring"),
    "tolerance": (0.0, 0.005, 0.02, 0.05),
    "byte_weight": (0.0, 1.0, 8.0, 64.0),
    "more": (0, 1, 2),
    "bonus": (0.0, BONUS, 10.0),
    "chunks": (1, 2, 4),
}
"""Beside ``ulysses``, the degree: a divisor of the ranks; and ``replan``, where masks drift."""
THRESHOLDS = (1.02, 1.05, REPLAN, 1.2, 1.5)
"""Imbalance ratios up to which a plan stays (`ByRatio`)."""
NEUTRAL = {"tolerance": 0.005, "byte_weight": 0.0, "more": 0, "bonus": BONUS}
"""What a setting must be in families that it says nothing of."""
SETTINGS = {
    "split": ("tolerance", "byte_weight"),
    "pieces": ("byte_weight", "more"),
    "nodes": ("byte_weight",),
    "rows": ("tolerance",),
    "mesh": ("tolerance",),
}
WHOLE = ("ulysses", "equal", "split", "pieces", "nodes")
"""Families without a second degree."""
STEPS = 6
"""Denoising steps that a drifting mask is simulated over."""


@dataclass(frozen=True)
class Config:
    """How a partition is made: a family, its degrees, and what the family can be told.

    Families ``equal`` (whole heads, as many on each rank), ``pieces`` (`chopped`) and ``nodes``
    (`in_nodes`) are ways to make those of `kdsl.parallel.plan.FAMILIES`.  ``tolerance`` is the
    share above even work that is let pass (see `split`, ``slack`` of `rows` and `ring`),
    ``byte_weight`` that of the splits in kept blocks a row, ``more`` the pieces a rank beyond the
    least, ``bonus`` that of `dbsp`; ``chunks`` that of `simulate`, or as many as the plan's ranks
    have heads.  ``replan`` is the imbalance ratio up to which a plan is kept while masks drift.
    """

    family: str
    ulysses: int
    delivery: str = "all"
    tolerance: float = NEUTRAL["tolerance"]
    byte_weight: float = NEUTRAL["byte_weight"]
    more: int = 0
    bonus: float = NEUTRAL["bonus"]
    chunks: int = 1
    replan: float | None = None

    @staticmethod
    def from_json(params: Mapping[str, Any]) -> Config:
        """A configuration by its fields; ConfigError for others."""
        try:
            return Config(**params)
        except TypeError as error:
            raise ConfigError(f"no partition configuration: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """The fields; no threshold where there is none."""
        return {k: v for k, v in vars(self).items() if k != "replan" or v is not None}


class PartitionTunable:
    """One partition spec with the values of its attention's tables.

    ``costs`` are by default those fitted beside the database, else the data sheets'.  With
    ``drift`` above 0 such a share of the rows of blocks changes from one denoising step to the
    next, a plan that is kept serves other masks than its own, and times are means over steps, with
    ``change_us`` for each change of plan.
    """

    op = "partition"

    def __init__(
        self,
        spec: Partition,
        tables: Mapping[str, npt.NDArray[Any]] | None = None,
        batch: int = 1,
        costs: Costs | None = None,
        drift: float = 0.0,
        change_us: float = 2_000.0,
    ) -> None:
        self.spec, self.tables, self.batch, self.costs = spec, tables, batch, costs
        self.drift, self.change_us = drift, change_us

    @cached_property
    def blocks(self) -> Blocks:
        """Rows of blocks of the attention."""
        return self.spec.attention.rows(self.tables, self.batch)

    @cached_property
    def block_work(self) -> BlockWork:
        """What is divided."""
        attention = self.spec.attention
        return BlockWork.of(self.blocks, attention.heads, attention.group_heads)

    def costs_on(self, target: Target) -> Costs:
        """What plans are timed by."""
        spec = self.spec
        if self.costs is not None:
            return self.costs
        grid = spec.attention.query_grid
        text = (0, 0)
        if spec.replicated_text:
            at_start = grid.text_at == "start"
            first = 0 if at_start else grid.tokens - grid.text
            text = (first, first + grid.text)
        plain = Costs.of(spec.attention, target, Topology.of(spec), self.batch, text)
        return fitted(plain, spec, target, self.batch)

    def space(self, target: Target) -> dict[str, tuple[Any, ...]]:
        """Choices by name."""
        del target
        world = self.spec.world
        degrees = tuple(u for u in range(1, world + 1) if world % u == 0)
        thresholds = {"replan": THRESHOLDS} if self.drift else {}
        return {"ulysses": degrees, **SPACE, **thresholds}

    def legal(self, params: Mapping[str, Any], target: Target) -> str | None:
        """Why a configuration makes no plan, or makes the one that another makes too."""
        del target
        try:
            config = Config.from_json(params)
        except ConfigError as error:
            return str(error)
        world, family = self.spec.world, config.family
        if config.ulysses < 1 or world % config.ulysses:
            return f"ulysses={config.ulysses} does not divide {world} ranks"
        ring = world // config.ulysses
        if family in WHOLE and ring > 1:
            return f"family {family!r} has no ring: ulysses={world}"
        if family in ("rows", "mesh") and ring == 1 and world > 1:
            return f"family {family!r} has nothing to divide by rows: ulysses below {world}"
        rings = family == "mesh" or (family in ("dbsp", "plain") and ring > 1)
        if rings != (config.delivery == "ring"):
            return f"delivery {config.delivery!r} with family {family!r} on rings of {ring}"
        if config.delivery == "needed" and family not in ("split", "pieces", "nodes", "rows"):
            return "needed keys are for families that split heads, and for 'rows'"
        if family == "nodes" and self.spec.ranks_per_node in (1, world):
            return "family 'nodes' has nothing to keep apart: several nodes of several ranks"
        if (config.replan is None) == bool(self.drift):
            return "a threshold to plan anew belongs to masks that drift"
        if config.chunks > self.spec.attention.heads:
            return f"{config.chunks} chunks of fewer heads"
        if rings and config.chunks > 1:
            return "a ring overlaps its passes, not chunks"
        own = (*SETTINGS.get(family, ()), *(("bonus",) if family == "dbsp" and ring > 1 else ()))
        for name, value in NEUTRAL.items():
            if name not in own and getattr(config, name) != value:
                return f"{name} says nothing of family {family!r}: {value}"
        return None

    def default(self, target: Target) -> dict[str, Any]:
        """Whole heads where each rank has several, else heads that are split."""
        del target
        spec = self.spec
        many = spec.attention.heads >= 4 * spec.world
        replan = REPLAN if self.drift else None
        return Config("ulysses" if many else "split", spec.world, replan=replan).to_json()

    def written_default(self, target: Target) -> dict[str, Any]:
        """The same: no rows have changed it."""
        return self.default(target)

    def plan(self, params: Mapping[str, Any]) -> Plan:
        """The plan of a configuration."""
        return self._plan(Config.from_json(params), self.block_work)

    def _plan(self, config: Config, work: BlockWork) -> Plan:
        mesh = Mesh(config.ulysses, self.spec.world // config.ulysses)
        keys: Any = config.delivery
        if config.family == "ulysses":
            return families.ulysses(work, mesh.world)
        least = -(-work.shape.heads // mesh.world)
        if config.family == "equal":
            owner = partition.lpt_swap(work.heads, mesh.world, least)
            return families.ulysses(work, mesh.world, owner=owner)
        if config.family == "pieces":
            return chopped(
                work,
                mesh.world,
                each=least + config.more,
                byte_weight=config.byte_weight,
                delivery=keys,
            )
        if config.family == "nodes":
            node = self.spec.ranks_per_node
            return in_nodes(work, mesh.world, node, byte_weight=config.byte_weight, delivery=keys)
        if config.family == "split":
            return split(
                work,
                mesh.world,
                tolerance=config.tolerance,
                byte_weight=config.byte_weight,
                delivery=keys,
            )
        if config.family == "rows":
            return families.rows(work, mesh, delivery=keys, slack=config.tolerance)
        if config.family == "mesh":
            return families.ring(work, mesh, slack=config.tolerance)
        if config.family == "dbsp":
            return dbsp(work, mesh, bonus=config.bonus)
        if config.family == "plain":
            return families.plain(work, mesh)
        raise ConfigError(f"family={config.family!r}", hint=", ".join(SPACE["family"]))

    def simulate(self, params: Mapping[str, Any], target: Target) -> Timeline:
        """One attention by a configuration, on the mask that it is planned for."""
        plan = self.plan(params)
        chunks = min(Config.from_json(params).chunks, most_chunks(plan))
        return simulate(plan, self.block_work, self.costs_on(target), chunks=chunks)

    def predicted_us(self, params: Mapping[str, Any], target: Target) -> float:
        """What is tuned: the time of one attention, or its mean over the steps of a drift."""
        config = Config.from_json(params)
        if not self.drift or config.replan is None:
            return self.simulate(params, target).us
        costs, total = self.costs_on(target), 0.0
        plan: Plan | None = None
        for work in self.steps:
            if plan is None or imbalance_ratio(plan.cells(work)) > config.replan:
                total += 0.0 if plan is None else self.change_us
                plan = self._plan(config, work)
            chunks = min(config.chunks, most_chunks(plan))
            total += simulate(plan, work, costs, chunks=chunks).us
        return total / len(self.steps)

    @cached_property
    def steps(self) -> list[BlockWork]:
        """The mask of each step, seeded: between two, a share ``drift`` of each head's rows of
        blocks take other rows' columns, and of the heads each other's whole maps."""
        work, rng = self.block_work, np.random.default_rng(0)
        attention = self.spec.attention
        kept: npt.NDArray[np.bool_] = np.bitwise_or.reduce(self.blocks.kept(), axis=0)
        if len(kept) == 1:
            kept = np.repeat(kept, attention.heads, axis=0)
        out = [work]
        for _ in range(STEPS - 1):
            kept = kept.copy()
            for axis in (0, 1):
                moved = np.flatnonzero(rng.random(kept.shape[axis]) < self.drift)
                other = rng.permutation(moved)
                if axis == 0:
                    kept[moved] = kept[other]
                else:
                    kept[:, moved] = kept[:, other]
            size = (work.shape.block, work.shape.queries, work.shape.keys)
            made = from_maps(kept, None, *size)
            out.append(BlockWork.of(made, attention.heads, attention.group_heads))
        return out

    def facts(self, target: Target) -> Mapping[str, Any]:
        """What a rule may ask."""
        return {"cc": target.cc, "dtype": self.spec.dtype, **self.sizes(), **self.statistics()}

    def work(self, params: Mapping[str, Any], target: Target) -> Work:
        """Operations of one rank where work is even, and the least that crosses its memory.

        Times of partitions come from `simulate`, not from these counts.
        """
        del params, target
        attention, world = self.spec.attention, self.spec.world
        each = 4.0 * attention.block[0] * attention.block[1] * attention.head_dim
        flop = each * self.block_work.total / world
        heads = 2 * attention.heads * attention.query_grid.tokens
        heads += 2 * attention.group_heads * attention.key_grid.tokens
        item = 4 if self.spec.dtype == "float32" else 2
        moved = float(heads * attention.head_dim * item * self.batch / world)
        return Work(flop, flop, moved, self.spec.dtype, world, 0, 0, np.zeros(0, np.int64))

    def ahead_of_time(self, params: Mapping[str, Any], target: Target) -> AheadOfTime:
        """Nothing is compiled for a plan."""
        del params, target
        return AheadOfTime("", "", {}, {}, (), {})

    @property
    def template_hash(self) -> str:
        """Identity of the planning code: another planner's times are others."""
        held = hashlib.sha256()
        for file in sorted(files("kdsl.parallel").iterdir(), key=lambda f: f.name):
            if file.name.endswith(".py"):
                held.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
        return held.hexdigest()[:16]

    def sizes(self) -> Mapping[str, int]:
        """Sizes by name; nodes and links are in the program."""
        attention = self.spec.attention
        return {
            "batch": self.batch,
            "heads": attention.heads,
            "queries": attention.query_grid.tokens,
            "keys": attention.key_grid.tokens,
            "head_dim": attention.head_dim,
            "group": attention.group,
            "block_q": attention.block[0],
            "block_k": attention.block[1],
            "world_size": self.spec.world,
            **({"drift_permille": round(1000 * self.drift)} if self.drift else {}),
        }

    def statistics(self) -> Mapping[str, float]:
        """Mask statistics."""
        return self.blocks.statistics()

    def make_runner(self, device: Any, load: Callable[[str], Any]) -> Runner:
        """One device cannot run a group of them."""
        del device, load
        raise UnsupportedError(
            f"a partition over {self.spec.world} ranks cannot be measured in one process",
            hint="its time is simulated; python -m autotune --gpu NAME --world N",
        )
