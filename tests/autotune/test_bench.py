"""The measuring process from outside: killed, replaced, tested again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdsl.autotune.measuring import Bench, DeviceIll, Opening
from kdsl.autotune.measuring.bench import Patience
from kdsl.autotune.measuring.fake import FakeCard
from kdsl.autotune.measuring.lock import hold
from kdsl.errors import KdslError

OPENING = Opening("{}", {})
FINE, BAD = {"x": 1}, {"x": 2}
SHORT = Patience(compile=1.5, check=1.5, time=1.5)


def bench(fault: str, scar: Path | None = None) -> Bench:
    """A bench on which ``BAD`` has a fault."""
    made = Bench(FakeCard(faults=((BAD, fault),), scar=scar), patience=SHORT)
    made.open(OPENING)
    return made


def test_facts_and_times_come_through() -> None:
    """A process of its own measures, and says what it runs on."""
    with bench("wrong") as one:
        assert one.facts.name == "fake"
        assert one.measure(FINE).status == "ok"
        assert one.measure(BAD).status == "wrong"
        assert one.replaced == 0


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("hang", "run_timeout", "of time"),
        ("hang_compile", "compile_timeout", "of compile"),
        ("kill", "crash", "SIGSEGV"),
        ("illegal_access", "crash", "illegal memory access"),
    ],
)
def test_a_lost_process_is_replaced(fault: str, status: str, said: str) -> None:
    """After a hang, a crash or an illegal access a fresh process goes on where this one ended."""
    with bench(fault) as one:
        assert one.measure(FINE).status == "ok"
        lost = one.measure(BAD)
        assert lost.status == status
        assert said in lost.reason
        assert one.replaced == 1
        assert one.measure(FINE).status == "ok"
        assert one.replaced == 1


@pytest.mark.parametrize("fault", ["oom", "smem", "compile_error", "wrong"])
def test_harmless_faults_keep_the_process(fault: str) -> None:
    """What is the candidate's own fault costs no new process."""
    with bench(fault) as one:
        assert one.measure(BAD).status == fault
        assert one.measure(FINE).status == "ok"
        assert one.replaced == 0


def test_an_ill_device_stops_everything(tmp_path: Path) -> None:
    """If what was right before fails in the fresh process, the device is ill: no candidate is
    blamed for it."""
    with bench("illegal_access", tmp_path / "scar") as one:
        assert one.measure(FINE).status == "ok"
        with pytest.raises(DeviceIll, match="what it could do before now fails"):
            one.measure(BAD)


def test_without_a_canary_the_first_is_only_a_crash(tmp_path: Path) -> None:
    """Before anything was right there is nothing to test a replacement with."""
    with bench("kill") as one:
        assert one.measure(BAD).status == "crash"
        assert one.measure(FINE).status == "ok"


def test_finals_survive_a_fault() -> None:
    """Finals that hang give no samples; the bench is usable afterwards."""
    with bench("hang") as one:
        one.measure(FINE)
        assert one.finals([FINE, BAD], 2) == [[], []]
        assert [len(s) for s in one.finals([FINE, {"x": 3}], 5)] == [5, 5]


def test_a_process_that_cannot_start() -> None:
    """The error says what it wrote last."""
    with pytest.raises(DeviceIll, match="did not start"):
        Bench(object(), patience=SHORT)  # type: ignore[arg-type]


def test_two_cannot_hold_one_gpu(tmp_path: Path) -> None:
    """The second is refused with the pid of the first, another card is free, and the lock goes
    with its holder."""
    with hold("card", tmp_path) as descriptor:
        assert os.fstat(descriptor)
        with pytest.raises(KdslError, match=f"pid {os.getpid()}"), hold("card", tmp_path):
            pass
        with hold("other", tmp_path):
            pass
    with hold("card", tmp_path):
        pass


def test_a_child_that_still_runs_keeps_the_lock(tmp_path: Path) -> None:
    """The measuring process holds the lock open as well: while it lives nobody else measures."""
    with hold("card", tmp_path) as descriptor:
        one = Bench(FakeCard(), keep=(descriptor,))
    with one, pytest.raises(KdslError, match="another process"), hold("card", tmp_path):
        pass
    with hold("card", tmp_path):
        pass
