"""Prefetched blocks are the plan's, whatever a GPU's streams make of their order."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsl import orders
from kdsl.errors import InputError
from kdsl.grid import Grid
from kdsl.plans import AttentionPlan, attention_plan

torch: Any = pytest.importorskip("torch")
from kdsl.runtime.prefetch import Prefetcher, Slot, unpacked  # noqa: E402

GRID = Grid(frames=2, height=5, width=7)
STEPS = ((0, 0), (1, 1), (2, 5))


def plan(layers: int = 3, heads: int = 2) -> AttentionPlan:
    """Random blocks with no empty row; 5 x 5 blocks of two heads do not fill whole bytes."""
    rng = np.random.default_rng(0)
    kept = rng.random((len(STEPS) * layers, heads, 5, 5)) < 0.4
    kept[..., 0] = True
    order = [[orders.axes(GRID, "HWF")] * heads] * layers
    return attention_plan("m", GRID, (16, 16), order, list(kept), steps=STEPS)


class Machine:
    """Stand-in for ``torch.cuda``: work on streams runs as late, or as interleaved, as it may.

    A stream is a queue of work and of events to wait for.  `run` lets streams go on in random order
    until a given event, as a GPU might.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.main, self.side = FakeStream(), FakeStream()

    def Event(self) -> FakeEvent:
        """A new event."""
        return FakeEvent()

    def current_stream(self, device: Any = None) -> FakeStream:
        """The caller's stream."""
        return self.main

    def stream(self, stream: FakeStream) -> AbstractContextManager[None]:
        """Work names its stream itself here."""
        return nullcontext()

    def run(self, most: int | None = None) -> None:
        """Let work happen: so many pieces, or all."""
        while most is None or most > 0:
            able = [s for s in (self.main, self.side) if s.queue and s.ready()]
            if not able:
                assert most is not None or not (self.main.queue or self.side.queue), "deadlock"
                return
            self.random.choice(able).step()
            most = None if most is None else most - 1


class FakeEvent:
    """Done when its stream comes to it."""

    done = False

    def record(self, stream: FakeStream) -> None:
        """Behind what the stream was given so far."""
        stream.queue.append(("event", self))


class FakeStream:
    """Work, events and waits in a row."""

    def __init__(self) -> None:
        self.queue: list[tuple[str, Any]] = []

    def wait_event(self, event: FakeEvent) -> None:
        """Nothing behind goes on before the event is done."""
        self.queue.append(("wait", event))

    def ready(self) -> bool:
        """Whether the first in the row may happen."""
        kind, what = self.queue[0]
        return kind != "wait" or what.done

    def step(self) -> None:
        """It happens."""
        kind, what = self.queue.pop(0)
        if kind == "event":
            what.done = True
        elif kind == "work":
            what()


class OnMachine(Prefetcher):
    """The prefetcher on that machine: copies are work of its side stream."""

    def __init__(self, made: AttentionPlan, machine: Machine, **options: Any) -> None:
        super().__init__(made, "cpu", **options)
        self.cuda, self._side = machine, machine.side

    def _copy(self, slot: Slot, key: tuple[int, int]) -> None:
        self._side.queue.append(("work", lambda: slot.bits.copy_(self.host[key])))


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_loop_gets_its_blocks_ahead(depth: int) -> None:
    """A sampling loop, guided or not, gets every layer's blocks; only the first copy is late."""
    made = plan()
    for passes in (1, 2):
        ahead = Prefetcher(made, "cpu", steps=9, passes=passes, depth=depth)
        for step in range(9):
            for layer in list(range(3)) * passes:
                bits = ahead.take(layer, step)
                np.testing.assert_array_equal(bits.numpy(), made.bits(layer, step, 9))
        assert ahead.misses == 1


@settings(max_examples=60)
@given(data=st.data(), depth=st.integers(2, 4), seed=st.integers(0, 2**20))
def test_any_sequence_under_any_interleaving(data: st.DataObject, depth: int, seed: int) -> None:
    """What kernels read on the caller's stream is right, however late copies and kernels run.

    Without the wait for a copy a kernel would read what was there before, without the wait for the
    kernel a copy would overwrite what it reads.
    """
    made, machine = plan(), Machine(seed)
    ahead = OnMachine(made, machine, depth=depth)
    wrong: list[tuple[int, int]] = []

    def kernel(bits: Any, wanted: Any, at: tuple[int, int]) -> Any:
        def work() -> None:
            if not np.array_equal(bits.numpy(), wanted):
                wrong.append(at)

        return work

    loop = [(layer, step) for step in range(6) for layer in range(3)]
    taken = data.draw(
        st.one_of(st.just(loop), st.lists(st.sampled_from(loop), min_size=1, max_size=12))
    )
    for layer, step in taken:
        bits = ahead.take(layer, step)
        for _ in range(data.draw(st.integers(0, 2))):
            machine.main.queue.append(("work", kernel(bits, made.bits(layer, step), (layer, step))))
        machine.run(data.draw(st.integers(0, 3)))
    machine.run()
    assert not wrong


