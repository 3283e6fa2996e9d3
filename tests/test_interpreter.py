"""The interpreter suite, each file in its own process: the variable must come before triton."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "tests" / "interpreter").rglob("test_*.py"))


def test_there_is_a_suite() -> None:
    """An empty or moved folder must not pass for a suite."""
    assert any("attention" in path.parts for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / "tests")))
def test_in_the_interpreter(path: Path, request: pytest.FixtureRequest) -> None:
    """Every test of the file passes in Triton's interpreter, and none is skipped."""
    profile = request.config.getoption("--hypothesis-profile")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            str(path),
            *([f"--hypothesis-profile={profile}"] if profile else []),
        ],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-12_000:]}\n{done.stderr[-2_000:]}"
    summary = done.stdout.strip().splitlines()[-1]
    assert re.fullmatch(r"=*\s*\d+ passed( in .*)", summary), summary
