"""Ranges that a mask tests pair by pair, tested together.

A window says of each axis that the key's coordinate lies between two numbers of the query's:
``abs(x[q] - x[k]) <= r``.  Written out, that is a difference, a magnitude and a comparison a pair
and axis; where every block is partial, more than the softmax.  Here the coordinates of a key stand
beside each other in one integer, as fields with a spare bit on top, and so do a query's limits.
Two differences then test all axes at once: a field out of range sets its spare bit (SIMD within a
register; Lamport, CACM 18(8), 1975).  What a key brings is one look-up where `tables` can keep it
by stored position, and so are a query's limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from kdsl.expr.bounds import Bounds, bounds
from kdsl.expr.nodes import Expr, boolean, const, make, maximum, minimum, where

QUERY = frozenset({"q", "qs", "row", "head", "batch"})
KEY = frozenset({"k", "ks", "column"})
BITS = 30
"""Of one integer: sums and differences of two stay inside 32."""

WORTH = 4
"""Comparisons from which on two differences and one test of bits are fewer."""
COMPARED = frozenset({"lt", "le", "eq"})

Keep = Callable[[Expr], Expr]
"""What stands for a number of the key's or the query's: itself, or a table of its values."""


@dataclass
class Field:
    """A number of the key's, and the query's limits: at least, at most, exactly."""

    key: Expr
    least: list[Expr] = field(default_factory=list)
    most: list[Expr] = field(default_factory=list)
    exact: list[Expr] = field(default_factory=list)

    def add(self, other: Field) -> None:
        """Limits of the same number as well."""
        self.least += other.least
        self.most += other.most
        self.exact += other.exact

    @property
    def count(self) -> int:
        """Comparisons that `tests` makes."""
        return len(self.exact) + bool(self.least) + bool(self.most)

    def tests(self, keep: Keep) -> list[Expr]:
        """The limits as comparisons, one a side."""
        plain = all(n.op in ("const", "var", "table", "add", "sub") for n in self.key.walk())
        key = self.key if plain else keep(self.key)
        out = [limit == key for limit in self.exact]
        out += [reduce(maximum, self.least) <= key] if self.least else []
        return out + ([key <= reduce(minimum, self.most)] if self.most else [])


@dataclass(frozen=True)
class Packed:
    """Ranges of several fields as one test: no bit of ``guard`` in ``low - key`` or ``key - high``.

    With x in 0..R, lo in 0..R+1, hi in -1..R and the spare bit G > R + 1, ``lo - 1 + G - x`` has
    the bit G exactly where x < lo, and ``x - hi - 1 + G`` where x > hi; neither leaves its field.
    """

    key: Expr
    low: Expr
    high: Expr
    guard: int
    every: tuple[int, int]
    """Limits that keep every key, those outside all ranges too."""
    bypass: bool = False
    """Whether a key below 0 is kept by every query."""

    @staticmethod
    def of(
        fields: Sequence[Field], queries: Expr, keys: Expr, indices: Mapping[str, Bounds]
    ) -> Packed:
        """The fields' limits, and a truth of the query and one of the key."""
        key, low, high = const(0), const(0), const(0)
        guard = at = never = outside = lowest = highest = 0
        for number, f in enumerate(fields):
            first, last = _span(f, indices)
            span, spare = last - first, 2 ** (_width(f, indices) - 1)
            least = reduce(maximum, [*f.least, *f.exact], const(first)) - first
            most = reduce(minimum, [*f.most, *f.exact], const(last)) - first
            key = key + (f.key - first) * 2**at
            low = low + (minimum(least, span + 1) + (spare - 1)) * 2**at
            high = high + (maximum(most, -1) + (1 - spare)) * 2**at
            lowest += (spare - 1) * 2**at
            highest += (span + 1 - spare) * 2**at
            if number == 0:
                # Out of range in the first field, whatever the others do above it.
                never, outside, highest = span + spare, span + 1, highest + 1
            guard += spare * 2**at
            at += _width(f, indices)
        low, key = where(queries, low, never), where(keys, key, outside)
        return Packed(key, low, high, guard, (lowest, highest))

    def or_any(self, queries: Expr, keys: Expr) -> Packed:
        """Kept as well: all that some queries see, and what some keys are seen by."""
        low, high = (
            where(queries, all_, own)
            for all_, own in zip(self.every, (self.low, self.high), strict=True)
        )
        key = where(keys, -1, self.key)
        return replace(self, low=low, high=high, key=key, bypass=not keys.same(boolean(False)))

    def test(self, keep: Keep) -> Expr:
        """The test as an expression."""
        low, high, key = (keep(e) for e in (self.low, self.high, self.key))
        guard = where(key < 0, 0, self.guard) if self.bypass else const(self.guard)
        return make("clear", (low - key, key - high, guard))


def together(expr: Expr, indices: Mapping[str, Bounds], keep: Keep) -> Expr:
    """The same mask, where ranges of a key's numbers in one conjunction are tested together."""
    done: dict[str, Expr | Packed] = {}

    def plain(node: Expr) -> Expr:
        found = walk(node)
        return found.test(keep) if isinstance(found, Packed) else found

    def walk(node: Expr) -> Expr | Packed:
        if node.key not in done:
            if node.op == "and" or node.op in COMPARED:
                parts = [p if p.op in COMPARED else plain(p) for p in _chain(node, "and")]
                done[node.key] = _conjunction(parts, indices, keep)
            elif node.op == "or":
                done[node.key] = _either([walk(p) for p in _chain(node, "or")], keep)
            elif node.op == "not":
                done[node.key] = ~plain(node.args[0])
            else:
                done[node.key] = node
        return done[node.key]

    return plain(expr)


