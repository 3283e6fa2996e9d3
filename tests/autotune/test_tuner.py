"""One workload: order, rows, going on, and what is never done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdsl.autotune.compiling import Built
from kdsl.autotune.measuring import Bench
from kdsl.autotune.measuring.fake import FakeCard
from kdsl.autotune.session.budget import Budget
from kdsl.autotune.session.campaign import AbsentGpu, Campaign, Lab, PresentGpu
from kdsl.autotune.session.ledger import Ledger
from kdsl.autotune.session.outcome import Outcome
from kdsl.autotune.session.tuner import Tally
from kdsl.autotune.store import Store
from kdsl.runtime import keying
from kdsl.runtime.records import Measurement, Place, Run, lookup
from kdsl.runtime.records.rows import Candidate
from tests.autotune.made_up import A100, H100, FakePool, Quiet, params_of, small_job

FACTORS: dict[str, dict[Any, float]] = {
    "block_m": {16: 4.0, 32: 2.0, 64: 1.0},
    "block_n": {16: 3.0, 32: 1.2, 64: 1.0},
    "num_warps": {1: 2.0, 2: 1.4, 4: 1.0, 8: 0.8},
    "num_stages": {1: 1.1, 2: 1.0, 3: 0.9, 4: 1.0, 5: 1.2},
}


TEN = Budget(10)


@pytest.fixture
def new_place(tmp_path: Path) -> Callable[[], Place]:
    """One kind of database will do, but where a test asks for more."""
    return lambda: tmp_path / "tuning.db"


@pytest.fixture
def bench() -> Iterator[Callable[[FakeCard], Bench]]:
    """Makes benches and ends them."""
    made = []

    def make(card: FakeCard) -> Bench:
        made.append(Bench(card))
        return made[-1]

    yield make
    for one in made:
        one.close()


def tune(
    store: Store,
    lab: Lab | None = None,
    *,
    budget: Budget = TEN,
    pool: FakePool | None = None,
    seed: int = 0,
    watch: Quiet | None = None,
) -> tuple[Tally, FakePool, Quiet]:
    """Tune the small job; the tally, and what compiler and screen saw."""
    pool, watch = pool or FakePool(), watch or Quiet()
    target = lab.target if isinstance(lab, PresentGpu) else A100
    campaign = Campaign(
        lab or AbsentGpu(A100), target, pool, store, watch, budget=budget, seed=seed  # type: ignore[arg-type]
    )  # fmt: skip
    run = store.begin("test")
    campaign.run(run, [small_job])
    store.finish(run, complete=True, counts=campaign.counts)
    return campaign.tallies[0], pool, watch


def measurements(store: Store) -> list[tuple[Measurement, dict[str, Any]]]:
    """Measurements with their configurations, in the order they were made."""
    rows = list(store.rows())
    params = {r.id: dict(r.params) for r in rows if isinstance(r, Candidate)}
    return [(r, params[r.candidate_id]) for r in rows if isinstance(r, Measurement)]


def test_the_default_is_first(store: Store) -> None:
    """The first candidate that is compiled and evaluated is the built-in default, and its row says
    so."""
    _, pool, watch = tune(store)
    default = small_job().tunable.default(A100)
    assert pool.asked[0] == watch.outcomes[0].params == default
    rows = [(row.is_default, params == default) for row, params in measurements(store)]
    assert sum(is_default for is_default, _ in rows) == 1
    assert all(is_default == same for is_default, same in rows)


@pytest.mark.parametrize("budget", [Budget(10), Budget(1000), Budget(None, 2.0)])
def test_illegal_points_are_never_compiled(store: Store, budget: Budget) -> None:
    """Whatever the search proposes, the compiler only sees what the static model lets through, and
    no configuration twice."""
    _, pool, _ = tune(store, budget=budget)
    tunable = small_job().tunable
    assert pool.asked
    assert all(tunable.legal(p, A100) is None for p in pool.asked)
    assert len({repr(sorted(p.items())) for p in pool.asked}) == len(pool.asked)


def test_the_space_is_gone_through_within_the_budget(store: Store) -> None:
    """With a budget larger than the legal space every point is tried, once, and none is left."""
    tally, pool, _ = tune(store, budget=Budget(1000))
    assert len(pool.asked) == 28
    assert (tally.new, tally.left, tally.illegal) == (28, 0, 228)


@pytest.mark.parametrize("count", [1, 4])
def test_an_interrupt_right_after_a_row(
    store: Store, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Ctrl-C between writing a row and counting it: the tally counts every row in the database."""
    add = Ledger.add

    def interrupted(ledger: Ledger, outcome: Outcome) -> Measurement:
        row = add(ledger, outcome)
        if len(measurements(store)) == count:
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(Ledger, "add", interrupted)
    lab, watch = AbsentGpu(A100), Quiet()
    campaign = Campaign(lab, A100, FakePool(), store, watch, budget=TEN)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        campaign.run(store.begin("test"), [small_job])
    (tally,) = campaign.tallies
    assert len(measurements(store)) == count == tally.new == campaign.counts["ok"]
    assert tally.default is not None


