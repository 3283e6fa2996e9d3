"""The record of a run of the GPU tests: what it counts, and when two runs join."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rows
from benchmarks.gpu_record import Recorder
from kdsl.errors import StoreError

torch: Any = pytest.importorskip("torch")


def report(name: str, outcome: str, when: str = "call", reason: Any = "") -> Any:
    """What pytest tells of one phase of a test."""
    held = pytest.TestReport(name, ("", 0, ""), {}, outcome, reason, when)  # type: ignore[arg-type]
    return held


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU by name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(rows, "versions", dict)


def finished(folder: Path, *reports: Any, add: bool = False) -> dict[str, Any]:
    """The record after a run with these reports."""
    recorder = Recorder(folder, "abc", add)
    for one in reports:
        recorder.pytest_runtest_logreport(one)
    recorder.pytest_sessionfinish()
    held: dict[str, Any] = json.loads((folder / "Some-GPU" / "gpu-tests.json").read_text())
    return held


@pytest.mark.usefixtures("card")
def test_outcomes_are_counted(tmp_path: Path) -> None:
    """A failing teardown counts against a test that passed; reasons stand beside what did not."""
    found = finished(
        tmp_path,
        report("a", "passed"),
        report("b", "passed"),
        report("b", "failed", "teardown", "boom"),
        report("c", "skipped", "setup", ("file", 3, "Skipped: too little memory")),
    )
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["not passed"] == {"b": "boom", "c": "Skipped: too little memory"}
    assert found["sources"] == rows.sources_hash()


@pytest.mark.usefixtures("card")
def test_a_second_run_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both halves count together; a record of other sources is refused and left as it is."""
    finished(tmp_path, report("a", "passed"), report("b", "failed", reason="boom"))
    found = finished(tmp_path, report("c", "passed"), add=True)
    assert found["tests"] == {"a": "passed", "b": "failed", "c": "passed"}
    assert (found["passed"], found["failed"]) == (2, 1)
    monkeypatch.setattr(rows, "sources_hash", lambda: "other")
    with pytest.raises(StoreError, match="the record on file is of sources"):
        finished(tmp_path, report("d", "passed"), add=True)
    held = json.loads((tmp_path / "Some-GPU" / "gpu-tests.json").read_text())
    assert held == found
