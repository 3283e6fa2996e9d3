"""Foreign packages called like our rooms keep their names, in the checkout and beside the wheel."""

from __future__ import annotations

import ast
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

FOREIGN = ("kernels", "reference", "parallel")

BOTH = """
import {name}
assert {name}.OWNER == "somebody else", {name}
import kdsl.{name}
assert all("kdsl" in p for p in kdsl.{name}.__path__), kdsl.{name}.__path__
"""

REAL = """
import os, sys
import kernels
import transformers
from transformers.integrations import hub_kernels
transformers.PreTrainedModel, transformers.LlamaConfig, kernels.get_kernel
import kdsl, kdsl.kernels.attention.config, kdsl.reference.attention
assert kdsl.Grid(8).tokens == 8 and kdsl.build
home = os.path.realpath(sys.prefix)
assert os.path.realpath(kernels.__file__).startswith(home), kernels.__file__
assert os.path.realpath(hub_kernels.__file__).startswith(home), hub_kernels.__file__
print(kdsl.__file__)
"""


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_package_wins_in_the_checkout(
    name: str, python: Any, root: Path, tmp_path: Path
) -> None:
    """With Python running in the checkout's root, an installed ``kernels`` is still itself."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text('OWNER = "somebody else"\n')
    python(BOTH.format(name=name), cwd=root, PYTHONPATH=str(tmp_path))


def test_mounted_rooms_have_no_init(root: Path) -> None:
    """An ``__init__.py`` directly in these folders would make them win over foreign packages."""
    found = [name for name in FOREIGN if (root / name / "__init__.py").exists()]
    assert not found


def test_the_door_to_the_tuner_holds_no_code(root: Path) -> None:
    """Directly in ``autotune/``, which the wheel installs under that name, is just a door."""
    door = {path.name: ast.parse(path.read_text()) for path in (root / "autotune").glob("__*.py")}
    assert set(door) == {"__init__.py", "__main__.py"}
    assert all(isinstance(statement, ast.Expr) for statement in door["__init__.py"].body)
    imported = {n.module for n in ast.walk(door["__main__.py"]) if isinstance(n, ast.ImportFrom)}
    assert imported <= {"__future__", "kdsl.autotune.cli"}


def test_rooms_are_relative_links(root: Path) -> None:
    """Every room is a relative link to its folder, so that a checkout can be moved."""
    for name in (*FOREIGN, "autotune", "tuning_db"):
        link = root / "kdsl" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..", name)
        assert link.is_dir()


@pytest.mark.slow
def test_hugging_face_and_kdsl_side_by_side(run: Any, tree: Path, tmp_path: Path) -> None:
    """The real ``kernels`` and ``transformers`` import beside the wheel and in the checkout.

    Installs both into a new environment, some 320 MB on disk; what this environment holds
    already (torch) is taken from here.
    """
    home = tmp_path / "venv"
    made = run(sys.executable, "-m", "venv", "--without-pip", home, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    pip = (sys.executable, "-m", "pip", "--python", home / "bin" / "python")
    done = run(*pip, "install", "-q", "kernels", "transformers", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    (site / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")

    checkout = run(home / "bin" / "python", "-c", REAL, cwd=tree)
    assert checkout.returncode == 0, checkout.stderr
    assert checkout.stdout.strip() == str(tree / "kdsl" / "__init__.py")

    done = run(*pip, "install", "-q", "--no-deps", "--no-build-isolation", tree, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = run(home / "bin" / "python", "-c", REAL, cwd=tmp_path)
    assert wheel.returncode == 0, wheel.stderr
    assert wheel.stdout.strip() == str(site / "kdsl" / "__init__.py")
