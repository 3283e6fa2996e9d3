"""The range of every node over a box of indices: what the printers may rely on."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kdsl.errors import SpecError
from kdsl.expr.nodes import Expr

Bounds = tuple[int, int]
"""Smallest and largest value, inclusive."""

INT32 = (-(2**31), 2**31 - 1)


def bounds(expr: Expr, indices: Mapping[str, Bounds]) -> dict[str, Bounds]:
    """Range of each node by key, for indices inside the given ranges.

    SpecError where a divisor may be zero or negative.
    """
    done: dict[str, Bounds] = {}
    for node in expr.walk():
        args = [done[a.key] for a in node.args]
        done[node.key] = _bounds(node, args, indices)
    return done


def check_int32(expr: Expr, indices: Mapping[str, Bounds]) -> None:
    """SpecError if a node may leave 32 bits, which is what leaves compute in."""
    found = bounds(expr, indices)
    for node in expr.walk():
        low, high = found[node.key]
        if low < INT32[0] or high > INT32[1]:
            raise SpecError(
                f"{node!r} may reach {low if low < INT32[0] else high}, beyond 32 bits",
                where=repr(expr),
                hint="smaller constants, or low= and high= on its tables",
            )


def _bounds(node: Expr, args: list[Bounds], indices: Mapping[str, Bounds]) -> Bounds:
    op = node.op
    if op in ("const", "bool"):
        return (node.data, node.data)
    if op == "var":
        return indices[node.data]
    if op == "table":
        return (node.data.low, node.data.high)
    if op == "visual":
        start, count = node.data
        (low, high) = args[0]
        inside = start <= low and high < start + count
        return (int(inside), int(high >= start and low < start + count))
    if node.is_bool:
        return _truth(op, args)
    if op == "coord":
        shape, _, axis = node.data
        stride = math.prod(shape[axis + 1 :])
        last = max(shape[axis] - 1, 0)
        # An index past the grid (text at its end) wraps on all but the slowest axis.
        return (0, last) if axis or not stride else (0, min(last, max(args[0][1], 0) // stride))
    if op == "where":
        return (min(args[1][0], args[2][0]), max(args[1][1], args[2][1]))
    if op == "abs":
        a, b = args[0]
        return (max(a, -b, 0), max(-a, b))
    (a, b), (c, d) = args
    if op == "add":
        return (a + c, b + d)
    if op == "sub":
        return (a - d, b - c)
    if op == "mul":
        products = (a * c, a * d, b * c, b * d)
        return (min(products), max(products))
    if op == "min":
        return (min(a, c), min(b, d))
    if op == "max":
        return (max(a, c), max(b, d))
    if c <= 0:
        raise SpecError(
            f"divisor {node.args[1]!r} may be {c}",
            where=repr(node),
            hint="maximum(divisor, 1), or a table with low=1",
        )
    if op == "floordiv":
        return (min(a // c, a // d), max(b // c, b // d))
    if c == d and a // c == b // c:
        return (a % c, b % c)
    return (max(0, a) if 0 <= a and b < c else 0, min(b, d - 1) if a >= 0 else d - 1)


def _truth(op: str, args: list[Bounds]) -> Bounds:
    """Truth values as (must, may)."""
    if op == "not":
        return (1 - args[0][1], 1 - args[0][0])
    (a, b), (c, d) = args
    if op == "and":
        return (a & c, b & d)
    if op == "or":
        return (a | c, b | d)
    if op == "lt":
        return (int(b < c), int(a < d))
    if op == "le":
        return (int(b <= c), int(a <= d))
    equal = (int(a == b == c == d), int(a <= d and c <= b))
    return equal if op == "eq" else (1 - equal[1], 1 - equal[0])
