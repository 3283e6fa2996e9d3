"""A rank's whole call, run by the product's own code with the network left out: what packing and
merging add to the kernels, beside what the model says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.virtual.cases import Point
from benchmarks.virtual.points import compared
from benchmarks.virtual.shards import Bench, Timer
from kdsl.parallel.cost import Costs, kernel_us, simulate
from kdsl.parallel.exchange import Exchanges
from kdsl.parallel.execute import Execution
from kdsl.parallel.home import Home
from kdsl.parallel.plan import Plan
from kdsl.parallel.work import BlockWork

NAMES = ("ulysses", "ring", "B split heads")
"""Plans whose fullest rank is run as a whole."""


class Alone:
    """A channel whose other ranks are not there: what would come from them is copied from ``pool``
    (lines), which takes a time that can be measured by itself."""

    def __init__(self, rank: int, world: int, pool: Any) -> None:
        self.rank, self.world, self.pool = rank, world, pool
        self.came: list[Any] = []
        """Buffers that were filled, in the order of the call."""

    def agree(self, mine: Any) -> None:
        """There is nobody to differ."""

    def all_to_all(
        self,
        received: Any,
        sent: Any,
        recv: Sequence[int],
        send: Sequence[int],
        state: Any,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """What comes, and what runs beside it."""
        self.fill(received)
        meanwhile()

    def passing(self, sent: Any, to: int, received: Any, source: int, state: Any) -> list[Any]:
        """What comes, and nothing to wait for."""
        self.fill(received)
        return []

    def wait(self, works: Any, tensor: Any, state: Any) -> None:
        """Nothing is under way."""

    def fill(self, received: Any) -> None:
        """Lines of the pool."""
        self.came.append(received)
        for first in range(0, len(received), len(self.pool)):
            part = received[first : first + len(self.pool)]
            part.copy_(self.pool[: len(part)])

    def fill_again(self) -> None:
        """All that a call has filled."""
        for received in list(self.came):
            self.fill(received)
            self.came.pop()


def calls(
    plan: Plan, rank: int, work: BlockWork, bench: Bench
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A rank's call on its own tokens, and the copies alone that stand for the network."""
    home = Home.even(bench.model.tokens, plan.world)
    everyone = Exchanges(plan, home, work=work)
    channel: Any = Alone(rank, plan.world, bench.q.reshape(-1, 1, bench.model.head_dim))
    run = Execution(everyone, work, channel, bench.operators, device=bench.device)
    first, end = home.shards[rank]
    q, k, v = (x[None, :, first:end].contiguous() for x in (bench.q, bench.k, bench.v))

    def once() -> object:
        channel.came.clear()
        return run(q, k, v)

    once()
    held = Alone(rank, plan.world, channel.pool)
    held.came = list(channel.came)
    return once, held.fill_again


def modelled_us(plan: Plan, rank: int, work: BlockWork, costs: Costs) -> float:
    """Packing, kernels and merging of one rank, without waiting for anybody."""
    line = simulate(plan, work, replace(costs, slowdown=1.0))
    kinds = ("copy", "compute")
    return sum(e.end_us - e.start_us for e in line.events if e.rank == rank and e.kind in kinds)


def lines(point: Point, work: BlockWork, bench: Bench, costs: Costs, timer: Timer) -> Iterator[str]:
    """The fullest rank of some plans: measured as a whole, and by the model."""
    costs = replace(costs, topology=point.topology)
    for found in compared(work, costs):
        if found.name not in NAMES:
            continue
        kernels = kernel_us(found.plan, work, costs).sum(axis=1)
        rank = int(np.argmax(kernels))
        once, fill = calls(found.plan, rank, work, bench)
        times = timer({"whole": once, "fill": fill})
        took = times["whole"] - times["fill"]
        ours = modelled_us(found.plan, rank, work, costs)
        yield (
            f"{point.id} {found.name}: rank {rank} without the network {took:.0f} us, modelled "
            f"{ours:.0f}, of which kernels {kernels[rank]:.0f}"
        )
