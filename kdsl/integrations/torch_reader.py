"""A reader of the expression tree in torch: masks as functions of index tensors.

Works on plain tensors, under ``torch.vmap`` and in traced graphs: nothing looks at a value, and the
tree itself is read once, before anything is traced.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from kdsl.errors import InputError
from kdsl.expr import Expr
from kdsl.integrations.required import required

Function = Callable[..., Any]


def reader(expr: Expr, tables: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    """A function from index tensors (int64) by name to the value of an expression.

    ``tables`` holds every table by name, as integer tensors on the indices' device.  What depends
    on no index comes out as a number or truth value of Python.
    """
    torch = required("torch")
    at: dict[str, int] = {}
    steps: list[tuple[Function, tuple[int, ...], str]] = []
    for node in expr.walk():
        name = node.data if node.op == "var" else ""
        at[node.key] = len(steps)
        made = _function(node, tables, torch)
        steps.append((made, tuple(at[a.key] for a in node.args), name))
    result = at[expr.key]

    def read(indices: Mapping[str, Any]) -> Any:
        done: list[Any] = []
        for function, args, name in steps:
            done.append(indices[name] if name else function(*[done[i] for i in args]))
        return done[result]

    return read


def _function(node: Expr, tables: Mapping[str, Any], torch: Any) -> Function:
    """What a node does with its arguments."""
    data = node.data
    if node.op in ("const", "bool"):
        value = bool(data) if node.op == "bool" else data
        return lambda: value
    if node.op == "visual":
        first, end = data[0], data[0] + data[1]
        return lambda token: (token >= first) & (token < end)
    if node.op == "coord":
        return _coordinate(data)
    if node.op == "table":
        if data.name not in tables:
            raise InputError(f"table {data.name!r} has no values", where=repr(data))
        values = tables[data.name]
        return lambda *index: values[index].long()
    return _operations(torch).get(node.op, _nothing)


def _nothing(*_: Any) -> Any:
    """What a variable does with its no arguments."""


def _coordinate(data: tuple[tuple[int, ...], int, int, str]) -> Function:
    """Coordinate of original tokens; tokens outside the grid (text) read 0."""
    shape, start, axis, _ = data
    tokens, size = math.prod(shape), max(shape[axis], 1)
    stride = max(math.prod(shape[axis + 1 :]), 1)

    def coordinate(token: Any) -> Any:
        place = token - start
        place = place * ((place >= 0) & (place < tokens))
        return place // stride % size

    return coordinate


def _operations(torch: Any) -> dict[str, Function]:
    def least(a: Any, b: Any) -> Any:
        if isinstance(a, int):
            a, b = b, a
        return a.clamp(max=b) if isinstance(b, int) else torch.minimum(a, b)

    def most(a: Any, b: Any) -> Any:
        if isinstance(a, int):
            a, b = b, a
        return a.clamp(min=b) if isinstance(b, int) else torch.maximum(a, b)

    def where(condition: Any, a: Any, b: Any) -> Any:
        if isinstance(condition, bool):
            return a if condition else b
        return torch.where(condition, a, b)

    return {
        "add": operator.add,
        "sub": operator.sub,
        "mul": operator.mul,
        # Both round towards minus infinity in torch, as in the tree.
        "floordiv": operator.floordiv,
        "mod": operator.mod,
        "min": least,
        "max": most,
        "abs": operator.abs,
        "where": where,
        "lt": operator.lt,
        "le": operator.le,
        "eq": operator.eq,
        "ne": operator.ne,
        "and": operator.and_,
        "or": operator.or_,
        "not": lambda a: (not a) if isinstance(a, bool) else ~a,
    }
