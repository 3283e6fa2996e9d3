"""The import contracts hold, and they see what would break them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LINT = "from importlinter.cli import lint_imports_command as main; main()"

# What is planted: the file, its line, and the offence that the report must name.
PLANTED = {
    "the language on the runtime": (
        "kdsl/grid.py",
        "import kdsl.runtime",
        "kdsl.grid -> kdsl.runtime (l.",
    ),
    "the language on the runtime, through kdsl": (
        "kdsl/grid.py",
        "from kdsl import build",
        "kdsl.grid -> kdsl (l.",
    ),
    "reference on kernels": (
        "reference/planted.py",
        "import kdsl.kernels.target",
        "kdsl.reference.planted -> kdsl.kernels.target (l.1)",
    ),
    "kernels on reference": (
        "kernels/planted.py",
        "from kdsl.reference import target",
        "kdsl.kernels.planted -> kdsl.reference.target (l.1)",
    ),
    "kernels on the runtime, inside a function": (
        "kernels/planted.py",
        "def late():\n    from kdsl.runtime.operator import Operator",
        "kdsl.kernels.planted -> kdsl.runtime.operator (l.2)",
    ),
    "parallel on kernels": (
        "parallel/planted.py",
        "import kdsl.kernels.target",
        "kdsl.parallel.planted -> kdsl.kernels.target (l.1)",
    ),
    "the runtime on the tuner": (
        "kdsl/runtime/planted.py",
        "import kdsl.autotune.target",
        "kdsl.runtime.planted -> kdsl.autotune.target (l.1)",
    ),
    "the runtime on partitions": (
        "kdsl/runtime/planted.py",
        "import kdsl.parallel.target",
        "kdsl.runtime.planted -> kdsl.parallel.target (l.1)",
    ),
    "torch modules on the tuner": (
        "kdsl/nn/planted.py",
        "import kdsl.autotune.target",
        "kdsl.nn.planted -> kdsl.autotune.target (l.1)",
    ),
    "the tuner on torch modules": (
        "autotune/planted.py",
        "import kdsl.nn",
        "kdsl.autotune.planted -> kdsl.nn (l.1)",
    ),
    "Optuna outside the tuner": (
        "kdsl/runtime/planted.py",
        "import optuna",
        "kdsl.runtime.planted -> optuna (l.1)",
    ),
    "a room that nobody declared": ("kdsl/planted.py", "", "- kdsl.planted"),
}


def lint(run: Any, tree: Path) -> subprocess.CompletedProcess[str]:
    """Read the contracts of a tree."""
    done: subprocess.CompletedProcess[str] = run(
        sys.executable, "-c", LINT, "--no-logo", "--no-cache", cwd=tree
    )
    return done


def plant(tree: Path, file: str, line: str) -> None:
    """Write a line into a file of the tree, beside modules worth importing in every room."""
    for room in ("autotune", "kernels", "parallel", "reference"):
        (tree / room / "target.py").write_text("")
    (tree / "kdsl" / "nn").mkdir(exist_ok=True)
    (tree / "kdsl" / "nn" / "__init__.py").touch()
    path = tree / file
    before = path.read_text() if path.exists() else ""
    path.write_text(f"{before}{line}\n")


def test_contracts_are_kept(run: Any, root: Path) -> None:
    """The tree as it stands breaks no contract, and the mounted rooms are among what was read."""
    done = lint(run, root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_planting_alone_breaks_nothing(run: Any, tree: Path) -> None:
    """The modules that the plants below import are no offence by themselves."""
    plant(tree, "kernels/planted.py", "import kdsl.grid")
    done = lint(run, tree)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", PLANTED)
def test_contracts_see_a_planted_import(case: str, run: Any, tree: Path) -> None:
    """An import that the table of rooms does not allow fails the check, which names it."""
    file, line, offence = PLANTED[case]
    plant(tree, file, line)
    done = lint(run, tree)
    assert done.returncode != 0, done.stdout
    assert offence in done.stdout, done.stdout + done.stderr
