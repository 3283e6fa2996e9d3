"""A copy of the tree to plant faults in, and a way to run Python in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ("autotune", "kdsl", "kernels", "parallel", "reference", "tuning_db")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of everything that is packaged, links kept as links."""
    return copy_tree(tmp_path / "tree")


def copy_tree(target: Path) -> Path:
    """Copy what is packaged to ``target``."""
    target.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in PACKAGE:
        shutil.copytree(ROOT / folder, target / folder, symlinks=True, ignore=ignore)
    for file in FILES:
        shutil.copy(ROOT / file, target / file)
    return target


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a command in a folder, its output captured, nothing of this process' paths inherited."""

    def call(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_"))}
        return subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={**inherited, "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1", **env},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return call


@pytest.fixture(scope="session")
def python(run: Run) -> Run:
    """Run this interpreter on a piece of code; fails the test with its output when it fails."""

    def call(code: str, *, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        done = run(sys.executable, "-c", code, cwd=cwd, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return call
