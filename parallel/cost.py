"""What a plan takes: a kernel model, links, and a timeline of both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from kdsl.errors import InputError, reading
from kdsl.parallel.home import Home
from kdsl.parallel.kernel_model import (
    ITEM_BYTES,
    Counts,
    Fitted,
    KernelModel,
    fit_kernel,
    panel_counts,
    ring_counts,
)
from kdsl.parallel.plan import Plan
from kdsl.parallel.timeline import Event, Timeline, ring_steps
from kdsl.parallel.topology import Floats, Topology
from kdsl.parallel.traffic import Traffic, traffic
from kdsl.parallel.work import BlockWork, Longs, Shape
from kdsl.specs import Attention, digest
from kdsl.specs.common import positive, whole
from kdsl.targets import Target

__all__ = [
    "Copies", "Costs", "Counts", "Fitted", "Handling", "KernelModel", "fit_kernel", "kernel_us",
    "most_chunks", "simulate",
]  # fmt: skip
COPIED = 0.4
"""Share of the data sheet's bandwidth at which lines are gathered until fitted."""
MB = 1e6


@dataclass(frozen=True)
class Handling:
    """What a call does beside kernels and links: microseconds, and microseconds a megabyte.

    ``call_us`` passes before anything runs, ``exchange_us`` around each all-to-all and each pass of
    a ring.  ``copy_us`` is for 10^6 bytes read or written by packing, ``merge_us`` by merging.
    """

    call_us: float = 0.0
    exchange_us: float = 0.0
    copy_us: float = 0.0
    merge_us: float = 0.0

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 0:
            raise InputError(f"{self!r}", hint="0 or more")

    @staticmethod
    def of(target: Target) -> Handling:
        """Where nothing was measured: 100 us of host work, 20 around an exchange, gathers at 0.4 of
        the data sheet's bandwidth and merges at 0.8."""
        megabyte = MB / target.bandwidth * 1e6
        return Handling(100.0, 20.0, megabyte / COPIED, megabyte / (2 * COPIED))


@dataclass(frozen=True, eq=False)
class Copies:
    """Bytes that each rank's packing reads and writes, float64 ``[world]``, call by call.

    ``pack``: what others are sent, out of its tensors.  ``unpack``: what stays into the buffer of
    what came, and that into the kernels' order.  ``repack``, ``settle``: the same of results.
    """

    pack: Floats
    unpack: Floats
    repack: Floats
    settle: Floats

    @staticmethod
    def of(moved: Traffic, line_bytes: float) -> Copies:
        """What `kdsl.parallel.execute` does."""
        came = moved.inputs.sum(axis=0) + moved.inputs_kept
        lines = (
            moved.inputs.sum(axis=1),
            moved.inputs_kept + came,
            moved.outputs.sum(axis=1),
            moved.outputs_kept + moved.own,
        )
        return Copies(*(np.asarray(2 * n * line_bytes, np.float64) for n in lines))


@dataclass(frozen=True)
class Costs:
    """All that turns a plan into a time.

    ``line_bytes`` is one token of one head, times the batch; ``slowdown`` how much longer kernels
    take while something travels beside them (1: not at all); ``hidden`` the share of a ring's pass
    that runs beside kernels, while the rest waits until they are done.  Home: equal shards,
    ``replicated`` tokens on all ranks.
    """

    kernel: KernelModel
    topology: Topology
    line_bytes: float
    handling: Handling = Handling()
    slowdown: float = 1.0
    hidden: float = 1.0
    replicated: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.slowdown < 1 or self.line_bytes <= 0 or not 0 <= self.hidden <= 1:
            raise InputError(
                f"slowdown={self.slowdown}, line_bytes={self.line_bytes}, hidden={self.hidden}",
                hint="slowdown of 1 or more, line_bytes above 0, hidden from 0 to 1",
            )

    @staticmethod
    def of(
        spec: Attention,
        target: Target,
        topology: Topology,
        batch: int = 1,
        replicated: tuple[int, int] = (0, 0),
    ) -> Costs:
        """From data sheets, where nothing was measured.

        Passes are not hidden: kernels that stay on all multiprocessors leave none to NCCL's, and
        the one measured pair of GPUs shows no overlap (docs/performance.md).
        """
        kernel = KernelModel.of(spec, target, batch)
        line = float(spec.head_dim * ITEM_BYTES[spec.dtype] * batch)
        return Costs(kernel, topology, line, Handling.of(target), 1.05, 0.0, replicated)

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
        names = {"kernel", "topology", "line_bytes", "handling", "slowdown", "hidden", "replicated"}
        whole(value, names, "partition costs")
        low, high = value["replicated"]
        return Costs(
            KernelModel(**value["kernel"]),
            Topology.from_json(value["topology"]),
            value["line_bytes"],
            Handling(**value["handling"]),
            value["slowdown"],
            value["hidden"],
            (low, high),
        )