def test_a_seed_gives_the_same_rows(tmp_path: Path) -> None:
    """The same seed tries the same candidates in the same order; another one does not."""
    orders = []
    for number, seed in enumerate((1, 1, 2)):
        with Store(tmp_path / f"{number}.db") as store:
            orders.append(tune(store, seed=seed, budget=Budget(20))[1].asked)
    assert orders[0] == orders[1] != orders[2]


def test_predicted_rows_are_predictions(store: Store) -> None:
    """For an absent GPU every row is ``predicted``, has the compiler's figures and no samples."""
    tally, _, _ = tune(store)
    rows = [row for row, _ in measurements(store)]
    assert len(rows) == tally.new == 10
    assert {row.kind for row in rows} == {"predicted"}
    assert all(row.registers == 64 and row.shared_bytes == 8192 and row.n == 0 for row in rows)


def test_a_second_run_goes_on(store: Store) -> None:
    """What has a row is neither compiled nor counted again; a larger budget adds the difference."""
    first, pool, _ = tune(store)
    again, second_pool, _ = tune(store)
    assert (again.known, again.new, second_pool.asked) == (10, 0, [])
    assert again.ranking[0].params == first.ranking[0].params
    more, third_pool, _ = tune(store, budget=Budget(16))
    assert (more.known, more.new) == (10, 6)
    assert not [p for p in third_pool.asked if p in pool.asked]
    assert len(measurements(store)) == 16


def test_an_interrupted_run_loses_nothing(store: Store) -> None:
    """Cut off after the fourth candidate, four rows are there, and the next run makes the rest."""

    def interrupt(tally: Tally) -> None:
        if tally.new == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(store, watch=Quiet(interrupt))
    assert len(measurements(store)) == 4
    tally, _, _ = tune(store)
    assert (tally.known, tally.new) == (4, 6)


def test_failures_are_rows_and_not_repeated(store: Store) -> None:
    """A candidate that does not compile is stored with its reason, told to the search, counted
    against the budget, and not tried again."""

    def broken(params: Any) -> Built | None:
        return Built("compile_error", "too clever") if params["num_warps"] == 8 else None

    tally, _, _ = tune(store, pool=FakePool(broken), budget=Budget(28))
    failed = [row for row, params in measurements(store) if params["num_warps"] == 8]
    assert failed
    assert all(r.status == "compile_error" and r.reason == "too clever" for r in failed)
    assert tally.counts["compile_error"] == len(failed) == 28 - tally.counts["ok"]
    assert all(o.params["num_warps"] != 8 for o in tally.ranking)
    assert tune(store, budget=Budget(28))[1].asked == []


