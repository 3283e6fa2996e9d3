"""The wheel holds every file of the package and works outside the checkout."""

from __future__ import annotations

import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.house.conftest import PACKAGE, copy_tree

BUILD = "import setuptools.build_meta as b; print(b.build_{kind}({out!r}))"
SHIPPED = {".py", ".cu", ".cuh", ".sql", ".html", ".json", ".jsonl", ".typed"}

PROBE = """
import importlib.resources, sys
import kdsl, kdsl.kernels
assert not kdsl.__file__.startswith(CHECKOUT), kdsl.__file__
assert all(not p.startswith(CHECKOUT) for p in kdsl.kernels.__path__), kdsl.kernels.__path__
import kdsl.kernels.attention.config, kdsl.reference.attention
names = [f.name for f in importlib.resources.files("kdsl.tuning_db").iterdir()]
assert "README.md" in names, names
print(kdsl.__version__, len(names), *sorted(n for n in sys.modules if n in ROOMS))
"""

RUN = """
import numpy as np
import kdsl
from kdsl import Grid, masks, orders

grid = Grid(frames=3, height=4, width=5)
spec = kdsl.Attention(
    tokens=grid, heads=2, head_dim=64, dtype="float32",
    mask=masks.window(grid, (3, 3, 3)), order=orders.cubes(grid, (1, 2, 5)),
)
op = kdsl.build(spec)
q, k, v = np.random.default_rng(7).standard_normal((3, 1, 2, 60, 64), dtype=np.float32)
out = op(q, k, v)
assert out.shape == q.shape and np.isfinite(out).all()
heads = np.abs(np.indices((3, 4, 5)).reshape(3, 60, 1) - np.indices((3, 4, 5)).reshape(3, 1, 60))
seen = (heads <= 1).all(0)
scores = np.where(seen, q @ k.swapaxes(-1, -2) / 8, -np.inf)
weights = np.exp(scores - scores.max(-1, keepdims=True))
np.testing.assert_allclose(out, weights / weights.sum(-1, keepdims=True) @ v, atol=1e-5)
print("ran")
"""


def packaged(root: Path) -> set[str]:
    """Every file that the wheel has to hold, by its name in there."""
    found = {f"autotune/{name}" for name in ("__init__.py", "__main__.py")}
    for folder in [root / "kdsl", *(root / "kdsl" / room for room in PACKAGE if room != "kdsl")]:
        for file in folder.rglob("*"):
            if file.is_file() and (file.suffix in SHIPPED or file.name == "README.md"):
                found.add(str(file.relative_to(root)))
    return found


def contents(wheel: Path) -> set[str]:
    """Files in a wheel, its own metadata aside."""
    names = set(zipfile.ZipFile(wheel).namelist())
    return {name for name in names if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(python: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the tree."""
    place = tmp_path_factory.mktemp("wheel")
    out = place / "out"
    out.mkdir()
    # A template and a shipped row of every kind that the package data names.
    tree = copy_tree(place / "tree")
    (tree / "kernels" / "attention" / "planted.cu").write_text("// planted\n")
    (tree / "tuning_db" / "planted.jsonl").write_text("{}\n")
    (tree / "tuning_db" / "planted.json").write_text("{}\n")
    python(BUILD.format(kind="wheel", out=str(out)), cwd=tree)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty environment that holds the wheel and this machine's NumPy."""
    home = tmp_path_factory.mktemp("env") / "venv"
    made = run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home.parent)
    assert made.returncode == 0, made.stderr
    interpreter = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", interpreter, "--disable-pip-version-check")
    done = run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=home.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    numpy = Path(np.__file__).parent
    for folder in (numpy, numpy.with_name("numpy.libs")):
        if folder.exists():
            (site / folder.name).symlink_to(folder)
    return interpreter


def test_wheel_holds_every_file_of_the_package(wheel: Path, root: Path) -> None:
    """Nothing is missing from the wheel, and nothing else came along."""
    planted = {"kdsl/kernels/attention/planted.cu"}
    planted |= {f"kdsl/tuning_db/planted.{kind}" for kind in ("json", "jsonl")}
    assert contents(wheel) == packaged(root) | planted


def test_wheel_claims_no_foreign_name(wheel: Path) -> None:
    """The wheel installs ``kdsl`` and the door ``autotune``, no ``kernels``, no ``reference``."""
    assert {name.partition("/")[0] for name in contents(wheel)} == {"kdsl", "autotune"}


def test_wheel_from_sdist_is_the_same(python: Any, tree: Path, tmp_path: Path) -> None:
    """A wheel built from the sdist, where links have become folders, holds the same files."""
    sdist = tmp_path / "sdist"
    sdist.mkdir()
    python(BUILD.format(kind="sdist", out=str(sdist)), cwd=tree)
    (archive,) = sdist.glob("*.tar.gz")
    python(f"import shutil; shutil.unpack_archive({str(archive)!r}, filter='data')", cwd=sdist)
    (unpacked,) = (path for path in sdist.iterdir() if path.is_dir())
    python(BUILD.format(kind="wheel", out=str(sdist)), cwd=unpacked)
    (built,) = sdist.glob("*.whl")
    assert contents(built) == packaged(tree)


def test_wheel_imports_outside_the_checkout(
    installed: Path, run: Any, root: Path, tmp_path: Path
) -> None:
    """In an empty environment the package, its kernels and its measurements are found."""
    head = f"CHECKOUT = {str(root)!r}\nROOMS = {PACKAGE[:1] + PACKAGE[2:]!r}\n"
    done = run(installed, "-I", "-c", head + PROBE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    version, files, *doubled = done.stdout.split()
    assert version == tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert int(files) >= 2
    assert not doubled


def test_wheel_builds_and_runs(installed: Path, run: Any, tmp_path: Path) -> None:
    """With NumPy alone, an operator is built and agrees with attention written out by hand."""
    done = run(installed, "-I", "-c", RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ran"]


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_build_refuses_a_clone_without_links(
    kind: str, run: Any, tree: Path, tmp_path: Path
) -> None:
    """Where Git wrote a text file in place of a link, the build stops and says what to do."""
    (tree / "kdsl" / "kernels").unlink()
    (tree / "kdsl" / "kernels").write_text("../kernels")
    done = run(sys.executable, "-c", BUILD.format(kind=kind, out=str(tmp_path)), cwd=tree)
    assert done.returncode != 0
    assert "kdsl/kernels must be a folder or a symbolic link" in done.stderr
    assert "core.symlinks" in done.stderr
    assert not list(tmp_path.glob("*.whl"))
