"""From a compiled candidate to its outcome."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kdsl import targets
from kdsl.autotune.compiling import Built
from kdsl.autotune.measuring import Bench
from kdsl.autotune.measuring.fake import FakeCard
from kdsl.autotune.session.evaluate import (
    FINAL_ROUNDS,
    FINAL_ROWS,
    Measurer,
    Predictor,
    finalists,
    floor_us,
)
from kdsl.autotune.session.outcome import Outcome
from kdsl.runtime.predict import Figures, Loading, physical_us
from kdsl.work import Work
from tests.autotune.made_up import A100, H100, small_job

BUILT = Built("ok", registers=64, spill_bytes=0, shared_bytes=8192, warps=4, binary_hash="b")
JOB = small_job()
PARAMS = JOB.tunable.default(A100)


@pytest.mark.parametrize(
    ("built", "status", "said"),
    [
        (Built("compile_error", "no such thing"), "compile_error", "no such thing"),
        (Built("compile_timeout", "killed"), "compile_timeout", "killed"),
        (replace(BUILT, shared_bytes=170_000), "smem", "170000 bytes of shared memory"),
        (replace(BUILT, registers=255, warps=16), "smem", "255 registers"),
    ],
)
def test_what_cannot_run_is_not_timed(built: Built, status: str, said: str) -> None:
    """A kernel that did not compile, or of which no block fits, has a status and a reason."""
    outcome = Predictor(JOB, A100).evaluate(PARAMS, built, None)
    assert outcome.status == status
    assert said in outcome.reason
    assert outcome.median_us is None


def test_a_prediction_uses_the_compilers_figures() -> None:
    """Registers, spills and shared memory are the binary's, not the static estimate."""
    predictor = Predictor(JOB, A100)
    work = JOB.tunable.work(PARAMS, A100)
    fine = predictor.evaluate(PARAMS, BUILT, None)
    wanted = physical_us(work, A100, Loading.of(work, A100, Figures(64, 0, 8192)))
    assert fine.median_us == wanted
    spilling = predictor.evaluate(PARAMS, replace(BUILT, spill_bytes=4096), None)
    assert spilling.median_us is not None
    assert spilling.median_us > wanted
    assert predictor.finals([fine], fine) == []


def work_of(flop: float, bytes_: float, unit: str = "float16") -> Work:
    """Work of so many operations and bytes."""
    return Work(flop, flop, bytes_, unit, 1, 128, 0, np.array([1]))


def test_the_floor_is_what_the_data_sheet_allows() -> None:
    """Operations at 1.1 times the peak, bytes beyond the L2 cache at 1.1 times the bandwidth."""
    peak = H100.peak("float16")
    assert peak is not None
    assert floor_us(work_of(peak * 1.1, 0), H100) == pytest.approx(1e6)
    moved = H100.bandwidth * 1.1 + H100.l2_bytes
    assert floor_us(work_of(0, moved), H100) == pytest.approx(1e6)
    assert floor_us(work_of(0, H100.l2_bytes), H100) == 0
    assert floor_us(work_of(peak, 0, "int3"), H100) == 0
    assert floor_us(work_of(peak, 0), replace(H100, live=True)) == 0


def test_real_kernels_are_above_the_floor() -> None:
    """The best attention rate measured on an H100 (708 TFLOP/s of 989) is not called impossible."""
    peak = targets.get("h100").peak("bfloat16")
    assert peak is not None
    us = 1e12 / 708e12 * 1e6
    assert us > floor_us(work_of(1e12, 0, "bfloat16"), H100)


@pytest.fixture
def measurer() -> Any:
    """Makes measurers on a card, and ends their processes."""
    benches = []

    def make(card: FakeCard) -> Measurer:
        bench = Bench(card)
        benches.append(bench)
        return Measurer(small_job(), H100, bench, 0)

    yield make
    for bench in benches:
        bench.close()


def test_a_measurement_has_an_interval(measurer: Any) -> None:
    """Median within its interval, samples kept, and no time is below the floor."""
    outcome = measurer(FakeCard(base_us=50.0)).evaluate(PARAMS, BUILT, None)
    assert outcome.status == "ok"
    low, high = outcome.interval_us
    assert low <= outcome.median_us <= high
    assert outcome.median_us == pytest.approx(50, rel=0.05)
    assert len(outcome.samples) >= 6


def test_a_lying_timer_is_found_out(measurer: Any) -> None:
    """A time that the GPU cannot reach is ``too_fast``, with both numbers in the reason."""
    card = FakeCard(base_us=50.0, faults=((PARAMS, "lie"),))
    outcome = measurer(card).evaluate(PARAMS, BUILT, None)
    assert outcome.status == "too_fast"
    assert "below what the GPU can do" in outcome.reason


def test_equal_binaries_are_measured_once(measurer: Any) -> None:
    """A binary seen before, launched in the same shape, gives its times without being run; with
    another number of warps it is run."""
    one = measurer(FakeCard(base_us=50.0, noise=0.05))
    first = one.evaluate({**PARAMS, "num_stages": 1}, BUILT, None)
    again = one.evaluate({**PARAMS, "num_stages": 2}, BUILT, None)
    other = one.evaluate({**PARAMS, "num_warps": 8}, replace(BUILT, warps=8), None)
    assert again.samples == first.samples
    assert again.params["num_stages"] == 2
    assert other.samples != first.samples


def outcome(name: int, us: float, status: str = "ok") -> Outcome:
    """A timed candidate."""
    return Outcome({**PARAMS, "num_stages": name}, status, median_us=us, interval_us=(us, us))


def test_finalists_are_the_best_and_the_default() -> None:
    """The three fastest sound ones, and the default besides, once."""
    some = [outcome(i, us) for i, us in enumerate((5.0, 3.0, 4.0, 9.0, 7.0))]
    bad = outcome(9, 1.0, "wrong")
    assert finalists([*some, bad], some[3]) == [some[1], some[2], some[0], some[3]]
    assert finalists(some, some[1]) == [some[1], some[2], some[0]]
    assert finalists(some, bad) == [some[1], some[2], some[0]]


def test_finals_give_two_more_rows_each(measurer: Any) -> None:
    """Finalists are timed again by turns, in rows of at least 20 samples."""
    one = measurer(FakeCard(base_us=50.0, factors={"num_stages": {1: 1.0, 2: 2.0}}))
    both = [outcome(1, 50.0), outcome(2, 100.0)]
    rows = one.finals(both, both[1])
    assert len(rows) == 2 * FINAL_ROWS
    assert all(len(r.samples) == FINAL_ROUNDS >= 20 for r in rows)
    assert [r.params["num_stages"] for r in rows] == [1, 1, 2, 2]
    assert rows[0].median_us == pytest.approx(50, rel=0.05)
    assert rows[2].median_us == pytest.approx(100, rel=0.05)
    assert one.finals(both[:1], None) == []
