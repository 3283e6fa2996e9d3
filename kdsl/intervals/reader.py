"""Read an expression over pairs of boxes: which values it may and must take.

Integers are read as an inclusive range, truth values as (may hold, must hold).  A value that
depends on one side alone is computed once a box and gathered for pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kdsl.expr.index import coord, in_arithmetic
from kdsl.expr.nodes import Expr, var
from kdsl.intervals.algebra import Linear, Range, Where, combine
from kdsl.intervals.boxes import Boxes
from kdsl.intervals.lookup import RangeTables
from kdsl.intervals.rules import compare, integer, truth

Array = npt.NDArray[Any]


class Reader:
    """One expression over the boxes of two sides, head and batch fixed."""

    def __init__(self, expr: Expr, queries: Boxes, keys: Boxes, tables: RangeTables) -> None:
        self.expr, self.tables = expr, tables
        self.sides = {"q": queries, "k": keys}
        self.linear: dict[str, Linear] = {}
        self.kept: dict[str, Range] = {}
        self.i: Array = np.zeros(1, np.int64)
        self.j: Array = np.zeros(1, np.int64)
        self.pair: dict[str, Range] = {}

    @property
    def exact(self) -> tuple[bool, bool]:
        """Whether (may, must) are exact over these boxes."""
        tight = all(side.tight for side in self.sides.values())
        found = self.read(self.expr)
        return tight and found.tight, tight and found.dense

    def pairs(self, i: Array, j: Array) -> tuple[Array, Array]:
        """(may, must) for pairs of query box ``i`` and key box ``j``, which broadcast."""
        self.i, self.j, self.pair = i, j, {}
        found = self.at_pairs(self.read(self.expr))
        shape = np.broadcast_shapes(i.shape, j.shape)
        return np.broadcast_to(found.high, shape), np.broadcast_to(found.low, shape)

    def at_pairs(self, value: Range) -> Range:
        """A value gathered for the pairs at hand."""
        if value.where in "cp":
            return value
        at = self.i if value.where == "q" else self.j
        low, high = value.low.take(at), value.high.take(at)
        return Range("p", low, high, value.names, value.tight, value.dense)

    def together(self, *values: Range) -> tuple[Where, tuple[Range, ...]]:
        """Values brought to one place: a side, or pairs where the sides differ."""
        places = {v.where for v in values} - {"c"}
        if len(places) <= 1:
            return (places.pop() if places else "c"), values
        return "p", tuple(self.at_pairs(v) for v in values)

    def read(self, node: Expr) -> Range:
        """The range of a node, from what is kept where possible."""
        found = self.kept.get(node.key) or self.pair.get(node.key)
        if found is None:
            found = self._read(node)
            (self.pair if found.where == "p" else self.kept)[node.key] = found
        return found

    def _read(self, node: Expr) -> Range:
        if node.op in ("lt", "le", "eq", "ne"):
            return compare(self, node)
        if node.is_bool:
            return truth(self, node)
        if node.op in ("const", "var", "coord", "table"):
            return self.atom(node)
        if node.op in ("add", "sub", "mul"):
            found = self.linearize(node)
            if not (len(found.terms) == 1 and node.key in found.terms):
                return self.total(found)
        return integer(self, node)

    def atom(self, node: Expr) -> Range:
        """A variable, coordinate, table entry or constant."""
        if node.op == "const":
            return Range("c", node.data, node.data, frozenset(), True, True)
        if node.op == "table":
            return self.tables.read(self, node)
        if node.op == "coord":
            return self._coordinate(node)
        if node.data in ("q", "k"):
            return self.total(self._token(node.data))
        if node.data in ("qs", "ks"):
            # A stored position hangs together with all coordinates of its side.
            side = self.sides[node.data[0]]
            names = frozenset(f"{node.data[0]}.{n}" for n in side.low)
            return Range(node.data[0], side.low["s"], side.high["s"], names, True, True)
        raise AssertionError(f"{node.data} is fixed before reading")

    def _coordinate(self, node: Expr) -> Range:
        (token,) = node.args
        shape, start, axis, _ = node.data
        if token.op == "var" and token.data in ("q", "k"):
            side, name = self.sides[token.data], str(axis)
            own = (side.grid.shape, side.grid.visual_start) == (shape, start)
            if own and name in side.low:
                names = frozenset({f"{token.data}.{name}"})
                return Range(token.data, side.low[name], side.high[name], names, True, True)
        return self.read(in_arithmetic(node))

    def _token(self, name: str) -> Linear:
        """An original token as base and coordinates of its side."""
        side, token = self.sides[name], var(name)
        terms = {f"{name}.base": (1, token)}
        if "0" in side.low:
            for axis, stride in enumerate(side.grid.strides):
                node = coord(token, side.grid, axis)
                terms[node.key] = (stride, node)
        return Linear(0, terms)

    def linearize(self, node: Expr) -> Linear:
        """A node as a linear form over atoms; kept by structure."""
        if node.key not in self.linear:
            self.linear[node.key] = self._linearize(node)
        return self.linear[node.key]

    def _linearize(self, node: Expr) -> Linear:
        if node.op == "const":
            return Linear(node.data, {})
        if node.op == "var" and node.data in ("q", "k"):
            return self._token(node.data)
        if node.op in ("add", "sub"):
            a, b = (self.linearize(x) for x in node.args)
            return combine(a, b, 1 if node.op == "add" else -1)
        if node.op == "mul":
            for this, other in (node.args, node.args[::-1]):
                if this.value is not None:
                    return combine(Linear(0, {}), self.linearize(other), this.value)
        return Linear(0, {node.key: (1, node)})

    def term(self, key: str, node: Expr) -> Range:
        """The range of one atom of a linear form."""
        if not key.endswith(".base"):
            return self.read(node)
        where: Where = "q" if key[0] == "q" else "k"
        low, high = (d["base"] for d in (self.sides[where].low, self.sides[where].high))
        return Range(where, low, high, frozenset({key}), True, True)

    def total(self, form: Linear) -> Range:
        """The range of a linear form: the two sides are summed apart and meet last."""
        sums: dict[Where, list[Any]] = {}
        names: list[frozenset[str]] = []
        tight, dense = True, all(abs(c) == 1 for c, _ in form.terms.values())
        for key, (c, node) in form.terms.items():
            r = self.term(key, node)
            low, high = (r.low * c, r.high * c) if c >= 0 else (r.high * c, r.low * c)
            held = sums.setdefault(r.where, [0, 0])
            held[0], held[1] = held[0] + low, held[1] + high
            names.append(r.names)
            tight, dense = tight and r.tight, dense and r.dense
        union = frozenset().union(*names)
        apart = len(union) == sum(map(len, names))
        parts = [Range(w, low, high, union, True, True) for w, (low, high) in sums.items()]
        where, at = self.together(*parts)
        # Sums of a row and a column are the dear ones: the constant joins before them.
        low, high = form.constant, form.constant
        for p in sorted(at, key=lambda p: np.size(p.low)):
            low, high = low + p.low, high + p.high
        tight = tight and apart
        return Range(where, low, high, union, tight, tight and dense)
