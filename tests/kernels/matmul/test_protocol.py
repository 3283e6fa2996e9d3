"""The barriers of the Hopper matmul template, replayed: no deadlock, nothing overwritten in use.

A model of `kernels/matmul/hopper/forward.py` with the same waits, arrivals and phases in the same
order, where every buffer remembers what was loaded into it.  Agents run in random order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.attention.test_hopper_protocol import Barrier, Step, advance, run


@dataclass
class Program:
    """One program: buffers, barriers, the tiles it computes and the steps of each."""

    tiles: int
    steps: int
    consumers: int
    stages: int
    residual: bool
    coded: bool = False
    """Weights of few bits: the next step's codes are read before this step's product is over."""
    eager: bool = False
    """A consumer that frees a stage as soon as its product has started: what the model must see."""
    seen: dict[int, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.full = [Barrier(1) for _ in range(self.stages)]
        self.empty = [Barrier(self.consumers) for _ in range(self.stages)]
        self.arrived = [Barrier(1) for _ in range(self.consumers)]
        self.ring: list[Any] = [None] * self.stages
        self.out: list[Any] = [None] * self.consumers

    def producer(self) -> Iterator[Step]:
        """`producer` of the template."""
        at, phase = 0, 1
        for tile in range(self.tiles):
            for k in range(self.steps):
                yield self.empty[at].passed(phase)
                self.ring[at] = (tile, k)
                self.full[at].arrive()
                at, phase = advance(at, phase, self.stages)

    def consumer(self, me: int) -> Iterator[Step]:
        """`consumer` of the template; a product reads its stage until it is waited for."""
        seen = self.seen.setdefault(me, [])
        if self.coded:
            yield from self.coded_consumer(me, seen)
            return
        at, phase, turn = 0, 0, 0
        for tile in range(self.tiles):
            yield self.full[at].passed(phase)
            if self.eager:
                self.empty[at].arrive()
            if self.residual:
                # The output before has left: `store_wait(0)`.
                self.out[me] = ("residual", tile)
                self.arrived[me].arrive()
            for k in range(1, self.steps):
                later, phase = advance(at, phase, self.stages)
                yield self.full[later].passed(phase)
                # The product of the step before is over once the next one has started.
                seen.append((self.ring[at], (tile, k - 1)))
                if not self.eager:
                    self.empty[at].arrive()
                else:
                    self.empty[later].arrive()
                at = later
            yield lambda: True
            seen.append((self.ring[at], (tile, self.steps - 1)))
            if not self.eager:
                self.empty[at].arrive()
            at, phase = advance(at, phase, self.stages)
            if self.residual:
                yield self.arrived[me].passed(turn)
                turn ^= 1
                assert self.out[me] == ("residual", tile)
            self.out[me] = ("out", tile)

    def coded_consumer(self, me: int, seen: list[Any]) -> Iterator[Step]:
        """`coded_consumer` of the template for few bits."""
        at, phase, turn = 0, 0, 0
        yield self.full[0].passed(0)
        codes = self.ring[0]
        for tile in range(self.tiles):
            if self.residual:
                self.out[me] = ("residual", tile)
                self.arrived[me].arrive()
            for k in range(self.steps):
                started = self.ring[at]
                later, phase = advance(at, phase, self.stages)
                if k + 1 < self.steps or tile + 1 < self.tiles:
                    yield self.full[later].passed(phase)
                ahead = self.ring[later]
                yield lambda: True
                # The product has read x until now, and the codes from registers.
                assert started == self.ring[at] == codes
                seen.append((self.ring[at], (tile, k)))
                self.empty[at].arrive()
                at, codes = later, ahead
            if self.residual:
                yield self.arrived[me].passed(turn)
                turn ^= 1
                assert self.out[me] == ("residual", tile)
            self.out[me] = ("out", tile)


@given(
    tiles=st.integers(1, 9),
    steps=st.integers(1, 9),
    consumers=st.sampled_from((1, 2)),
    stages=st.integers(2, 8),
    residual=st.booleans(),
    coded=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_order_of_events_ends_right(
    tiles: int, steps: int, consumers: int, stages: int, residual: bool, coded: bool, seed: int
) -> None:
    """For tiles of one step and more every product reads the step it is meant for until it ends,
    residuals come before outputs, and nobody waits for ever."""
    program = Program(tiles, steps, consumers, stages, residual, coded)
    run(program, seed)  # type: ignore[arg-type]
    for mine in program.seen.values():
        assert len(mine) == tiles * steps
        assert all(read == wanted for read, wanted in mine)


def test_the_model_sees_a_stage_that_is_freed_too_early() -> None:
    """A consumer that lets the producer overwrite what its product still reads is found."""
    bad = []
    for seed in range(40):
        program = Program(4, 6, 1, 2, False, eager=True)
        run(program, seed)  # type: ignore[arg-type]
        bad += [r for mine in program.seen.values() for r in mine if r[0] != r[1]]
    assert bad


def test_a_stage_is_not_enough() -> None:
    """With a single stage a product would wait for a step that cannot be loaded: two at least,
    which is why the space begins there."""
    from kdsl.kernels.matmul.config import SPACE

    assert min(SPACE["num_stages"]) == 2
    with pytest.raises(AssertionError, match="deadlock"):
        run(Program(1, 2, 1, 1, False), 0)  # type: ignore[arg-type]
