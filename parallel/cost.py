"""What a plan takes: a kernel model, links, and a timeline of both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kdsl.errors import InputError, UnsupportedError, reading
from kdsl.parallel.home import Home
from kdsl.parallel.plan import Plan, RankPlan
from kdsl.parallel.timeline import Event, Timeline, ring_steps
from kdsl.parallel.topology import Floats, Topology, nonnegative
from kdsl.parallel.traffic import Traffic, traffic
from kdsl.parallel.work import BlockWork, Shape
from kdsl.specs import Attention, digest
from kdsl.specs.common import positive, whole
from kdsl.targets import Target

SUSTAINED = 0.5
"""Share of the data sheet's peak that a block-sparse kernel is taken to reach until fitted."""
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Counts:
    """What a rank's kernels do in one step: panels, kept blocks, rows of blocks times heads."""

    panels: int
    blocks: int
    rows: int


@dataclass(frozen=True)
class KernelModel:
    """Microseconds of a rank's kernels: so many for each panel, kept block and row of blocks.

    Blocks and rows are those of one mask block size, dtype and head dimension, with the whole GPU
    at work on them.
    """

    panel_us: float
    block_us: float
    row_us: float

    def us(self, done: Counts) -> float:
        """The time of some work; none for none."""
        if not done.panels:
            return 0.0
        return self.panel_us * done.panels + self.block_us * done.blocks + self.row_us * done.rows

    @staticmethod
    def of(spec: Attention, target: Target, batch: int = 1) -> KernelModel:
        """From the data sheet, where nothing was measured: half the peak, each row read and written
        once at full bandwidth, 5 us to begin."""
        peak = target.peak(spec.dtype)
        if not peak or not target.bandwidth:
            raise UnsupportedError(f"{target.name} has no known {spec.dtype} rate")
        flop = 4.0 * spec.block[0] * spec.block[1] * spec.head_dim * batch
        line = 2.0 * spec.block[0] * spec.head_dim * ITEM_BYTES[spec.dtype] * batch
        return KernelModel(5.0, flop / (peak * SUSTAINED) * 1e6, line / target.bandwidth * 1e6)


@dataclass(frozen=True)
class Fitted:
    """A kernel model from measured shards, and how far it is from them."""

    model: KernelModel
    error: float
    """Mean of |predicted - measured| / measured over the samples."""


def fit_kernel(samples: Sequence[tuple[Counts, float]]) -> Fitted:
    """The model that explains measured times (microseconds) of shards, by relative least squares.

    InputError for fewer than three samples: there are three weights.
    """
    if len(samples) < 3:
        raise InputError(f"{len(samples)} samples for three weights", hint="three or more")
    columns = np.asarray([[c.panels, c.blocks, c.rows] for c, _ in samples], np.float64)
    took = np.asarray([us for _, us in samples], np.float64)
    if not (took > 0).all():
        raise InputError("a measured time is not above 0")
    weights = nonnegative(columns, took)
    model = KernelModel(*map(float, weights))
    error = float(np.abs(columns @ weights / took - 1).mean())
    return Fitted(model, error)


