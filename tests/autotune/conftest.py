"""Databases of every kind, for tests that must hold on all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdsl.autotune.store import Store
from kdsl.runtime.records import Place
from tests import postgres


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A PostgreSQL server; without one tests are skipped, but never in CI."""
    reason = postgres.why_not()
    if reason:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with postgres.Server() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def new_place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Place]:
    """Makes places of new databases, of each kind in turn."""
    if request.param == "postgresql":
        started: postgres.Server = request.getfixturevalue("server")
        return started.new
    count = iter(range(1000))
    return lambda: tmp_path / f"{next(count)}.db"


@pytest.fixture
def place(new_place: Callable[[], Place]) -> Place:
    """The place of a new database."""
    return new_place()


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    """An empty store."""
    with Store(place) as opened:
        yield opened