def _either(parts: Sequence[Expr | Packed], keep: Keep) -> Expr | Packed:
    """One of several; what queries or keys decide alone goes into the one packed test."""
    packed = [p for p in parts if isinstance(p, Packed)]
    plain = [p for p in parts if isinstance(p, Expr)]
    rest = [p for p in plain if _side(p) == "both"]
    if len(packed) != 1 or rest:
        return reduce(Expr.__or__, [p.test(keep) for p in packed] + plain)
    sides = {
        side: reduce(Expr.__or__, (p for p in plain if _side(p) == side), boolean(False))
        for side in ("query", "key")
    }
    return packed[0].or_any(sides["query"], sides["key"])


def _chain(node: Expr, op: str) -> list[Expr]:
    if node.op != op:
        return [node]
    return [part for arg in node.args for part in _chain(arg, op)]


def _conjunction(parts: Sequence[Expr], indices: Mapping[str, Bounds], keep: Keep) -> Expr | Packed:
    fields: dict[str, Field] = {}
    queries, keys, rest = list[Expr](), list[Expr](), list[Expr]()
    for part in parts:
        side = _side(part)
        found = _range(part) if side == "both" else None
        if found is not None:
            fields.setdefault(found.key.key, Field(found.key)).add(found)
        else:
            {"query": queries, "key": keys, "both": rest}[side].append(part)
    fitting, others = _fitting(fields.values(), indices)
    if sum(f.count for f in fitting) < WORTH:
        fitting, others = [], list(fields.values())
    rest += [test for f in others for test in f.tests(keep)]
    if not fitting:
        return _all([*queries, *keys, *rest])
    packed = Packed.of(fitting, _all(queries), _all(keys), indices)
    return _all([packed.test(keep), *rest]) if rest else packed


def _all(parts: Iterable[Expr]) -> Expr:
    return reduce(Expr.__and__, parts, boolean(True))


def _fitting(
    fields: Iterable[Field], indices: Mapping[str, Bounds]
) -> tuple[list[Field], list[Field]]:
    """Fields that one integer has room for, and those it has not."""
    fitting, others, left = list[Field](), list[Field](), BITS
    for f in fields:
        width = _width(f, indices)
        (fitting if width <= left else others).append(f)
        left -= width if width <= left else 0
    return fitting, others


def _span(f: Field, indices: Mapping[str, Bounds]) -> Bounds:
    return bounds(f.key, indices)[f.key.key]


def _width(f: Field, indices: Mapping[str, Bounds]) -> int:
    """Bits for the numbers 0 to span + 1, the last one out of every range, and the spare one."""
    low, high = _span(f, indices)
    return (high - low + 1).bit_length() + 1


def _range(part: Expr) -> Field | None:
    """What a truth says of a number of the key's, in numbers of the query's; None if nothing."""
    if part.op not in COMPARED:
        return None
    # 0 <= right - left, or 0 == right - left
    terms = _terms(part.args[1], 1) + _terms(part.args[0], -1)
    if part.op == "lt":
        terms.append((-1, const(1)))
    sides = [(sign, e, _side(e)) for sign, e in terms]
    mixed = [(sign, e) for sign, e, side in sides if side == "both"]
    key = [(sign, e) for sign, e, side in sides if side == "key"]
    query = [(sign, e) for sign, e, side in sides if side == "query"]
    if mixed:
        sign, e = mixed[0]
        if len(mixed) > 1 or key or sign > 0 or e.op != "abs" or part.op == "eq":
            return None
        inner = [(s, x, _side(x)) for s, x in _terms(e.args[0], 1)]
        key = [(s, x) for s, x, side in inner if side == "key"]
        middle = [(s, x) for s, x, side in inner if side == "query"]
        if not key or len(key) + len(middle) < len(inner):
            return None
        key, turned = _leading(key)
        middle = middle if turned else _negative(middle)
        return Field(_sum(key), [_sum(middle + _negative(query))], [_sum(middle + query)])
    key, turned = _leading(key)
    limit = _sum(query if turned else _negative(query))
    if part.op == "eq":
        return Field(_sum(key), exact=[limit])
    return Field(_sum(key), most=[limit]) if turned else Field(_sum(key), least=[limit])


Terms = list[tuple[int, Expr]]


def _terms(expr: Expr, sign: int) -> Terms:
    """A sum as signed parts."""
    if expr.op == "add":
        return _terms(expr.args[0], sign) + _terms(expr.args[1], sign)
    if expr.op == "sub":
        return _terms(expr.args[0], sign) + _terms(expr.args[1], -sign)
    return [(sign, expr)]


def _side(expr: Expr) -> str:
    names = expr.variables()
    if names <= QUERY:
        return "query"
    return "key" if names <= KEY else "both"


def _leading(key: Terms) -> tuple[Terms, bool]:
    """The parts in one order, with signs changed, if need be, so that the first is positive."""
    key = sorted(key, key=lambda part: part[1].key)
    return (key, False) if key[0][0] > 0 else (_negative(key), True)


def _negative(terms: Terms) -> Terms:
    return [(-sign, e) for sign, e in terms]


def _sum(terms: Terms) -> Expr:
    positive = [e for sign, e in terms if sign > 0]
    total = reduce(Expr.__add__, positive, const(0))
    return reduce(Expr.__sub__, (e for sign, e in terms if sign < 0), total)
