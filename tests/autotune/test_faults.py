"""Everything that can happen to a candidate, in one run, on every kind of database."""

from __future__ import annotations

from collections import Counter

import pytest

from kdsl.autotune.measuring import Bench
from kdsl.autotune.measuring.bench import Patience
from kdsl.autotune.measuring.fake import FakeCard
from kdsl.autotune.session.budget import Budget
from kdsl.autotune.session.campaign import PresentGpu
from kdsl.autotune.store import Store
from kdsl.autotune.store.checkup import examine
from tests.autotune.made_up import H100, legal, small_job
from tests.autotune.test_tuner import FACTORS, measurements, tune

FAULTS = (
    ({"num_warps": 8, "num_stages": 1}, "wrong"),
    ({"num_warps": 8, "num_stages": 2}, "wrong_later"),
    ({"num_warps": 8, "num_stages": 3}, "lie"),
    ({"num_warps": 8, "num_stages": 4}, "oom"),
    ({"num_warps": 4, "num_stages": 1, "block_n": 32}, "smem"),
    ({"num_warps": 4, "num_stages": 1, "block_n": 64}, "illegal_access"),
    ({"num_warps": 4, "num_stages": 2, "block_n": 64, "loads": "pointer"}, "kill"),
    ({"num_warps": 4, "num_stages": 4, "block_n": 64, "loads": "pointer"}, "hang"),
    ({"num_warps": 4, "num_stages": 3, "block_n": 64, "loads": "pointer"}, "hang_compile"),
    ({"num_warps": 4, "num_stages": 2, "block_n": 64, "loads": "descriptor"}, "compile_error"),
    ({"num_warps": 4, "num_stages": 4, "block_n": 64, "loads": "descriptor"}, "throttle"),
)
STATUS = {
    "wrong": "wrong", "wrong_later": "wrong", "lie": "too_fast", "oom": "oom", "smem": "smem",
    "illegal_access": "crash", "kill": "crash", "hang": "run_timeout",
    "hang_compile": "compile_timeout", "compile_error": "compile_error", "throttle": "ok", "": "ok",
}  # fmt: skip
SHORT = Patience(compile=1.0, check=1.0, time=1.0)


@pytest.fixture
def card() -> FakeCard:
    """A GPU on which the fastest settings all fail somehow."""
    return FakeCard(base_us=100.0, factors=FACTORS, faults=FAULTS, noise=0.002)


def test_every_fault_is_a_row_and_none_wins(store: Store, card: FakeCard) -> None:
    """Hangs, crashes, illegal accesses, wrong results, impossible times, throttling and lack of
    memory: each candidate has a row with its own status and a reason, once but for the finals; the
    best is the fastest of the sound ones, and the next run tries nothing again."""
    with Bench(card, patience=SHORT) as bench:
        whole = Budget(legal(small_job(), H100))
        tally, pool, _ = tune(store, PresentGpu(H100, bench), budget=whole)
        again, second, _ = tune(store, PresentGpu(H100, bench), budget=whole)
    assert (again.new, second.asked) == (0, [])
    found = measurements(store)
    seen = {card.fault(params) for _, params in found}
    assert seen == {fault for _, fault in FAULTS} | {""}
    for row, params in found:
        assert row.status == STATUS[card.fault(params)], (row, params)
        assert (row.status == "ok") == (row.reason == "")
    counts = Counter(row.candidate_id for row, _ in found)
    assert len(counts) == len(pool.asked) == legal(small_job(), H100)
    assert all(n in (1, 3) for n in counts.values())
    assert sum(n == 3 for n in counts.values()) <= 4
    sound = [params for row, params in found if row.status == "ok"]
    best = min(sound, key=card.time_us)
    assert card.time_us(tally.ranking[0].params) <= 1.01 * card.time_us(best)
    (first,) = store.bests().values()
    assert first.median_us == tally.ranking[0].median_us
    subjects = {s.subject for s in examine(store) if not s.sound}
    assert subjects <= {"rows survive a power cut"}