@pytest.mark.parametrize("forgotten", ["copied", "used"])
def test_the_stand_in_sees_a_missing_wait(forgotten: str) -> None:
    """If a wait is left out, some interleaving of the machine above shows it."""
    seen = 0
    for seed in range(30):
        made, machine = plan(), Machine(seed)
        ahead, found = OnMachine(made, machine), []
        if forgotten == "copied":
            machine.main.wait_event = lambda event: None  # type: ignore[method-assign]
        else:
            machine.side.wait_event = lambda event: None  # type: ignore[method-assign]

        def kernel(bits: Any, wanted: Any, out: list[bool]) -> Any:
            return lambda: out.append(np.array_equal(bits.numpy(), wanted))

        for step in range(2):
            for layer in range(3):
                work = kernel(ahead.take(layer, step), made.bits(layer, step), found)
                machine.main.queue.append(("work", work))
        machine.run()
        seen += not all(found)
    assert seen


def test_maps_and_bad_use() -> None:
    """Unpacked maps equal the plan's; layers, steps, depths out of range and empty rows raise."""
    made = plan()
    ahead = Prefetcher(made, "cpu")
    np.testing.assert_array_equal(ahead.kept(1, 4).numpy(), made.kept(1, 4))
    assert unpacked(torch.tensor([5], dtype=torch.uint8), (3,)).tolist() == [True, False, True]
    for layer, step in ((3, 0), (-1, 0), (0, 6)):
        with pytest.raises(InputError, match="0 to"):
            ahead.take(layer, step)
    with pytest.raises(InputError, match="depth of at least 2"):
        Prefetcher(made, "cpu", depth=1)
    empty = np.ones((1, 5, 5), bool)
    empty[0, 3] = False
    order = [[orders.identity(GRID)]]
    bad = attention_plan("m", GRID, (16, 16), order, [empty])
    with pytest.raises(InputError, match="first row 3 of head 0"):
        Prefetcher(bad, "cpu")


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    """Kernels on the caller's stream read the plan's blocks, two loops over, in pinned copies."""
    made = plan(layers=5, heads=8)
    ahead = Prefetcher(made, "cuda", passes=2)
    assert ahead.host.is_pinned()
    found = []
    for step in range(6):
        for layer in list(range(5)) * 2:
            bits = ahead.take(layer, step)
            torch.cuda._sleep(200_000)
            found.append((bits.clone(), made.bits(layer, step)))
    torch.cuda.synchronize()
    assert ahead.misses == 1
    assert all(np.array_equal(a.cpu().numpy(), b) for a, b in found)


@pytest.mark.gpu
@pytest.mark.alone
def test_it_costs_next_to_nothing() -> None:
    """In a loop over layers of Wan-14B's size at density 0.3, under 1 % of attention's time.

    Attention runs on blocks that lie on the device in both loops; one of them fetches each layer's
    7 MB besides.  Medians of rounds by turns; the message gives the rate of the bus.
    """
    from kdsl.runtime import build

    grid, heads, layers = Grid(frames=21, height=45, width=80), 40, 4
    kept = np.random.default_rng(0).random((heads, 1182, 1182)) < 0.3
    kept[..., 0] = True
    order = [[orders.identity(grid)] * heads] * layers
    steps = ((0, 0), (1, 1))
    made = attention_plan("wan", grid, (64, 64), order, [kept] * (2 * layers), steps=steps)
    op = build(made.spec(0, head_dim=128), tables=made.tables(0, 0))
    q, k, v = torch.randn(3, 1, heads, grid.tokens, 128, device="cuda", dtype=torch.bfloat16)
    ahead = Prefetcher(made)

    def loop(fetch: bool) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for step in range(2):
            for layer in range(layers):
                if fetch:
                    ahead.take(layer, step)
                op(q, k, v)
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end))

    loop(True), loop(False)
    rounds = [
        (loop(True), loop(False)) if i % 2 else (loop(False), loop(True))[::-1] for i in range(8)
    ]
    with_it, without = (float(np.median(x)) for x in zip(*rounds, strict=True))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    ahead.slots[0].bits.copy_(ahead.host[0, 0], non_blocking=True)
    end.record()
    torch.cuda.synchronize()
    rate = ahead.host[0, 0].numel() / start.elapsed_time(end) / 1e6
    assert with_it <= 1.01 * without, f"{with_it} ms with, {without} without; bus {rate:.1f} GB/s"
