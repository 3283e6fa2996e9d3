"""Databases of every kind, synthetic recordings, and the command line on a made-up machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdsl.autotune.cli import main
from kdsl.autotune.recordings import Held, Recording, recordings
from kdsl.autotune.store import Store
from kdsl.runtime.records import Place
from tests import postgres
from tests.autotune import synthetic
from tests.autotune.made_up import FakeHardware

Call = Callable[..., tuple[int, str, str]]

SMALL: tuple[tuple[str, float | None], ...] = (
    ("clip", None),
    ("flux-dev-1024", None),
    ("wan2.1-1.3b-480p", 0.1),
    ("wan2.1-1.3b-480p", None),
)


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


@pytest.fixture(autouse=True)
def no_calibration_of_the_machine(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see neither the database nor the calibration of whoever runs them."""
    monkeypatch.setenv("KDSL_DB", f"{tmp_path}/tuning.db")


@pytest.fixture(scope="session")
def held() -> Held:
    """Synthetic rows of four workloads on a made-up H100."""
    return synthetic.held(SMALL)


@pytest.fixture(scope="session")
def found(held: Held) -> list[Recording]:
    """Their recordings, by name."""
    return recordings(held)[0]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Calls ``main`` on a made-up machine with a database of its own: code, output, errors."""
    monkeypatch.setenv("KDSL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("KDSL_DB", str(tmp_path / "tuning.db"))

    def run(*words: object, hardware: FakeHardware | None = None) -> tuple[int, str, str]:
        made = hardware or FakeHardware()
        capsys.readouterr()
        code = main([str(w) for w in words], hardware=lambda: made)
        return code, *capsys.readouterr()

    return run
