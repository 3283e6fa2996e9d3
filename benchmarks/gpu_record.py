"""A pytest plugin that records a run of the GPU tests: ``pytest -m gpu -p benchmarks.gpu_record``.

Writes ``<results>/<gpu>/gpu-tests.json``: what passed, failed and was skipped, on which card, for
which commit, and the hash of the sources it covered.  With ``--record-add`` a second run joins the
record on file, which must be of the same card and sources.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rows
from kdsl.errors import StoreError


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the record goes, and the commit where Git is not at hand."""
    group = parser.getgroup("gpu record")
    group.addoption("--results", type=Path, default=rows.ROOT / "benchmarks" / "results")
    group.addoption("--commit", default="")
    group.addoption("--record-add", action="store_true")


class Recorder:
    """Counts outcomes as they come."""

    def __init__(self, folder: Path, commit: str, add: bool) -> None:
        self.folder, self.commit, self.add = folder, commit, add
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
        about = {
            "gpu": gpu,
            "commit": self.commit,
            "sources": rows.sources_hash(),
            "versions": rows.versions(),
            "date": rows.today(),
        }
        path = self.folder / gpu.replace(" ", "-") / "gpu-tests.json"
        if self.add:
            self._join(json.loads(path.read_text()), about)
        count = Counter(self.outcomes.values())
        record = {
            **about,
            **{kind: count[kind] for kind in ("passed", "failed", "skipped")},
            "not passed": {
                n: self.reasons.get(n, "") for n, o in self.outcomes.items() if o != "passed"
            },
            "tests": dict(sorted(self.outcomes.items())),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")

    def _join(self, held: dict[str, Any], about: dict[str, Any]) -> None:
        """Take over the outcomes on file; StoreError if they are of something else."""
        for name in ("gpu", "sources"):
            if held[name] != about[name]:
                raise StoreError(
                    f"the record on file is of {name} {held[name]}, this run of {about[name]}",
                    hint="make gpu-test, which makes both halves anew",
                )
        self.outcomes = {**held["tests"], **self.outcomes}
        self.reasons = {**held["not passed"], **self.reasons}


def pytest_configure(config: pytest.Config) -> None:
    """Start recording; with pytest-xdist the workers report to the one that records."""
    if hasattr(config, "workerinput"):
        return
    commit = config.getoption("--commit") or rows.current_commit()
    recorder = Recorder(config.getoption("--results"), commit, config.getoption("--record-add"))
    config.pluginmanager.register(recorder, "gpu-recorder")
