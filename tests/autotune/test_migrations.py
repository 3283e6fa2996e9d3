"""Databases of older versions: read as they are, brought up to date when they are written."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from kdsl.autotune.store import Store, database
from kdsl.errors import StoreError
from kdsl.runtime.records import Place, Run, Workload, default_sources, jsonl, tables
from kdsl.runtime.records.link import is_server
from kdsl.runtime.records.rows import SCHEMA_VERSION, TABLES
from tests import postgres

OLD = Path(__file__).with_name("schema_1.sql")
ROWS = 11
BEST = '{"block_q":128,"x":0.1,"y":true}'


@pytest.fixture
def old(new_place: Callable[[], Place], request: pytest.FixtureRequest) -> Place:
    """A database that version 1 made: a workload, three candidates, the default within noise."""
    place = new_place()
    if is_server(place):
        server: postgres.Server = request.getfixturevalue("server")
        for statement in tables.statements(OLD.read_text()):
            server.ask(statement, str(place).rpartition("/")[2])
    else:
        with closing(sqlite3.connect(place)) as link:
            link.executescript(OLD.read_text())
    return place


def test_an_old_database_is_read_as_it_is(old: Place) -> None:
    """A look-up does not change an old database, and finds what is in it."""
    with default_sources(old) as opened:
        (workload,) = opened[0].workloads("attention")
        assert workload.program == "p1"
        assert len(list(opened[0].trials(workload.id))) == 3
    with Store(old, write=False) as store:
        assert store.version == 1
        assert len(list(store.rows())) == ROWS


def test_an_old_database_is_brought_up_to_date(old: Place) -> None:
    """Opened to write it has the new columns and all its rows under their old ids; the best is the
    same one, and new rows go in beside the old ones. A second opening changes nothing."""
    with Store(old, write=False) as store:
        before, best = list(store.rows()), store.bests()
    for _ in range(2):
        with Store(old) as store:
            assert store.version == SCHEMA_VERSION
            assert list(store.rows()) == before
            assert [row["id"] for t in TABLES for row in store.values(t)] == [r.id for r in before]
            assert store.bests() == best
    with Store(old) as store:
        run = store.begin("x", part_of=next(r.id for r in before if isinstance(r, Run)))
        assert run in set(store.rows())
        for table in TABLES:
            (one, *_) = store.values(table)
            assert one.keys() == {"id", *tables.kinds(table)}


def test_steps_are_taken_in_order(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several versions behind, each step is taken once; what is newer than the code is refused."""
    with Store(place) as store:
        store.add(Workload(op="attention", program="p", dtypes={}, dims={}))
    for module in (database, jsonl):
        monkeypatch.setattr(module, "SCHEMA_VERSION", SCHEMA_VERSION + 2)
    steps = {
        SCHEMA_VERSION: ["CREATE TABLE two (x TEXT)"],
        SCHEMA_VERSION + 1: ["CREATE TABLE three (x TEXT)", "DROP TABLE two"],
    }
    monkeypatch.setattr(database, "MIGRATIONS", steps)
    for _ in range(2):
        with Store(place) as store:
            assert len(list(store.rows())) == 1
            assert store.version == SCHEMA_VERSION + 2
            assert store.link.fetch("SELECT COUNT(*) AS n FROM three") == [{"n": 0}]
    monkeypatch.undo()
    with pytest.raises(StoreError, match=f"newer kdsl: schema version {SCHEMA_VERSION + 2}"):
        Store(place)


def test_a_step_that_fails_leaves_the_old_version(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration is one transaction: half of one does not stay."""
    Store(place).close()
    for module in (database, jsonl):
        monkeypatch.setattr(module, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    steps = {SCHEMA_VERSION: ["CREATE TABLE two (x TEXT)", "CREATE TABLE two (x TEXT)"]}
    monkeypatch.setattr(database, "MIGRATIONS", steps)
    with pytest.raises(StoreError, match="cannot be used"):
        Store(place)
    monkeypatch.undo()
    with Store(place) as store:
        assert store.version == SCHEMA_VERSION
        with pytest.raises(StoreError):
            store.link.fetch("SELECT * FROM two")


def test_every_version_has_its_step() -> None:
    """From each released version a path leads to this one."""
    assert set(database.MIGRATIONS) == set(range(1, SCHEMA_VERSION))