def test_a_broken_default_does_not_stop_the_search(store: Store) -> None:
    """If the default fails, the others are still tried; there is no gain to speak of."""
    default = small_job().tunable.default(A100)
    pool = FakePool(lambda p: Built("compile_error", "no") if p == default else None)
    tally, _, _ = tune(store, pool=pool)
    assert tally.default is not None
    assert tally.default.status == "compile_error"
    assert tally.gain is None
    assert len(tally.ranking) == 9


def test_time_is_kept(store: Store) -> None:
    """A time budget ends the run about when it says, with the default done first."""
    started = time.monotonic()
    tally, pool, _ = tune(store, budget=Budget(None, 1.5), pool=FakePool(seconds=0.2))
    assert time.monotonic() - started < 6
    assert 1 <= tally.new < 28
    assert pool.asked[0] == small_job().tunable.default(A100)
    assert tally.left is None


def test_a_measured_run_finds_the_fast_ones(
    store: Store, bench: Callable[[FakeCard], Bench]
) -> None:
    """On a made-up GPU the stored choice is the landscape's best within a few per cent, at least
    as fast as the default, and the finalists have three rows each."""
    card = FakeCard(base_us=100.0, factors=FACTORS, noise=0.005)
    tally, _, _ = tune(store, PresentGpu(H100, bench(card)), budget=Budget(40))
    best = min(card.time_us(o.params) for o in tally.outcomes)
    found = tally.ranking[0]
    assert card.time_us(found.params) <= 1.05 * best
    assert tally.default is not None
    assert found.median_us is not None
    assert tally.default.median_us is not None
    assert found.median_us <= tally.default.median_us * 1.01
    rows = [p for _, p in measurements(store)]
    assert max(rows.count(p) for p in rows) == 3
    assert rows.count(small_job().tunable.default(H100)) == 3


def test_a_build_finds_what_was_measured(store: Store, bench: Callable[[FakeCard], Bench]) -> None:
    """The look-up of a build takes the rows of the run, on the rung ``exact``."""
    card = FakeCard(base_us=100.0, factors=FACTORS, noise=0.005)
    lab = PresentGpu(H100, bench(card))
    tally, _, _ = tune(store, lab, budget=Budget(20))
    job = small_job()
    found = lookup(
        keying.key_for(job.tunable, H100),
        legal=lambda p: job.tunable.legal(p, H100),
        default=job.tunable.default(H100),
        sources=[store.source],
    )
    assert found.rung == "exact"
    assert found.config == tally.ranking[0].params
    assert found.expected_us == tally.ranking[0].median_us


def test_measured_and_predicted_do_not_mix(
    store: Store, bench: Callable[[FakeCard], Bench]
) -> None:
    """Predictions for a GPU are not taken for measurements on it: a measured run starts anew."""
    campaign = Campaign(
        AbsentGpu(H100), H100, FakePool(), store, Quiet(), budget=Budget(5)  # type: ignore[arg-type]
    )  # fmt: skip
    campaign.run(store.begin("predict"), [small_job])
    tally, _, _ = tune(store, PresentGpu(H100, bench(FakeCard())), budget=Budget(5))
    assert (tally.known, tally.new) == (0, 5)


def test_runs_are_opened_and_closed(store: Store) -> None:
    """Each run is a row when it starts and another when it ends, with its counts."""
    tune(store)
    runs = [row for row in store.rows() if isinstance(row, Run)]
    opened = [row for row in runs if not row.closes]
    closed = [row for row in runs if row.closes]
    assert [row.closes for row in closed] == [row.id for row in opened]
    assert closed[0].counts == {"ok": 10, "illegal": 228}


def test_jobs_know_their_parameters() -> None:
    """The made-up compiler reads configurations back from compile jobs: the spy sees the truth."""
    tunable = small_job().tunable
    default = tunable.default(H100)
    assert params_of(tunable.ahead_of_time(default, H100)) == default
