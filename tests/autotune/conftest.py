"""The command line on a made-up machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdsl.autotune.cli import main
from tests.autotune.made_up import FakeHardware

Call = Callable[..., tuple[int, str, str]]


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
