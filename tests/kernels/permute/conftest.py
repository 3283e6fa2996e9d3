"""Shared by the tests of the permute kernels: an emulator, orders, inputs."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kdsl import orders
from kdsl.expr.tables import Table
from kdsl.grid import Grid
from kdsl.orders import Order


def _sibling(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"permute_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs kernels on the CPU; see emulation.py."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return _sibling("emulation").Emulator(tmp_path_factory.mktemp("emulated"))


def _orders(grid: Grid, seed: int = 0) -> dict[str, Order]:
    rng = np.random.default_rng(seed)
    listed = orders.table(rng.permutation(grid.tokens), grid)
    some = {
        "identity": orders.identity(grid),
        "axes": orders.axes(grid, grid.letters[::-1]),
        "cubes": orders.cubes(grid, tuple(max(n // 2, 1) + 1 for n in grid.shape)),
        "inverse": ~orders.cubes(grid, (2,) * len(grid.shape)),
        "listed": listed,
        "named": orders.table(Table("codes", grid.tokens), grid),
        "chain": orders.axes(grid, grid.letters[::-1]) @ listed,
    }
    some["per_head"] = orders.per_head([some["cubes"], some["axes"], some["cubes"], listed])
    return some


@pytest.fixture(scope="session")
def every_order() -> Callable[..., dict[str, Order]]:
    """Function of a grid: one order of each kind; ``"named"`` needs the table ``codes``."""
    return _orders


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
    """(array that the kernel reads, its values): bfloat16 as bits and as float32."""
    x = (rng.standard_normal(shape) * np.exp(rng.normal(0, 2, (*shape[:-1], 1)))).astype(np.float32)
    if dtype == "bfloat16":
        bits = (x.view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    out = x.astype(dtype)
    return out, out


@pytest.fixture(scope="session")
def draw() -> Callable[..., tuple[Any, Any]]:
    """Function (rng, shape, dtype) to an input and its values."""
    return _draw