def kernel_us(plan: Plan, work: BlockWork, costs: Costs) -> Floats:
    """Microseconds of each rank's kernels in each step of its ring (or the one step there is), by
    the kernel model, ``[world, steps]``."""
    model = costs.kernel
    if plan.delivery != "ring":
        took = [sum(model.us(panel_counts(p, work)) for p in panels) for panels in plan.ranks]
        return np.asarray(took, np.float64)[:, None]
    cells = plan.cells(work)
    return np.asarray(
        [
            [model.us(ring_counts(plan, work, p, s, n)) for s, n in enumerate(row)]
            for p, row in enumerate(cells.tolist())
        ]
    )


def simulate(
    plan: Plan,
    work: BlockWork,
    costs: Costs,
    *,
    chunks: int = 1,
    moved: Traffic | None = None,
    kernels: Floats | None = None,
) -> Timeline:
    """One attention by a plan, played through.

    ``chunks`` > 1 cuts a rank's heads into so many parts whose all-to-alls overlap the other parts'
    kernels; at most `most_chunks`.  A ring overlaps its passes instead.  ``moved`` is the plan's
    `Costs.traffic`, where it is known already, ``kernels`` measured times in place of `kernel_us`.
    """
    if positive(chunks, "chunks") > most_chunks(plan):
        raise InputError(
            f"{chunks} chunks of heads", hint=f"at most {most_chunks(plan)} with this plan"
        )
    if plan.world != costs.topology.world:
        raise InputError(f"a plan for {plan.world} ranks on {costs.topology.world}")
    moved = moved or costs.traffic(plan, work)
    took = kernel_us(plan, work, costs) if kernels is None else kernels
    if plan.delivery == "ring":
        return _ring(plan, costs, moved, took)
    return _gathered(plan, costs, moved, took[:, 0], chunks)


def most_chunks(plan: Plan) -> int:
    """In how many parts the all-to-alls of a plan can go: the least heads that a busy rank has."""
    if plan.delivery == "ring":
        return 1
    return min((len(plan.heads_of(p)) for p in range(plan.world) if plan.ranks[p]), default=1)


def _gathered(plan: Plan, costs: Costs, moved: Traffic, took: Floats, chunks: int) -> Timeline:
    hand, copies = costs.handling, Copies.of(moved, costs.line_bytes)
    # Each chunk launches every panel anew.
    panels = np.asarray([len(panels) for panels in plan.ranks])
    kernel = took + costs.kernel.panel_us * panels * (chunks - 1)
    each = kernel / chunks
    came = costs.topology.all_to_all_us(moved.inputs * (costs.line_bytes / chunks))
    back = costs.topology.all_to_all_us(moved.outputs * (costs.line_bytes / chunks))
    if chunks > 1:
        each = each * np.where((came > 0) | (back > 0), costs.slowdown, 1.0)
    unpack, repack = (x * hand.copy_us / MB / chunks for x in (copies.unpack, copies.repack))
    events, packed = _packed(plan.world, hand, copies)
    wire = _heard(packed, moved.inputs)
    free, finished = packed, []
    for i in range(chunks):
        arrived = wire + came + hand.exchange_us
        events += _events("input", i, wire, arrived)
        wire = arrived
        start = np.maximum(arrived, free)
        opened = start + unpack
        done = opened + each
        free = done + repack
        events += _events("copy", i, start, opened)
        events += _events("compute", i, opened, done)
        events += _events("copy", i, done, free)
        finished.append(free)
    for i, ready in enumerate(finished):
        start = np.maximum(_heard(ready, moved.outputs), wire)
        wire = start + back + hand.exchange_us
        events += _events("output", i, start, wire)
    return _settled(wire, each * chunks, events, hand, copies)


