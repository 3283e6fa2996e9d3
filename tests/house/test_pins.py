"""The constraints file pins everything that is asked for, for every Python that it speaks of."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def pins(root: Path, python: str) -> dict[str, list[str]]:
    """Versions by package, as a Linux machine with this Python reads the constraints."""
    found: dict[str, list[str]] = {}
    for line in (root / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            (only,) = pin.specifier
            assert only.operator == "==", line
            found.setdefault(canonicalize_name(pin.name), []).append(only.version)
    return found


def asked(root: Path) -> list[Requirement]:
    """What the package and all its extras ask for."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


@pytest.mark.parametrize("python", PYTHONS)
def test_each_package_has_one_pin(python: str, root: Path) -> None:
    """No package is pinned twice for one Python."""
    assert {name: found for name, found in pins(root, python).items() if len(found) > 1} == {}


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_asked_for_is_pinned_within_its_bounds(python: str, root: Path) -> None:
    """Every requirement of pyproject.toml has a pin, and the pin satisfies it."""
    found = pins(root, python)
    for need in asked(root):
        assert need.specifier.contains(found[canonicalize_name(need.name)][0]), need


def test_the_makefile_installs_every_extra(root: Path) -> None:
    """``make test`` tests with all extras there are."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    line = next(
        line
        for line in (root / "Makefile").read_text().splitlines()
        if line.startswith("EXTRAS :=")
    )
    assert set(line.partition(":=")[2].strip().split(",")) == set(project["optional-dependencies"])