@dataclass(frozen=True)
class Costs:
    """All that turns a plan into a time.

    ``line_bytes`` is one token of one head, times the batch; ``merge_us`` what merging a step of a
    ring costs a row of blocks of a head; ``slowdown`` how much longer kernels take while something
    travels beside them (1: not at all).  Home: equal shards, ``replicated`` tokens on all ranks.
    """

    kernel: KernelModel
    topology: Topology
    line_bytes: float
    merge_us: float = 0.0
    slowdown: float = 1.0
    replicated: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.slowdown < 1 or self.merge_us < 0 or self.line_bytes <= 0:
            raise InputError(
                f"slowdown={self.slowdown}, merge_us={self.merge_us}, line_bytes={self.line_bytes}",
                hint="slowdown of 1 or more, merge_us of 0 or more, line_bytes above 0",
            )

    @staticmethod
    def of(
        spec: Attention,
        target: Target,
        topology: Topology,
        batch: int = 1,
        replicated: tuple[int, int] = (0, 0),
    ) -> Costs:
        """From data sheets, where nothing was measured."""
        kernel = KernelModel.of(spec, target, batch)
        line = float(spec.head_dim * ITEM_BYTES[spec.dtype] * batch)
        # Partial results are read and written in float32: four times a row of 16-bit output.
        merge = 4 * spec.block[0] * spec.head_dim * 4.0 * batch / target.bandwidth * 1e6
        return Costs(kernel, topology, line, merge, 1.05, replicated)

    def homes(self, shape: Shape) -> tuple[Home, Home]:
        """Where queries and keys live."""
        queries = Home.even(shape.queries, self.topology.world, self.replicated)
        own = self.replicated if shape.keys == shape.queries else (0, 0)
        return queries, Home.even(shape.keys, self.topology.world, own)

    def traffic(self, plan: Plan, work: BlockWork) -> Traffic:
        """Lines that a plan moves between the ranks' homes."""
        home, key_home = self.homes(plan.shape)
        return traffic(plan, home, key_home=key_home, work=work)

    @cached_property
    def id(self) -> str:
        """The first digits of a hash of everything that predictions depend on."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return digest([text])[:12]

    def to_json(self) -> dict[str, Any]:
        """As JSON; numbers as they are."""
        return {**asdict(self), "replicated": list(self.replicated)}

    @staticmethod
    @reading("partition costs")
    def from_json(value: Mapping[str, Any]) -> Costs:
        """The costs written by `to_json`."""
        names = {"kernel", "topology", "line_bytes", "merge_us", "slowdown", "replicated"}
        whole(value, names, "partition costs")
        low, high = value["replicated"]
        return Costs(
            KernelModel(**value["kernel"]),
            Topology.from_json(value["topology"]),
            value["line_bytes"],
            value["merge_us"],
            value["slowdown"],
            (low, high),
        )


def counts_of(panels: RankPlan, blocks: int) -> Counts:
    """What some panels with so many kept blocks are to a kernel model."""
    return Counts(len(panels), blocks, sum(panel.tiles for panel in panels))


def simulate(
    plan: Plan,
    work: BlockWork,
    costs: Costs,
    *,
    chunks: int = 1,
    moved: Traffic | None = None,
) -> Timeline:
    """One attention by a plan, played through.

    ``chunks`` > 1 cuts a rank's heads into so many parts whose all-to-alls overlap the other parts'
    kernels; at most `most_chunks`.  A ring overlaps its passes instead.  ``moved`` is the plan's
    `Costs.traffic`, where it is known already.
    """
    if positive(chunks, "chunks") > most_chunks(plan):
        raise InputError(
            f"{chunks} chunks of heads", hint=f"at most {most_chunks(plan)} with this plan"
        )
    if plan.world != costs.topology.world:
        raise InputError(f"a plan for {plan.world} ranks on {costs.topology.world}")
    moved = moved or costs.traffic(plan, work)
    if plan.delivery == "ring":
        return _ring(plan, work, costs, moved)
    return _gathered(plan, work, costs, moved, chunks)


def most_chunks(plan: Plan) -> int:
    """In how many parts the all-to-alls of a plan can go: the least heads that a busy rank has."""
    if plan.delivery == "ring":
        return 1
    return min((len(plan.heads_of(p)) for p in range(plan.world) if plan.ranks[p]), default=1)


def _gathered(plan: Plan, work: BlockWork, costs: Costs, moved: Traffic, chunks: int) -> Timeline:
    world, topology = plan.world, costs.topology
    loads = plan.loads(work).tolist()
    done = [counts_of(panels, load) for panels, load in zip(plan.ranks, loads, strict=True)]
    kernel = np.asarray([costs.kernel.us(c) for c in done])
    # Each chunk launches every panel anew.
    kernel += np.asarray([costs.kernel.panel_us * c.panels * (chunks - 1) for c in done])
    came = topology.all_to_all_us(moved.inputs * (costs.line_bytes / chunks))
    back = topology.all_to_all_us(moved.outputs * (costs.line_bytes / chunks))
    each = kernel / chunks
    if chunks > 1:
        each = each * np.where((came > 0) | (back > 0), costs.slowdown, 1.0)
    events: list[Event] = []
    wire, free, finished = np.zeros(world), np.zeros(world), []
    for i in range(chunks):
        arrived = wire + came
        events += _events("input", i, wire, arrived)
        wire = arrived
        start = np.maximum(arrived, free)
        free = start + each
        events += _events("compute", i, start, free)
        finished.append(free)
    for i, ready in enumerate(finished):
        # Results come from everybody: who ends last holds up those it sends to.
        senders = np.where(moved.outputs > 0, ready[:, None], 0).max(axis=0, initial=0)
        start = np.maximum(np.maximum(ready, senders), wire)
        wire = start + back
        events += _events("output", i, start, wire)
    return Timeline(wire, each * chunks, tuple(events))


def _ring(plan: Plan, work: BlockWork, costs: Costs, moved: Traffic) -> Timeline:
    mesh, steps = plan.mesh, plan.mesh.ring
    cells = plan.cells(work)
    took = np.zeros(cells.shape)
    for rank, panels in enumerate(plan.ranks):
        for step in range(steps):
            done = counts_of(panels, int(cells[rank, step]))
            merge = costs.merge_us * done.rows if steps > 1 else 0.0
            beside = costs.slowdown if step + 1 < steps else 1.0
            took[rank, step] = (costs.kernel.us(done) + merge) * beside
    links = [
        costs.topology.link(p, mesh.rank_of(mesh.u_of(p), (mesh.r_of(p) + 1) % steps))
        for p in range(plan.world)
    ]
    passes = np.asarray(
        [
            [link.us(lines * costs.line_bytes) for lines in row]
            for link, row in zip(links, moved.passes.tolist(), strict=True)
        ]
    ).reshape(plan.world, steps - 1)
    came = costs.topology.all_to_all_us(moved.inputs * costs.line_bytes)
    back = costs.topology.all_to_all_us(moved.outputs * costs.line_bytes)
    events = _events("input", 0, np.zeros(plan.world), came)
    end = came
    for step, (start, end) in enumerate(ring_steps(took, mesh, passes, came)):
        events += _events("compute", step, start, end)
        if step + 1 < steps:
            events += _events("pass", step, start, start + passes[:, step])
    senders = np.where(moved.outputs > 0, end[:, None], 0).max(axis=0, initial=0)
    ready = np.maximum(end, senders)
    events += _events("output", 0, ready, ready + back)
    return Timeline(ready + back, took.sum(axis=1), tuple(events))


def _events(kind: str, step: int, start: Floats, end: Floats) -> list[Event]:
    pairs = zip(start.tolist(), end.tolist(), strict=True)
    return [Event(rank, kind, step, a, b) for rank, (a, b) in enumerate(pairs) if b > a]
