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
    """Range of each node by key, for indices inside the given ranges; truth values as (must, may).

    SpecError where a divisor may be zero or negative.
    """
    done: dict[str, Bounds] = {}
    for node in expr.walk():
        done[node.key] = node_bounds(node, [done[a.key] for a in node.args], indices)
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


def check_tables(expr: Expr, indices: Mapping[str, Bounds]) -> None:
    """SpecError if a table may be looked up outside its shape."""
    found = bounds(expr, indices)
    for node in expr.walk():
        if node.op != "table":
            continue
        for index, size in zip(node.args, node.data.shape, strict=True):
            low, high = found[index.key]
            if low < 0 or high >= max(size, 1):
                raise SpecError(
                    f"index {index!r} of table {node.data.name!r} runs from {low} to {high}, "
                    f"the table from 0 to {size - 1}",
                    where=repr(node),
                    hint=f"a table as long as its index, or minimum(maximum(index, 0), {size - 1})",
                )


def node_bounds(node: Expr, args: list[Bounds], indices: Mapping[str, Bounds]) -> Bounds:
    """Range of one node from those of its arguments."""
    op = node.op
    if op in ("const", "bool"):
        return (node.data, node.data)
    if op == "var":
        if node.data not in indices:
            known = ", ".join(indices)
            raise SpecError(f"index {node.data!r} has no meaning here", hint=f"one of {known}")
        return indices[node.data]
    if op == "table":
        return (node.data.low, node.data.high)
    if op == "visual":
        return _visual(node.data, *args[0])
    if op in ("blocks", "clear"):
        return (0, 1)
    if node.is_bool:
        return _truth(op, args)
    if op == "coord":
        return _coordinate(node.data, *args[0])
    if op == "where":
        return _choice(*args)
    if op == "abs":
        a, b = args[0]
        return (max(a, -b, 0), max(-a, b))
    if op in ("floordiv", "mod"):
        return _division(node, *args)
    if op == "shr":
        return _shift(node, *args)
    (a, b), (c, d) = args
    if op == "add":
        return (a + c, b + d)
    if op == "sub":
        return (a - d, b - c)
    if op == "mul":
        products = (a * c, a * d, b * c, b * d)
        return (min(products), max(products))
    pick = min if op == "min" else max
    return (pick(a, c), pick(b, d))


def _visual(data: tuple[int, int], low: int, high: int) -> Bounds:
    start, count = data
    inside = count > 0 and start <= low and high < start + count
    return (int(inside), int(count > 0 and high >= start and low < start + count))


def _coordinate(data: tuple[tuple[int, ...], int, int, str], low: int, high: int) -> Bounds:
    shape, start, axis, _ = data
    count, stride = math.prod(shape), math.prod(shape[axis + 1 :])
    first, last = max(low - start, 0), min(high - start, count - 1)
    if first > last:
        return (0, 0)
    found = (0, shape[axis] - 1)
    if first // (stride * shape[axis]) == last // (stride * shape[axis]):
        found = (first // stride % shape[axis], last // stride % shape[axis])
    text_too = low < start or high >= start + count
    return (0, found[1]) if text_too else found


def _choice(condition: Bounds, a: Bounds, b: Bounds) -> Bounds:
    if condition[0] == condition[1]:
        return a if condition[0] else b
    return (min(a[0], b[0]), max(a[1], b[1]))


def _division(node: Expr, dividend: Bounds, divisor: Bounds) -> Bounds:
    (a, b), (c, d) = dividend, divisor
    if c <= 0:
        raise SpecError(
            f"divisor {node.args[1]!r} may be {c}",
            where=repr(node),
            hint="maximum(divisor, 1), or a table with low=1",
        )
    if node.op == "floordiv":
        return (min(a // c, a // d), max(b // c, b // d))
    if c == d and a // c == b // c:
        return (a % c, b % c)
    if a < 0:
        return (0, d - 1)
    return (a if b < c else 0, min(b, d - 1))


def _shift(node: Expr, value: Bounds, by: Bounds) -> Bounds:
    (a, b), (c, d) = value, by
    if c < 0 or d > 31:
        raise SpecError(
            f"shift {node.args[1]!r} runs from {c} to {d}", where=repr(node), hint="0 to 31 bits"
        )
    return (min(a >> c, a >> d), max(b >> c, b >> d))


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
