"""The barriers of the Hopper template, replayed: no deadlock, nothing overwritten while in use.

A model of `kernels/attention/hopper` with the same waits, arrivals and phases in the same order,
where every buffer remembers what was loaded into it. Agents run in random order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

Step = Callable[[], bool]
"""Something to wait for: true once it may go on."""


class Barrier:
    """An mbarrier: a phase ends when as many arrived as it counts."""

    def __init__(self, count: int) -> None:
        self.count, self.left, self.phase = count, count, 0

    def arrive(self) -> None:
        """One arrival."""
        self.left -= 1
        if not self.left:
            self.left, self.phase = self.count, self.phase ^ 1

    def passed(self, parity: int) -> Step:
        """Whether the phase of that parity is over, as ``try_wait.parity`` sees it."""
        return lambda: self.phase != parity


@dataclass
class Program:
    """One program: buffers, barriers, and the tiles it is handed, each a number of steps."""

    tiles: list[int]
    consumers: int
    k_stages: int
    v_stages: int
    early: bool
    claims: int = 0
    seen: dict[int, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def ring(n: int, count: int) -> list[Barrier]:
            return [Barrier(count) for _ in range(n)]

        self.q_full, self.q_empty = ring(2, 1), ring(2, self.consumers)
        self.k_full, self.k_empty = ring(self.k_stages, 1), ring(self.k_stages, self.consumers)
        self.v_full, self.v_empty = ring(self.v_stages, 1), ring(self.v_stages, self.consumers)
        self.note_full, self.note_empty = ring(2, 1), ring(2, self.consumers)
        self.q: list[Any] = [None] * 2
        self.k: list[Any] = [None] * self.k_stages
        self.v: list[Any] = [None] * self.v_stages
        self.note: list[Any] = [None] * 2

    def next_tile(self) -> tuple[int, int]:
        """Number and steps of the tile that is claimed; no steps once there is none."""
        self.claims += 1
        i = self.claims - 1
        return i, self.tiles[i] if i < len(self.tiles) else 0

    def producer(self) -> Iterator[Step]:
        """`producer` of the template."""
        ki, kp, vi, vp, qi, qp, at, phase = 0, 1, 0, 1, 0, 1, 0, 1
        before: Any = None
        tile, n = self.next_tile()
        yield self.note_empty[at].passed(phase)
        self.note[at] = (tile, n)
        self.note_full[at].arrive()
        at, phase = advance(at, phase, 2)
        while n > 0:
            yield self.q_empty[qi].passed(qp)
            self.q[qi] = tile
            self.q_full[qi].arrive()
            qi, qp = advance(qi, qp, 2)
            late = max(n - 2, 1)
            following = (0, 0)
            for i in range(n):
                if i == late:
                    following = self.next_tile()
                    yield self.note_empty[at].passed(phase)
                    self.note[at] = following
                    self.note_full[at].arrive()
                    at, phase = advance(at, phase, 2)
                yield self.k_empty[ki].passed(kp)
                self.k[ki] = (tile, i)
                self.k_full[ki].arrive()
                ki, kp = advance(ki, kp, self.k_stages)
                if before is not None:
                    yield self.v_empty[vi].passed(vp)
                    self.v[vi] = before
                    self.v_full[vi].arrive()
                    vi, vp = advance(vi, vp, self.v_stages)
                before = (tile, i)
            if late >= n:
                following = self.next_tile()
                yield self.note_empty[at].passed(phase)
                self.note[at] = following
                self.note_full[at].arrive()
                at, phase = advance(at, phase, 2)
            tile, n = following
        yield self.v_empty[vi].passed(vp)
        self.v[vi] = before
        self.v_full[vi].arrive()

    def consumer(self, me: int) -> Iterator[Step]:
        """`consumer` of the template; what it multiplies goes into `seen`."""
        seen = self.seen.setdefault(me, [])

        def scores(slot: int, key: int) -> None:
            seen.append(("S", self.q[slot], self.k[key]))

        yield self.note_full[0].passed(0)
        tile, n = self.note[0]
        at, phase, qi, qp, vi, vp = 1, 0, 0, 0, 0, 0
        yield self.q_full[0].passed(0)
        yield self.k_full[0].passed(0)
        scores(0, 0)
        self.k_empty[0].arrive()
        ki, kp = advance(0, 0, self.k_stages)
        before = False
        while n > 0:
            qp_next = qp ^ 1 if qi == 1 else qp
            following = (tile, n)
            if self.early and n == 1:
                yield self.note_full[at].passed(phase)
                following = self.note[at]
            if before:
                self.q_empty[1 - qi].arrive()
            if self.early:
                if n == 1 and following[1] > 0:
                    yield self.q_full[1 - qi].passed(qp_next)
                if n > 1 or following[1] > 0:
                    yield self.k_full[ki].passed(kp)
                    scores(1 - qi if n == 1 else qi, ki)
                self.k_empty[ki].arrive()
                ki, kp = advance(ki, kp, self.k_stages)
            elif n > 1:
                yield self.k_full[ki].passed(kp)
            for i in range(1, n):
                last = i == n - 1
                if self.early and last:
                    yield self.note_full[at].passed(phase)
                    following = self.note[at]
                if self.early:
                    if last and following[1] > 0:
                        yield self.q_full[1 - qi].passed(qp_next)
                    if not last or following[1] > 0:
                        yield self.k_full[ki].passed(kp)
                    yield self.v_full[vi].passed(vp)
                    if not last or following[1] > 0:
                        scores(1 - qi if last else qi, ki)
                else:
                    scores(qi, ki)
                    yield self.v_full[vi].passed(vp)
                    self.k_empty[ki].arrive()
                    ki, kp = advance(ki, kp, self.k_stages)
                seen.append(("O", tile, self.v[vi]))
                if self.early:
                    self.k_empty[ki].arrive()
                    ki, kp = advance(ki, kp, self.k_stages)
                elif not last:
                    yield self.k_full[ki].passed(kp)
                self.v_empty[vi].arrive()
                vi, vp = advance(vi, vp, self.v_stages)
            if not self.early:
                yield self.note_full[at].passed(phase)
                following = self.note[at]
            at, phase = advance(at, phase, 2)
            yield self.v_full[vi].passed(vp)
            if not self.early and following[1] > 0:
                yield self.q_full[1 - qi].passed(qp_next)
                yield self.k_full[ki].passed(kp)
                scores(1 - qi, ki)
            seen.append(("O", tile, self.v[vi]))
            self.v_empty[vi].arrive()
            vi, vp = advance(vi, vp, self.v_stages)
            # The output leaves through the tile's own Q buffer: nobody may have loaded into it.
            assert self.q[qi] == tile
            seen.append(("out", tile))
            self.note_empty[at].arrive()
            if not self.early:
                self.k_empty[ki].arrive()
                ki, kp = advance(ki, kp, self.k_stages)
            qi, qp = advance(qi, qp, 2)
            tile, n = following
            before = True


def advance(at: int, phase: int, stages: int) -> tuple[int, int]:
    """The next place of a ring, and its phase."""
    return ((at + 1) % stages, phase ^ (at + 1 == stages))


def run(program: Program, seed: int) -> None:
    """Let producer and consumers go in random order to their ends; AssertionError if they hang."""
    chance = random.Random(seed)
    agents = [program.producer(), *(program.consumer(i) for i in range(program.consumers))]
    waits: dict[Iterator[Step], Step] = {agent: lambda: True for agent in agents}
    while waits:
        ready = [agent for agent, step in waits.items() if step()]
        assert ready, f"deadlock: {len(waits)} of {len(agents)} wait for ever"
        agent = chance.choice(ready)
        # Some run ahead as far as they can, as real warps do.
        for _ in range(chance.choice((1, 1, 100))):
            if not waits[agent]():
                break
            try:
                waits[agent] = next(agent)
            except StopIteration:
                del waits[agent]
                break


def wanted(tiles: list[int]) -> tuple[list[Any], list[Any], list[Any]]:
    """Products with keys and with values, and outputs, in order."""
    steps = [(t, i) for t, n in enumerate(tiles) for i in range(n)]
    return (
        [("S", t, (t, i)) for t, i in steps],
        [("O", t, (t, i)) for t, i in steps],
        [("out", t) for t in range(len(tiles))],
    )


@given(
    tiles=st.lists(st.integers(1, 7), min_size=1, max_size=12),
    consumers=st.sampled_from((1, 2)),
    v_stages=st.integers(1, 4),
    extra=st.integers(0, 1),
    early=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_order_of_events_ends_right(
    tiles: list[int], consumers: int, v_stages: int, extra: int, early: bool, seed: int
) -> None:
    """For rows of one step and more, every product reads the tile and step it is meant for, in
    order, and nobody waits for ever, whoever runs ahead."""
    program = Program(tiles, consumers, v_stages + extra, v_stages, early)
    run(program, seed)
    for mine in program.seen.values():
        for kind, right in zip(("S", "O", "out"), wanted(tiles), strict=True):
            assert [x for x in mine if x[0] == kind] == right
    assert program.claims == len(tiles) + 1


def test_the_model_sees_a_note_that_comes_too_late() -> None:
    """If the next tile is announced before the keys that end the tile before, one-step rows hang:
    the model must notice what the template avoids."""

    class Hasty(Program):
        def producer(self) -> Iterator[Step]:
            tile, n = self.next_tile()
            for at in (0, 1):
                self.note[at] = (tile, n)
                self.note_full[at].arrive()
                self.q[at] = tile
                self.q_full[at].arrive()
                tile, n = self.next_tile()
            yield self.note_empty[0].passed(0)

    with pytest.raises(AssertionError, match="deadlock"):
        run(Hasty([1, 1, 1], 1, 2, 2, False), 0)


@given(total=st.integers(1, 60), programs=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_the_counter_hands_out_each_tile_once(total: int, programs: int, seed: int) -> None:
    """Programs that start with their own number and then count up cover all tiles once, and the
    last refusal leaves the counter at 0, whatever the order of claims."""
    chance = random.Random(seed)
    programs = min(programs, total)
    counter, taken, resets = 0, list(range(programs)), 0
    working = list(range(programs))
    while working:
        program = chance.choice(working)
        ticket, counter = counter, counter + 1
        if ticket == total - 1:
            assert len(working) == 1, "somebody may still claim"
            counter, resets = 0, resets + 1
        if programs + ticket < total:
            taken.append(programs + ticket)
        else:
            working.remove(program)
    assert sorted(taken) == list(range(total))
    assert (counter, resets) == (0, 1)
