"""Several drivers of one search, through a study that may vanish."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest

from kdsl.autotune.search import Space, StudyAt, make_search
from kdsl.autotune.search.shared import STALE, Shared
from kdsl.autotune.search.space import Params, point
from kdsl.autotune.search.studies import open_storage
from tests.autotune.test_search import CHOICES, DEFAULT, cost, legal
from tests.postgres import Server

SPACE = Space(CHOICES, legal)


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a study, of each kind."""
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("server")
        return server.new()
    return str(tmp_path / "s.log") if request.param == "journal" else f"sqlite:///{tmp_path}/s.db"


def driver(place: str, name: str, seed: int = 0, **options: Any) -> Shared:
    """A driver of the study."""
    at = StudyAt(place, "a study", name)
    return Shared(SPACE, first=[DEFAULT], prior=lambda p: 0.0, seed=seed, at=at, **options)


def test_drivers_do_not_repeat_each_other(study: str) -> None:
    """Two that take turns, several proposals under way each, share all but the default, which each
    tries itself, and each is told of the other's results."""
    one, two = driver(study, "one"), driver(study, "two", 1)
    tried: list[Params] = []
    for _ in range(3):
        batch = [(d, d.ask()) for d in (one, two) for _ in range(2)]
        for search, params in batch:
            assert params is not None
            assert legal(params) is None
            tried.append(params)
            search.tell(params, cost(params))
    counts = Counter(map(point, tried))
    assert counts.pop(point(DEFAULT)) == 2
    assert set(counts.values()) == {1}
    for search in (one, two):
        search.ask()
        assert counts.keys() <= search._told.keys()
        assert search.alone == ""
        search.close()


def test_drivers_at_the_same_time(tmp_path: Path) -> None:
    """Four threads go through a whole space with one study: every point is tried, few twice."""
    choices: dict[str, tuple[Any, ...]] = {"a": (1, 2, 4, 8), "b": (1, 2, 3, 4)}
    space = Space(choices, lambda p: None)
    tried: list[Params] = []

    def work(n: int) -> None:
        search = make_search(
            space,
            first=[{"a": 1, "b": 1}],
            prior=lambda p: 0.0,
            limit=100,
            seed=n,
            study=StudyAt(str(tmp_path / "s.log"), "a study", str(n)),
        )
        while (params := search.ask()) is not None:
            tried.append(params)
            search.tell(params, 1.0)
        search.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = Counter(map(point, tried))
    assert len(counts) == 16
    assert counts.total() <= 16 + 3  # the default once for each


def test_a_claim_ends_with_its_driver(study: str) -> None:
    """What a driver that died was at is nobody's until the claim is old, but its own at once when
    it starts again."""
    dead = driver(study, "one")
    dead.ask()
    claimed = dead.ask()
    assert claimed is not None
    dead.close()
    again = driver(study, "one")
    again._listen()
    assert point(claimed) not in again._busy
    again.close()

    dead = driver(study, "two")
    dead.ask()
    claimed = dead.ask()
    assert claimed is not None
    other = driver(study, "three")
    other._listen()
    assert point(claimed) in other._busy
    other._now = lambda: datetime.now(UTC) + STALE + timedelta(seconds=1)
    other._listen()
    assert point(claimed) not in other._busy
    dead.tell(claimed, 0.1)  # late, but not lost
    other._listen()
    assert other._told[point(claimed)] == 0.1
    for search in (dead, other):
        search.close()


def _drop_tables(place: str, server: Server) -> None:
    name = place.rpartition("/")[2]
    found = server.ask("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", name)
    for (table,) in found:
        server.ask(f"DROP TABLE {table} CASCADE", name)


def test_a_study_may_be_deleted_at_any_time(study: str, request: pytest.FixtureRequest) -> None:
    """A driver whose study vanishes goes on alone with all that it knows: it repeats nothing, and
    finishes what it was at."""
    search = driver(study, "one")
    tried = []
    for _ in range(5):
        params = search.ask()
        assert params is not None
        search.tell(params, cost(params))
        tried.append(params)
    under_way = search.ask()
    assert under_way is not None
    tried.append(under_way)
    if study.startswith("postgresql"):
        _drop_tables(study, request.getfixturevalue("server"))
    elif study.startswith("sqlite"):
        storage = open_storage(study)
        optuna.delete_study(study_name="a study", storage=storage)
        storage.remove_session()  # type: ignore[attr-defined]
        storage.engine.dispose()  # type: ignore[attr-defined]
    else:
        Path(study).unlink()
    search.tell(under_way, cost(under_way))
    for _ in range(8):
        params = search.ask()
        assert params is not None
        search.tell(params, cost(params))
        tried.append(params)
    assert len(set(map(point, tried))) == len(tried)
    search.close()


@pytest.mark.parametrize(
    "place", ["postgresql://a:b@127.0.0.1:1/x", "sqlite:////no/such/folder/x", "/no/such/folder/x"]
)
def test_a_study_that_cannot_be_opened(place: str) -> None:
    """The search goes on without it."""
    search = driver(place, "one")
    assert search.alone
    tried = [search.ask() for _ in range(5)]
    assert tried[0] == DEFAULT
    assert len({point(p) for p in tried if p is not None}) == 5


def test_known_rows_are_told_once(study: str) -> None:
    """Drivers that start with the same rows of the database put them into the study once."""
    known: list[Params] = [DEFAULT, {**DEFAULT, "m": 32}, {**DEFAULT, "kind": "b", "warps": 2}]
    searches = [driver(study, name) for name in ("one", "two")]
    for search in searches:
        for params in known:
            search.tell(params, cost(params))
    trials = searches[0].study.get_trials()
    assert len(trials) == len(known)
    searches[1]._listen()
    assert {at: searches[1]._told[at] for at in map(point, known)} == {
        point(p): cost(p) for p in known
    }
    for search in searches:
        search.close()


def test_the_dashboard_finds_a_readable_study(study: str) -> None:
    """A stored study is one that Optuna's own tools load, with names and values of settings."""
    search = driver(study, "one")
    calls: list[Callable[[], Params | None]] = [search.ask] * 3
    for call in calls:
        params = call()
        assert params is not None
        search.tell(params, cost(params))
    storage = open_storage(study)
    try:
        loaded = optuna.load_study(study_name="a study", storage=storage)
        assert len(loaded.trials) == 3
        assert loaded.best_trial.params.keys() == {"m", "n", "warps", "stages", "kind"}
    finally:
        search.close()
        if isinstance(storage, optuna.storages.RDBStorage):
            storage.remove_session()
            storage.engine.dispose()
