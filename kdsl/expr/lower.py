"""Expressions made plain for printing: coordinates as arithmetic, idle steps dropped."""

from __future__ import annotations

from collections.abc import Mapping

from kdsl.expr.bounds import Bounds, node_bounds
from kdsl.expr.index import in_arithmetic
from kdsl.expr.nodes import Expr, boolean, const, make


def lower(expr: Expr, indices: Mapping[str, Bounds]) -> Expr:
    """The same values for indices inside the given ranges, in fewer and plainer operations."""
    ranges: dict[str, Bounds] = {}
    done: dict[str, Expr] = {}
    plain = expr.rebuild(lambda n: in_arithmetic(n) if n.op in ("coord", "visual") else None)
    for node in plain.walk():
        fresh = make(node.op, tuple(done[a.key] for a in node.args), node.data)
        if fresh.key not in ranges:
            ranges[fresh.key] = node_bounds(fresh, [ranges[a.key] for a in fresh.args], indices)
        fresh = _shorter(fresh, ranges)
        if fresh.value is not None:
            ranges[fresh.key] = (fresh.value, fresh.value)
        done[node.key] = fresh
    return done[plain.key]


def _shorter(node: Expr, ranges: Mapping[str, Bounds]) -> Expr:
    """The node, or what it comes to over its range."""
    low, high = ranges[node.key]
    if low == high and node.op != "table":
        return boolean(bool(low)) if node.is_bool else const(low)
    if node.op == "abs" and ranges[node.args[0].key][0] >= 0:
        return node.args[0]
    if node.op not in ("mod", "min", "max"):
        return node
    (a, b), (c, d) = (ranges[x.key] for x in node.args)
    if node.op == "mod":
        return node.args[0] if a >= 0 and b < c else node
    first, second = (b <= c, d <= a) if node.op == "min" else (a >= d, c >= b)
    return node.args[0] if first else node.args[1] if second else node
