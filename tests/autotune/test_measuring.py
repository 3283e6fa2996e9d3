"""What happens inside the measuring process, over a made-up device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kdsl.autotune.measuring.device import Finals, Opening, Order, Vitals
from kdsl.autotune.measuring.fake import FakeCard, FakeDevice
from kdsl.autotune.measuring.faults import classify, reason
from kdsl.autotune.measuring.race import Rules, median
from kdsl.autotune.measuring.worker import WARM_UP, finals, guarded

OPENING = Opening("{}", {})
FINE, BAD = {"x": 1}, {"x": 2}


def device(fault: str = "", noise: float = 0.01) -> FakeDevice:
    """A device on which ``BAD`` has a fault, and takes twice as long as ``FINE``."""
    card = FakeCard(
        base_us=100.0,
        factors={"x": {1: 1.0, 2: 2.0}},
        noise=noise,
        faults=((BAD, fault),) if fault else (),
    )
    made = card.make()
    made.open(OPENING)
    return made


def run(
    made: FakeDevice, params: dict[str, int], bar: float | None = None
) -> tuple[Any, list[str]]:
    """The timing, and the parts it was announced in."""
    said: list[str] = []
    return guarded(made, Order(params, bar), said.append), said


def test_a_sound_candidate() -> None:
    """Compiled, checked, timed, checked again; its time is the landscape's."""
    timing, said = run(device(), FINE)
    assert said == ["compile", "check", "time", "check"]
    assert timing.status == "ok"
    assert median(timing.samples) == pytest.approx(100, rel=0.02)
    assert timing.error == pytest.approx(1e-3)
    assert timing.clock_mhz == 1000


@pytest.mark.parametrize(
    ("fault", "status", "sticky", "last"),
    [
        ("wrong", "wrong", False, "check"),
        ("wrong_later", "wrong", False, "check"),
        ("oom", "oom", False, "compile"),
        ("smem", "smem", False, "compile"),
        ("compile_error", "compile_error", False, "compile"),
        ("illegal_access", "crash", True, "time"),
    ],
)
def test_each_fault_has_its_status(fault: str, status: str, sticky: bool, last: str) -> None:
    """Faults end as what they are, in the part they happen in; only a lost device is sticky."""
    timing, said = run(device(fault), BAD)
    assert (timing.status, timing.sticky, said[-1]) == (status, sticky, last)
    assert timing.reason
    assert not timing.samples


def test_wrong_before_timing_is_never_timed() -> None:
    """A wrong result is found before any time is taken; one that only shows after is found, too."""
    assert "time" not in run(device("wrong"), BAD)[1]
    timing, said = run(device("wrong_later"), BAD)
    assert "time" in said
    assert "after timing" in timing.reason


def test_a_throttled_device_is_given_a_rest() -> None:
    """When the clock falls during timing the samples are taken again after a rest, a bounded
    number of times, and the row says what clock it ran at."""
    made, rests = device("throttle"), []
    rest = made.rest
    made.rest = lambda: (rests.append(1), rest())[1]  # type: ignore[method-assign]
    timing, _ = run(made, BAD)
    assert len(rests) == 3
    assert timing.status == "ok"
    assert timing.clock_mhz is not None
    assert timing.clock_mhz < 1000


def test_without_a_clock_there_is_no_second_try() -> None:
    """Where nobody says the clock, times are taken once."""
    made = device()
    made.vitals = Vitals  # type: ignore[method-assign]
    timing, _ = run(made, FINE)
    assert timing.status == "ok"
    assert timing.clock_mhz is None


def test_a_loser_stops_early() -> None:
    """A candidate that cannot come below the bar takes one round of samples, and one far above it
    no more than the warm-up."""
    lost, _ = run(device(noise=0.02), BAD, bar=150.0)
    hopeless, _ = run(device(noise=0.02), BAD, bar=100.0)
    free, _ = run(device(noise=0.02), BAD)
    assert len(hopeless.samples) == WARM_UP < len(lost.samples)
    assert len(lost.samples) == Rules().a_round < len(free.samples)


def test_finals_are_taken_by_turns() -> None:
    """Every finalist gets its rounds, one sample at a time, each of them first now and then."""
    made = device(noise=0.0)
    order: list[int] = []
    sample = made.sample

    def spy(params: Any, count: int) -> list[float]:
        if count == 1:
            order.append(params["x"])
        return sample(params, count)

    made.sample = spy  # type: ignore[method-assign]
    taken = finals(made, Finals((FINE, BAD), 4), lambda part: None)
    assert taken == [[100.0] * 4, [200.0] * 4]
    assert order == [1, 2, 2, 1, 1, 2, 2, 1]


def test_finals_report_a_fault() -> None:
    """A finalist that fails now gives the fault instead of samples."""
    timing = finals(device("illegal_access"), Finals((FINE, BAD), 2), lambda part: None)
    assert not isinstance(timing, list)
    assert timing.sticky


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class OutOfResources(Exception):
    """Named as Triton's."""


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ("oom", False)),
        (OutOfResources("out of resource: shared memory"), ("smem", False)),
        (RuntimeError("PassManager::run failed"), ("compile_error", False)),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), ("crash", True)),
        (RuntimeError("CUDA error: misaligned address"), ("crash", True)),
        (ValueError("who knows"), ("crash", True)),
    ],
)
def test_exceptions_are_told_apart(error: Exception, found: tuple[str, bool]) -> None:
    """Known ones have their status and leave the process usable; all others cost the process."""
    assert classify(error) == found


def test_a_reason_is_one_line() -> None:
    """The first line with something in it, with the class, at most 500 characters."""
    assert reason(ValueError("\n  first \nsecond")) == "ValueError: first"
    assert len(reason(ValueError("x" * 1000))) == 500
    assert reason(ValueError()) == "ValueError: no message"


def test_the_landscape_is_the_same_twice() -> None:
    """Opened again, a made-up device repeats its noise: tests over it are exact."""
    made: Callable[[], Any] = lambda: run(device(), FINE)[0].samples  # noqa: E731
    assert made() == made()
    other = replace(device().card, seed=1).make()
    other.open(OPENING)
    assert guarded(other, Order(FINE), lambda part: None).samples != made()
