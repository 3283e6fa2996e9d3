"""A pytest plugin that records a run of the GPU tests: ``pytest -m gpu -p benchmarks.gpu_record``.

Writes ``<results>/<gpu>/gpu-tests.json``: what passed, failed and was skipped, on which card, for
which commit, and the hash of the sources it covered.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import rows


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the record goes, and the commit where Git is not at hand."""
    group = parser.getgroup("gpu record")
    group.addoption("--results", type=Path, default=rows.ROOT / "benchmarks" / "results")
    group.addoption("--commit", default="")


class Recorder:
    """Counts outcomes as they come."""

    def __init__(self, folder: Path, commit: str) -> None:
        self.folder, self.commit = folder, commit
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst outcome of a test's three phases."""
        if report.failed:
            self.outcomes[report.nodeid] = "failed"
            self.reasons[report.nodeid] = str(report.longrepr).splitlines()[-1][:300]
        elif report.skipped:
            self.outcomes[report.nodeid] = "skipped"
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            self.reasons[report.nodeid] = str(reason)[:300]
        elif report.when == "call":
            self.outcomes.setdefault(report.nodeid, "passed")

    def pytest_sessionfinish(self) -> None:
        """Write the record, if a GPU was there and something ran."""
        import torch

        if not torch.cuda.is_available() or not self.outcomes:
            return
        gpu = torch.cuda.get_device_name()
        count = Counter(self.outcomes.values())
        record = {
            "gpu": gpu,
            "commit": self.commit,
            "sources": rows.sources_hash(),
            "versions": rows.versions(),
            "date": rows.today(),
            **{kind: count[kind] for kind in ("passed", "failed", "skipped")},
            "not passed": {
                n: self.reasons.get(n, "") for n, o in self.outcomes.items() if o != "passed"
            },
            "tests": sorted(self.outcomes),
        }
        path = self.folder / gpu.replace(" ", "-") / "gpu-tests.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """Start recording."""
    commit = config.getoption("--commit") or rows.current_commit()
    config.pluginmanager.register(Recorder(config.getoption("--results"), commit), "gpu-recorder")
