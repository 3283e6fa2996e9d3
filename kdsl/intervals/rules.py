"""How each operation carries ranges, and when the result is exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from kdsl.expr.index import in_arithmetic
from kdsl.expr.nodes import Expr
from kdsl.intervals.algebra import Linear, Range, Where, combine

if TYPE_CHECKING:
    from kdsl.intervals.reader import Reader


def integer(reader: Reader, node: Expr) -> Range:
    """Range of an integer operation other than a linear one."""
    parts = [reader.read(a) for a in node.args]
    where, at = reader.together(*parts)
    names = frozenset().union(*(p.names for p in parts))
    apart = len(names) == sum(len(p.names) for p in parts)
    tight = apart and all(p.tight for p in parts)
    dense = tight and all(p.dense for p in parts)
    if node.op == "where":
        return _choose(where, at, names)
    if node.op == "abs":
        low = np.maximum(np.maximum(at[0].low, -at[0].high), 0)
        # Ends on both sides of zero attain zero only if nothing is missing between.
        return Range(where, low, np.maximum(-at[0].low, at[0].high), names, dense, dense)
    a, b = at
    if node.op in ("min", "max"):
        pick = np.minimum if node.op == "min" else np.maximum
        return Range(where, pick(a.low, b.low), pick(a.high, b.high), names, tight, dense)
    if node.op == "mul":
        products = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
        low, high = products[0], products[0]
        for p in products[1:]:
            low, high = np.minimum(low, p), np.maximum(high, p)
        return Range(where, low, high, names, tight, False)
    if node.op in ("floordiv", "mod"):
        # Divisors are positive (`bounds` proves it); ranges here may be wider than they are.
        b = Range(b.where, np.maximum(b.low, 1), np.maximum(b.high, 1), b.names, b.tight, b.dense)
    if node.op == "floordiv":
        low = np.minimum(a.low // b.low, a.low // b.high)
        high = np.maximum(a.high // b.low, a.high // b.high)
        return Range(where, low, high, names, tight, dense and not b.names)
    return _remainder(where, a, b, names)


def _choose(where: Any, at: tuple[Range, ...], names: frozenset[str]) -> Range:
    condition, a, b = at
    low = np.where(condition.low, a.low, np.where(condition.high, np.minimum(a.low, b.low), b.low))
    high = np.where(
        condition.low, a.high, np.where(condition.high, np.maximum(a.high, b.high), b.high)
    )
    return Range(where, low, high, names, False, False)


def _remainder(where: Any, a: Range, b: Range, names: frozenset[str]) -> Range:
    one = (b.low == b.high) & (a.low // b.low == a.high // b.low)
    inside = (a.low >= 0) & (a.high < b.low)
    low = np.where(one, a.low % b.low, np.where(inside, a.low, 0))
    high = np.where(one, a.high % b.low, np.where(inside, a.high, b.high - 1))
    # Exact within one period, and over a whole one; the case between is not told apart here.
    return Range(where, low, high, names, False, False)


def truth(reader: Reader, node: Expr) -> Range:
    """(must, may) of a truth value other than a comparison."""
    if node.op == "bool":
        value = np.bool_(node.data)
        return Range("c", value, value, frozenset(), True, True)
    if node.op == "visual":
        return _visual(reader, node)
    if node.op == "not":
        inner = reader.read(node.args[0])
        return Range(inner.where, ~inner.high, ~inner.low, inner.names, inner.dense, inner.tight)
    parts = list(_flat(node, node.op))
    if node.op == "and":
        ranges, rest = _group(reader, parts)
        found = ranges + [reader.read(p) for p in rest]
    else:
        found = [reader.read(p) for p in parts]
    return _join(reader, node.op, found)


def _join(reader: Reader, op: str, found: list[Range]) -> Range:
    names = frozenset().union(*(f.names for f in found))
    apart = len(names) == sum(len(f.names) for f in found)
    may = all(f.tight for f in found) and (apart or op == "or")
    must = all(f.dense for f in found) and (apart or op == "and")
    # Sides are joined first, so that pairs are gathered once.
    merged: dict[Where, list[Any]] = {}
    for f in found:
        held = merged.get(f.where)
        if held is None:
            merged[f.where] = [f.low, f.high]
        elif op == "and":
            held[0], held[1] = held[0] & f.low, held[1] & f.high
        else:
            held[0], held[1] = held[0] | f.low, held[1] | f.high
    values = [Range(w, low, high, names, may, must) for w, (low, high) in merged.items()]
    where, at = reader.together(*values)
    low, high = at[0].low, at[0].high
    for v in at[1:]:
        low, high = (low & v.low, high & v.high) if op == "and" else (low | v.low, high | v.high)
    return Range(where, low, high, names, may, must)


def _flat(node: Expr, op: str) -> Iterator[Expr]:
    for a in node.args:
        if a.op == op:
            yield from _flat(a, op)
        else:
            yield a


def _visual(reader: Reader, node: Expr) -> Range:
    (token,) = node.args
    start, count = node.data
    if token.op == "var" and token.data in ("q", "k"):
        side = reader.sides[token.data]
        if "0" in side.low and (side.grid.visual_start, side.grid.visual) == (start, count):
            # Constant over a box that is all text or all visual, so it ties to no variable.
            low, high = side.low["visual"] == 1, side.high["visual"] == 1
            return Range(token.data, low, high, frozenset(), side.tight, side.tight)
    return reader.read(in_arithmetic(node))


Limits = tuple[float, float]


def as_limits(reader: Reader, node: Expr) -> tuple[Linear, Limits] | None:
    """A comparison as limits on a linear form (inclusive, infinite where open), if it is one."""
    if node.op == "not" and node.args[0].op in ("lt", "le"):
        a, b = node.args[0].args
        return as_limits(reader, Expr("le" if node.args[0].op == "lt" else "lt", (b, a)))
    if node.op not in ("lt", "le", "eq"):
        return None
    form = combine(reader.linearize(node.args[0]), reader.linearize(node.args[1]), -1)
    high = -1.0 if node.op == "lt" else 0.0
    low = 0.0 if node.op == "eq" else -np.inf
    if len(form.terms) == 1 and node.op != "eq":
        ((factor, atom),) = form.terms.values()
        # |x| <= n is a range of x; |x| >= n is none.
        if atom.op == "abs" and factor == 1:
            reach = high - form.constant
            return reader.linearize(atom.args[0]), (-reach, reach)
    return form, (low, high)


def _group(reader: Reader, parts: list[Expr]) -> tuple[list[Range], list[Expr]]:
    """Conjuncts that limit the same form, read as one range of it; and the others."""
    forms: dict[str, tuple[Linear, Limits]] = {}
    rest = []
    for part in parts:
        found = as_limits(reader, part)
        if found is None:
            rest.append(part)
            continue
        form, (low, high) = found
        low, high = low - form.constant, high - form.constant
        terms = dict(sorted(form.terms.items()))
        if terms and next(iter(terms.values()))[0] < 0:
            terms = {k: (-c, n) for k, (c, n) in terms.items()}
            low, high = -high, -low
        key = repr([(k, c) for k, (c, _) in terms.items()])
        held = forms.get(key, (Linear(0, terms), (-np.inf, np.inf)))
        forms[key] = held[0], (max(held[1][0], low), min(held[1][1], high))
    return [_limited(reader, form, limits) for form, limits in forms.values()], rest


def _limited(reader: Reader, form: Linear, limits: Limits) -> Range:
    """(must, may) of ``low <= form <= high``."""
    r = reader.total(form)
    low, high = limits
    if low > high:
        never = np.bool_(False)
        return Range("c", never, never, frozenset(), True, True)
    open_end = low == -np.inf or high == np.inf
    may, must = np.bool_(True), np.bool_(True)
    if high != np.inf:
        # NumPy's truth values throughout: `~` of Python's own would be an integer.
        may, must = np.less_equal(r.low, int(high)), np.less_equal(r.high, int(high))
    if low != -np.inf:
        may = may & np.greater_equal(r.high, int(low))
        must = must & np.greater_equal(r.low, int(low))
    return Range(r.where, must, may, r.names, r.tight if open_end else r.dense, r.tight)


def compare(reader: Reader, node: Expr) -> Range:
    """(must, may) of a comparison."""
    if node.op == "ne":
        return truth(reader, ~Expr("eq", node.args))
    found = as_limits(reader, node)
    assert found is not None
    form, (low, high) = found
    limits = (low - form.constant, high - form.constant)
    return _limited(reader, Linear(0, form.terms), limits)
