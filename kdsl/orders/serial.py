"""Orders as canonical JSON values."""

from __future__ import annotations

from typing import Any

from kdsl.errors import SpecError, reading
from kdsl.expr.tables import Table
from kdsl.grid import Grid
from kdsl.orders.base import Chain, Inverse, Order, PerHead, chain_of, per_head
from kdsl.orders.closed import Axes, Cubes, cubes
from kdsl.orders.listed import Listed


def to_json(order: Order) -> list[Any]:
    """An order as nested lists; tables by name and digest."""
    if isinstance(order, Axes):
        return ["axes", order.grid.to_json(), order.letters]
    if isinstance(order, Cubes):
        return ["cubes", order.grid.to_json(), list(order.cube)]
    if isinstance(order, Listed):
        return ["table", order.grid.to_json(), order.entries.to_json()]
    if isinstance(order, Inverse):
        return ["inverse", to_json(order.order)]
    if isinstance(order, Chain):
        return ["chain", to_json(order.outer), to_json(order.inner)]
    if isinstance(order, PerHead):
        return ["per_head", *map(to_json, order.orders)]
    raise SpecError(f"{type(order).__name__} has no JSON form")


@reading("order")
def from_json(value: list[Any]) -> Order:
    """The order written by `to_json`; lists kept by digest need their values at the call."""
    kind, *rest = value
    if kind == "axes":
        return Axes(Grid.from_json(rest[0]), rest[1])
    if kind == "cubes":
        return cubes(Grid.from_json(rest[0]), rest[1])
    if kind == "table":
        return Listed(Grid.from_json(rest[0]), Table.from_json(rest[1]))
    if kind == "inverse":
        return ~from_json(rest[0])
    if kind == "chain":
        return chain_of(from_json(rest[0]), from_json(rest[1]))
    if kind == "per_head":
        return per_head([from_json(r) for r in rest])
    raise SpecError(f"unknown order {kind!r}", hint="axes, cubes, table, inverse, chain, per_head")
