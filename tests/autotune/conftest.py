"""Recordings that several tests look at; making them takes seconds."""

from __future__ import annotations

import pytest

from kdsl.autotune.recordings import Held, Recording, recordings
from tests.autotune import synthetic

SMALL: tuple[tuple[str, float | None], ...] = (
    ("clip", None),
    ("flux-dev-1024", None),
    ("wan2.1-1.3b-480p", 0.1),
    ("wan2.1-1.3b-480p", None),
)


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
