"""The barriers of the Hopper backward, replayed: no deadlock, nothing overwritten while in use.

A model of `kernels/attention/hopper/backward` with the same waits, arrivals and phases in the same
order, where every buffer remembers what lies in it.  Agents run in random order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.attention.test_hopper_protocol import Barrier, Step, advance, run


class Named:
    """A named barrier that as many warpgroups as there are wait at: passed once all have come."""

    def __init__(self, count: int) -> None:
        self.count, self.arrived = count, 0

    def sync(self) -> Step:
        """Arrive; true once the others of this round are there."""
        self.arrived += 1
        wanted = -(-self.arrived // self.count) * self.count
        return lambda: self.arrived >= wanted


@dataclass
class Backward:
    """One program of `attention_backward_keys` (of `_queries` without SPREAD): steps by member."""

    members: list[int]
    stages: int
    spread: bool
    handed_slots: int = 2
    consumers: int = 2
    seen: dict[int, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.own_full = Barrier(1)
        self.full = [Barrier(1) for _ in range(self.stages)]
        self.empty = [Barrier(self.consumers) for _ in range(self.stages)]
        self.meeting = Named(self.consumers)
        self.ring: list[Any] = [None] * self.stages
        self.own = [("loaded", wg) for wg in range(self.consumers)]
        self.handed: list[list[Any]] = [[None] * self.consumers for _ in range(self.handed_slots)]

    def producer(self) -> Iterator[Step]:
        """`key_producer` of the template."""
        self.own_full.arrive()
        qi, qp = 0, 1
        for member, n in enumerate(self.members):
            for i in range(n):
                yield self.empty[qi].passed(qp)
                self.ring[qi] = (member, i)
                self.full[qi].arrive()
                qi, qp = advance(qi, qp, self.stages)

    def consumer(self, me: int) -> Iterator[Step]:
        """`key_consumer`; products are what they read when they end, which may be late."""
        seen = self.seen.setdefault(me, [])
        qi, qp, di = 0, 0, 0
        yield self.own_full.passed(0)
        for member, n in enumerate(self.members):
            for i in range(n):
                yield self.full[qi].passed(qp)
                seen.append(("S", self.ring[qi]))
                yield self.full[qi].passed(qp)
                if self.spread:
                    self.handed[di][me] = (member, i, me)
                    yield self.meeting.sync()
                    # The product may run at any time until it is waited for.
                    yield lambda: True
                    assert self.own == [("loaded", wg) for wg in range(self.consumers)]
                    seen.append(("dQ", *self.handed[di]))
                seen.append(("dK", self.ring[qi]))
                self.empty[qi].arrive()
                qi, qp = advance(qi, qp, self.stages)
                di = (di + 1) % self.handed_slots
        if self.spread:
            yield self.meeting.sync()
        self.own[me] = ("out", me)


@given(
    members=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    stages=st.integers(1, 4),
    spread=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_order_of_events_ends_right(
    members: list[int], stages: int, spread: bool, seed: int
) -> None:
    """For heads without any step and with many, every product reads the step it is meant for, both
    halves of dS of one step, and keys that no output has replaced; nobody waits for ever."""
    program = Backward(members, stages, spread)
    run(program, seed)  # type: ignore[arg-type]
    steps = [(member, i) for member, n in enumerate(members) for i in range(n)]
    for mine in program.seen.values():
        assert [x[1] for x in mine if x[0] == "S"] == steps
        assert [x[1] for x in mine if x[0] == "dK"] == steps
        halves = [((m, i, 0), (m, i, 1)) for m, i in steps] if spread else []
        assert [x[1:] for x in mine if x[0] == "dQ"] == halves


def test_the_model_sees_what_one_buffer_of_slopes_would_do() -> None:
    """With one buffer for dS a warpgroup that runs ahead overwrites what the other still reads:
    the model must notice what the template avoids with two."""

    def replay() -> None:
        for seed in range(50):
            program = Backward([6], 2, True, handed_slots=1)
            run(program, seed)  # type: ignore[arg-type]
            for mine in program.seen.values():
                assert all(x[1][:2] == x[2][:2] for x in mine if x[0] == "dQ")

    with pytest.raises(AssertionError):
        replay()
