"""Token indices and their coordinates."""

from __future__ import annotations

import math
from typing import Any

from kdsl.errors import SpecError
from kdsl.expr.nodes import Expr, boolean, make, maximum, where
from kdsl.grid import Grid


class Index(Expr):
    """A token index with its coordinates as attributes: ``q.frames``, ``k.width``."""

    __slots__ = ("grid",)

    grid: Grid | None

    def __init__(self, name: str, grid: Grid | None = None) -> None:
        super().__init__("var", (), name)
        object.__setattr__(self, "grid", grid)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, (self.data, self.grid)

    def __getattr__(self, name: str) -> Expr:
        if name not in ("frames", "height", "width", "length", "visual"):
            raise AttributeError(name)
        if self.grid is not None and name == "visual":
            return visual_test(self, self.grid)
        if self.grid is not None and name in (self.grid.axes or ("length",)):
            return coord(self, self.grid, name)
        hint = f"one of {self.grid.axes}" if self.grid else "predicate(..., grid=grid)"
        raise SpecError(f"index {self.data!r} has no coordinate {name!r}", hint=hint)


def coord(token: Expr, grid: Grid, axis: str | int) -> Expr:
    """Coordinate of an original token along one axis of a grid; text tokens read 0."""
    i = axis if isinstance(axis, int) else grid.axis(axis)
    name = (grid.axes or ("length",))[i]
    return make("coord", (token,), (grid.shape, grid.visual_start, i, name))


def visual_test(token: Expr, grid: Grid) -> Expr:
    """Whether an original token has coordinates, that is, is no text."""
    if not grid.text:
        return boolean(True)
    return make("visual", (token,), (grid.visual_start, grid.visual))


def in_arithmetic(node: Expr) -> Expr:
    """A ``coord`` or ``visual`` node in plain arithmetic on its token."""
    (token,) = node.args
    if node.op == "visual":
        start, count = node.data
        test: Expr = (token >= start) & (token < start + count)
        return test
    shape, start, axis, _ = node.data
    stride = math.prod(shape[axis + 1 :])
    inside = where(token < start + math.prod(shape), maximum(token - start, 0), 0)
    digit: Expr = inside // max(stride, 1) % max(shape[axis], 1)
    return digit
