"""Orders by name: what plan files and tables of results call them."""

from __future__ import annotations

import re

from kdsl.errors import SpecError
from kdsl.grid import Grid
from kdsl.orders.base import Order
from kdsl.orders.closed import Axes, Cubes, axes, cubes

CUBES = re.compile(r"cubes\((\d+(?:, \d+)*)\)")


def name_of(order: Order) -> str:
    """``"HWF"`` for an axis order, ``"cubes(2, 4, 8)"`` for cubes; SpecError for other kinds."""
    if isinstance(order, Axes):
        return order.letters
    if isinstance(order, Cubes):
        return f"cubes({', '.join(map(str, order.cube))})"
    raise SpecError(
        f"{type(order).__name__} has no name", where=repr(order), hint="axis orders and cubes do"
    )


def by_name(name: str, grid: Grid) -> Order:
    """The order that `name_of` called so, over a grid; SpecError where there is none."""
    if found := CUBES.fullmatch(name):
        return cubes(grid, tuple(map(int, found[1].split(", "))))
    if not re.fullmatch("[A-Z]+", name):
        raise SpecError(f"order name {name!r}", hint='"HWF" or "cubes(2, 4, 8)"')
    return axes(grid, name)