def _ring(plan: Plan, costs: Costs, moved: Traffic, took: Floats) -> Timeline:
    mesh, steps = plan.mesh, plan.mesh.ring
    hand, copies = costs.handling, Copies.of(moved, costs.line_bytes)
    took = took.copy()
    took[:, :-1] *= costs.slowdown
    merged = np.zeros(took.shape)
    if steps > 1:
        # 16 bits a number but for totals that are added to again, which are float32.
        each = moved.computed * costs.line_bytes * (5 * steps - 7) / (steps - 1)
        merged[:, 1:] = np.where(took[:, 1:] > 0, (each * hand.merge_us / MB)[:, None], 0)
    links = [
        costs.topology.link(p, mesh.rank_of(mesh.u_of(p), (mesh.r_of(p) + 1) % steps))
        for p in range(plan.world)
    ]
    passes = np.asarray(
        [
            [link.us(lines * costs.line_bytes) + hand.exchange_us * (lines > 0) for lines in row]
            for link, row in zip(links, moved.passes.tolist(), strict=True)
        ]
    ).reshape(plan.world, steps - 1)
    came = costs.topology.all_to_all_us(moved.inputs * costs.line_bytes) + hand.exchange_us
    back = costs.topology.all_to_all_us(moved.outputs * costs.line_bytes) + hand.exchange_us
    events, packed = _packed(plan.world, hand, copies)
    wire = _heard(packed, moved.inputs)
    arrived = wire + came
    opened = arrived + copies.unpack * hand.copy_us / MB
    events += _events("input", 0, wire, arrived) + _events("copy", 0, arrived, opened)
    end = opened
    late = np.zeros(took.shape)
    late[:, :-1] = passes * (1 - costs.hidden)
    for step, (start, end) in enumerate(
        ring_steps(took + merged + late, mesh, passes * costs.hidden, opened)
    ):
        events += _events("compute", step, start, end - late[:, step])
        if step + 1 < steps:
            events += _events("pass", step, end - late[:, step], end)
            events += _events("pass", step, start, start + passes[:, step] * costs.hidden)
    ready = end + copies.repack * hand.copy_us / MB
    events += _events("copy", 0, end, ready)
    start = _heard(ready, moved.outputs)
    wire = start + back
    events += _events("output", 0, start, wire)
    return _settled(wire, took.sum(axis=1), events, hand, copies)


def _packed(world: int, hand: Handling, copies: Copies) -> tuple[list[Event], Floats]:
    """When each rank's lines lie ready to be sent."""
    begin = np.full(world, hand.call_us)
    packed = begin + copies.pack * hand.copy_us / MB
    return _events("copy", 0, begin, packed), packed


def _settled(
    wire: Floats, compute: Floats, events: list[Event], hand: Handling, copies: Copies
) -> Timeline:
    """The end: results in the order of the rank's own tokens."""
    end = wire + copies.settle * hand.copy_us / MB
    events += _events("copy", 0, wire, end)
    return Timeline(end, compute, tuple(events))


def _heard(ready: Floats, sizes: Floats | Longs) -> Floats:
    """When a rank and all that send to it are ready: who is last holds up those it sends to."""
    senders = np.where(sizes > 0, ready[:, None], 0).max(axis=0, initial=0)
    return np.asarray(np.maximum(ready, senders), np.float64)


def _events(kind: str, step: int, start: Floats, end: Floats) -> list[Event]:
    pairs = zip(start.tolist(), end.tolist(), strict=True)
    return [Event(rank, kind, step, a, b) for rank, (a, b) in enumerate(pairs) if b > a]
