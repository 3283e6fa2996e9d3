"""The NumPy reader: what an expression means, exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.errors import InputError
from kdsl.expr.nodes import Expr
from kdsl.expr.tables import Table

Values = npt.NDArray[Any] | int
"""An array of int64 (or bool), or one value for all positions."""

NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "shr": np.right_shift,
    "min": np.minimum,
    "max": np.maximum,
    "abs": np.abs,
    "where": np.where,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
}


def evaluate(
    expr: Expr,
    indices: Mapping[str, npt.ArrayLike],
    tables: Mapping[str, npt.NDArray[Any]] | None = None,
) -> npt.NDArray[Any]:
    """The values of an expression; indices broadcast against each other.

    Integers come back as int64, truth values as bool.  ``tables`` gives the arrays of tables whose
    values the spec does not hold.
    """
    done: dict[str, Any] = {}
    arrays = {name: np.asarray(value, dtype=np.int64) for name, value in indices.items()}
    for node in expr.walk():
        args = [done[a.key] for a in node.args]
        if node.op == "const":
            result: Any = np.int64(node.data)
        elif node.op == "bool":
            result = np.bool_(node.data)
        elif node.op == "var":
            if node.data not in arrays:
                raise InputError(f"index {node.data!r} is needed here", where=repr(expr))
            result = arrays[node.data]
        elif node.op == "coord":
            result = coordinate(args[0], node.data)
        elif node.op == "visual":
            start, count = node.data
            result = (args[0] >= start) & (args[0] < start + count)
        elif node.op == "table":
            result = look_up(node.data, args, tables)
        elif node.op == "clear":
            result = (np.bitwise_or(args[0], args[1]) & args[2]) == 0
        else:
            result = NUMPY[node.op](*args)
        done[node.key] = result
    shape = np.broadcast_shapes(*(a.shape for a in arrays.values()))
    return np.array(np.broadcast_to(done[expr.key], shape))


def coordinate(token: Values, data: tuple[tuple[int, ...], int, int, str]) -> Any:
    """Coordinate of original tokens; tokens outside the grid (text) read 0."""
    shape, start, axis, _ = data
    stride = int(np.prod(shape[axis + 1 :], dtype=np.int64))
    at = np.subtract(token, start)
    inside = (at >= 0) & (at < int(np.prod(shape, dtype=np.int64)))
    return np.where(inside, at, 0) // max(stride, 1) % max(shape[axis], 1)


def look_up(
    table: Table, at: list[Values], tables: Mapping[str, npt.NDArray[Any]] | None
) -> npt.NDArray[np.int64]:
    """Entries of a table; an index out of range is an error, never a wrapped read."""
    values = table_values(table, tables)
    for axis, (index, size) in enumerate(zip(at, values.shape, strict=True)):
        low, high = np.min(index, initial=0), np.max(index, initial=0)
        if low < 0 or high >= max(size, 1):
            raise InputError(
                f"index {int(low) if low < 0 else int(high)} is outside table {table.name!r}",
                where=f"axis {axis} of shape {values.shape}",
            )
    return np.asarray(values[tuple(at)], np.int64)


def table_values(table: Table, tables: Mapping[str, npt.NDArray[Any]] | None) -> npt.NDArray[Any]:
    """The values of a table: those it holds, else those given under its name."""
    if table.values is not None:
        return table.values
    if tables is None or table.name not in tables:
        raise InputError(
            f"table {table.name!r} has no values",
            where=repr(table),
            hint=f"tables={{{table.name!r}: ...}} in the call",
        )
    return table.checked(tables[table.name])
