"""Masks of several heads as few expressions: constants in which they differ become a table by head.

Branches by head would stand in the inner loop; an entry of a table is loaded once before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from kdsl.errors import SpecError
from kdsl.expr.bounds import Bounds, check_int32, check_tables
from kdsl.expr.nodes import Expr, make, var
from kdsl.expr.tables import Table

Variant = tuple[list[int], Expr]
"""Heads, and the expression that they use."""


def grouped(exprs: Sequence[Expr]) -> list[Variant]:
    """Heads by equal expressions, most heads last (they need no test)."""
    groups: dict[str, Variant] = {}
    for head, expr in enumerate(exprs):
        groups.setdefault(expr.key, ([], expr))[0].append(head)
    return sorted(groups.values(), key=lambda g: len(g[0]))


def merged(exprs: Sequence[Expr], indices: Mapping[str, Bounds]) -> list[Variant]:
    """One expression for each shape among those of the heads, as in `grouped`.

    Heads whose expressions differ in constants share one that looks them up by head, unless the
    constants divide: the compiler divides by what it knows.
    """
    shapes: dict[str, dict[int, Expr]] = {}
    for head, expr in enumerate(exprs):
        shapes.setdefault(_shape(expr), {})[head] = expr
    out: list[Expr] = list(exprs)
    for members in shapes.values():
        if len({e.key for e in members.values()}) == 1:
            continue
        one = _merge(members, len(exprs))
        if provable(one, indices):
            out = [one if head in members else e for head, e in enumerate(out)]
    return grouped(out)


def provable(expr: Expr, indices: Mapping[str, Bounds]) -> bool:
    """Whether ranges still show that nothing overflows: constants of all heads mix in them."""
    try:
        check_int32(expr, indices)
        check_tables(expr, indices)
    except SpecError:
        return False
    return True


def _shape(expr: Expr) -> str:
    """Hash of the tree without constants that do not divide."""
    divisors = {n.args[1].key for n in expr.walk() if n.op in ("floordiv", "mod")}
    known: dict[str, str] = {}
    for node in expr.walk():
        free = node.op == "const" and node.key not in divisors
        own = "const" if free else Expr(node.op, (), node.data).key
        text = repr((node.op, own, [known[a.key] for a in node.args]))
        known[node.key] = hashlib.sha256(text.encode()).hexdigest()[:24]
    return known[expr.key]


def _merge(members: Mapping[int, Expr], heads: int) -> Expr:
    """Expressions of one shape as one, walked side by side."""
    done: dict[tuple[str, ...], Expr] = {}

    def walk(nodes: tuple[Expr, ...]) -> Expr:
        key = tuple(n.key for n in nodes)
        if key in done:
            return done[key]
        first = nodes[0]
        if len(set(key)) == 1:
            found = first
        elif first.op == "const":
            found = _by_head(dict(zip(members, (n.data for n in nodes), strict=True)), heads)
        else:
            args = tuple(walk(part) for part in zip(*(n.args for n in nodes), strict=True))
            found = make(first.op, args, first.data)
        done[key] = found
        return found

    return walk(tuple(members.values()))


def _by_head(values: Mapping[int, int], heads: int) -> Expr:
    """A constant for each head, looked up; heads without one get any of the others."""
    spare = next(iter(values.values()))
    array = np.array([values.get(h, spare) for h in range(heads)], np.int64)
    digest = hashlib.sha256(array.tobytes()).hexdigest()[:10]
    low, high = int(array.min()), int(array.max())
    return Table(f"head_{digest}", (heads,), "int32", low, high, array)[var("head")]
