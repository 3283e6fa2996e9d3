"""Random grids, integer expressions, masks, orders and counts, for hypothesis.

Everything drawn is small enough for dense NumPy truth, and valid: divisors are positive, look-ups
stay inside their tables, values fit 32 bits.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kdsl import masks, orders
from kdsl.expr import Expr, Index, Table, as_expr, maximum, minimum, table, where
from kdsl.expr.evaluate import evaluate
from kdsl.expr.index import visual_test
from kdsl.expr.nodes import boolean, var
from kdsl.expr.tables import tables_of
from kdsl.grid import Grid
from kdsl.masks import Mask
from kdsl.orders import Order

T = TypeVar("T")

AXES = ("frames", "height", "width")


@st.composite
def grids(draw: st.DrawFn, most: int = 96, axes: int | None = None) -> Grid:
    """One to three axes or a plain sequence, with text at either end or none."""
    n = draw(st.integers(0, 3)) if axes is None else axes
    text = draw(st.sampled_from((0, 0, 1, 3, 7)))
    text_at = draw(st.sampled_from(("start", "end")))
    left = max(most - text, 1)
    if n == 0:
        return Grid(draw(st.integers(1, left)), text=text, text_at=text_at)
    names = draw(st.sampled_from({1: [(a,) for a in AXES], 2: PAIRS, 3: [AXES]}[n]))
    sizes = []
    for _ in names:
        sizes.append(draw(st.integers(1, max(min(left, 9), 1))))
        left //= sizes[-1]
    return Grid(**dict(zip(names, sizes, strict=True)), text=text, text_at=text_at)


PAIRS = [AXES[:2], AXES[1:], AXES[::2]]


def token_counts(most: int = 300) -> st.SearchStrategy[int]:
    """Counts around block sizes: ragged ones are the normal case."""
    edges = [n + d for n in (16, 32, 64, 128, 256) for d in (-1, 0, 1) if 0 < n + d <= most]
    return st.one_of(st.integers(1, most), st.sampled_from(edges))


@dataclass
class Scope:
    """What an expression may speak of, and the values of the tables it came to use."""

    queries: Grid
    keys: Grid
    heads: int = 2
    batch: int = 2
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def q(self) -> Index:
        """The query token."""
        return Index("q", self.queries)

    @property
    def k(self) -> Index:
        """The key token."""
        return Index("k", self.keys)

    def bounds(self) -> dict[str, tuple[int, int]]:
        """Ranges of all indices."""
        q, k = self.queries.tokens - 1, self.keys.tokens - 1
        last = {"q": q, "k": k, "qs": q, "ks": k, "head": self.heads - 1, "batch": self.batch - 1}
        return {name: (0, n) for name, n in last.items()}

    def table(self, draw: st.DrawFn, shape: tuple[int, ...], low: int, high: int) -> Table:
        """A table whose values come with the call, of random dtype and runs of equal values."""
        dtype = draw(st.sampled_from(("int32", "int16", "int8")))
        rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        values = rng.integers(low, high + 1, shape)
        if draw(st.booleans()):
            values = np.sort(values, axis=-1)
        name = f"x{len(self.values)}"
        self.values[name] = values
        return table(name, shape, dtype, low, high)


def atom(draw: st.DrawFn, scope: Scope) -> Expr:
    """A constant, an index, a coordinate or a table entry."""
    kind = draw(st.sampled_from(("token", "token", "coordinate", "const", "item", "table")))
    if kind == "const":
        return as_expr(draw(st.integers(-9, 99)))
    if kind == "item":
        return var(draw(st.sampled_from(("head", "batch"))))
    if kind == "table":
        return entry(draw, scope, -9, 9)
    index = scope.q if draw(st.booleans()) else scope.k
    if kind == "token":
        return index
    axes = (index.grid.axes or ("length",)) if index.grid else ()
    return getattr(index, draw(st.sampled_from(axes)))


def entry(draw: st.DrawFn, scope: Scope, low: int, high: int) -> Expr:
    """An entry of a table ``[tokens]``, ``[batch, tokens]``, ``[head, a, b]`` or ``[a, b]``."""
    index = scope.q if draw(st.booleans()) else scope.k
    tokens = scope.bounds()[index.data][1] + 1
    kind = draw(st.sampled_from(("tokens", "batch", "folded", "pair", "blocks")))
    if kind == "tokens":
        return scope.table(draw, (tokens,), low, high)[index]
    if kind == "batch":
        return scope.table(draw, (scope.batch, tokens), low, high)[var("batch"), index]
    if kind == "folded":
        n = draw(st.integers(1, 9))
        return scope.table(draw, (n,), low, high)[(scope.q - scope.k) % n]
    if kind == "pair":
        return scope.table(draw, (5, 4), low, high)[scope.q % 5, scope.k // 3 % 4]
    rows, columns = (g.tokens // 8 + 1 for g in (scope.queries, scope.keys))
    held = scope.table(draw, (scope.heads, rows, columns), max(low, 0), min(high, 1))
    return held[var("head"), scope.q // 8, scope.k // 8]


INTEGERS = (
    *("add", "sub", "scale", "mul", "floordiv", "mod", "divide", "wrap", "abs", "min", "max"),
    *("where", "linear", "folded"),
)


def integer(draw: st.DrawFn, scope: Scope, depth: int = 3) -> Expr:
    """An integer expression; dividends are negative as often as not."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return atom(draw, scope)
    op = draw(st.sampled_from(INTEGERS))
    a = integer(draw, scope, depth - 1)
    if op == "abs":
        return abs(a)
    if op == "scale":
        return a * draw(st.integers(-5, 5))
    if op == "floordiv":
        return a // draw(st.integers(1, 9))
    if op == "mod":
        return a % draw(st.integers(1, 20))
    if op == "folded":
        apart = a - scope.k
        n = draw(st.integers(1, 20))
        return apart // n if draw(st.booleans()) else apart % n
    if op == "linear":
        return scope.q * draw(st.integers(-3, 3)) - scope.k * draw(st.integers(-3, 3)) + a
    b = integer(draw, scope, depth - 1)
    if op == "where":
        return where(truth(draw, scope, depth - 1), a, b)
    return {
        "add": lambda: a + b,
        "sub": lambda: a - b,
        "mul": lambda: (a % 31 - 9) * (b % 31 - 9),
        "divide": lambda: a // (abs(b) % 11 + 1),
        "wrap": lambda: a % maximum(b % 11, 1),
        "min": lambda: minimum(a, b),
        "max": lambda: maximum(a, b),
    }[op]()


def truth(draw: st.DrawFn, scope: Scope, depth: int = 3) -> Expr:
    """A truth value: comparisons, tests for text, look-ups, and ``&``, ``|``, ``~``, ``^``."""
    if depth > 0 and draw(st.integers(0, 2)):
        a = truth(draw, scope, depth - 1)
        op = draw(st.sampled_from(("not", "and", "or", "and", "or", "xor")))
        if op == "not":
            return ~a
        b = truth(draw, scope, depth - 1)
        return a & b if op == "and" else a | b if op == "or" else a ^ b
    kind = draw(st.sampled_from((*["compare"] * 9, *["near"] * 4, "visual", "constant")))
    if kind == "constant":
        return boolean(draw(st.booleans()))
    if kind == "visual":
        index = scope.q if draw(st.booleans()) else scope.k
        return visual_test(index, index.grid or scope.queries)
    a = integer(draw, scope, max(depth - 1, 0))
    if kind == "near":
        return abs(scope.q - a) <= draw(st.integers(-2, 20))
    b = integer(draw, scope, max(depth - 1, 0))
    compare = draw(st.sampled_from(("<", "<=", ">", ">=", "==", "!=")))
    return COMPARE[compare](a, b)


COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@st.composite
def integers(draw: st.DrawFn, scope: Scope, depth: int = 3) -> Expr:
    """`integer` as a strategy."""
    return integer(draw, scope, depth)


@st.composite
def truths(draw: st.DrawFn, scope: Scope, depth: int = 3) -> Expr:
    """`truth` as a strategy."""
    return truth(draw, scope, depth)


@dataclass
class Leaf:
    """A leaf function to print: expressions by head, and what they speak of."""

    variants: list[tuple[list[int], Expr]]
    scope: Scope

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables of all variants."""
        return tables_of(e for _, e in self.variants)

    def expr(self, head: int) -> Expr:
        """The expression of one head; heads that are not named use the last."""
        return next((e for heads, e in self.variants if head in heads), self.variants[-1][1])

    def points(self, count: int) -> dict[str, Any]:
        """Values of all indices, their extremes among them."""
        rng = np.random.default_rng(0)
        out = {}
        for name, (low, high) in self.scope.bounds().items():
            out[name] = rng.integers(low, high + 1, count).astype(np.int32)
            out[name][:2] = low, high
        return out

    def wanted(self, at: dict[str, Any]) -> Any:
        """What NumPy finds at some points."""
        by_head = [evaluate(self.expr(h), at, self.scope.values) for h in range(self.scope.heads)]
        return np.choose(at["head"], by_head).astype(np.int32)


@st.composite
def leaves(draw: st.DrawFn, depth: int = 4) -> Leaf:
    """A mask or an integer leaf, the same for all heads or with branches for several."""
    scope = draw(scopes())
    scope.heads = draw(st.sampled_from((1, 1, 3, 4)))
    make = truth if draw(st.integers(0, 2)) else integer
    heads = [[0], [1, 2], [3]] if scope.heads > 1 else [[0]]
    variants = [(h, make(draw, scope, depth)) for h in heads[: scope.heads]]
    if scope.heads > 1 and draw(st.booleans()):
        # Branches over an order's closed form, the other kind of leaf.
        order = draw(order_of(scope.queries))
        variants[0] = ([0], order.expr.replace({"s": scope.q}))
        variants = [(h, e if not e.is_bool else where(e, 1, 0)) for h, e in variants]
    return Leaf(variants, scope)


def sample(strategy: st.SearchStrategy[T], count: int) -> list[T]:
    """That many values of a strategy, drawn once: for what is dear to start, like a compiler."""
    found: list[T] = []

    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(value: T) -> None:
        found.append(value)

    draw()
    return found


@st.composite
def scopes(draw: st.DrawFn, most: int = 96) -> Scope:
    """Query and key grids, the same one or two."""
    queries = draw(grids(most))
    return Scope(queries, queries if draw(st.booleans()) else draw(grids(most)))


@st.composite
def order_of(draw: st.DrawFn, grid: Grid, deep: bool = True) -> Order:
    """An order with an index known now: nested axes, cubes, windows, lists, inverses, chains."""
    kinds = ["axes", "axes", "cubes", "windows", "list", *(["inverse", "chain"] if deep else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "axes":
        return orders.axes(grid, "".join(draw(st.permutations(grid.letters))))
    if kind == "cubes":
        return orders.cubes(grid, [draw(st.integers(1, n + 2)) for n in grid.shape])
    if kind == "windows":
        some = grid.shape[draw(st.integers(0, len(grid.shape) - 1)) :]
        return orders.windows(grid, [draw(st.integers(1, n + 2)) for n in some])
    if kind == "list":
        rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        return orders.table(rng.permutation(grid.tokens), grid)
    if kind == "inverse":
        return ~draw(order_of(grid, False))
    return draw(order_of(grid, False)) @ draw(order_of(grid, False))


@st.composite
def late_orders(draw: st.DrawFn, grid: Grid, values: dict[str, Any], name: str) -> Order:
    """An order whose list comes with the call (put into ``values``), or its inverse, or a chain."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    values[name] = rng.permutation(grid.tokens)
    order: Order = orders.table(table(name, grid.tokens), grid)
    kind = draw(st.sampled_from(("plain", "inverse", "chain")))
    if kind == "chain":
        return order @ draw(order_of(grid, False))
    return ~order if kind == "inverse" else order


@dataclass(frozen=True)
class Problem:
    """Masks over two stored sequences, with the blocks to cut them into."""

    masks: tuple[Mask, ...]
    queries: Grid
    keys: Grid
    query_order: Order
    key_order: Order
    block: tuple[int, int]
    tables: dict[str, Any]

    def truth(self, mask: Mask, head: int = 0, batch: int = 0) -> Any:
        """A mask over stored positions, ``[queries, keys]``, evaluated densely."""
        resolved = mask.resolve(2, self.queries.tokens, self.keys.tokens)
        q, k = (
            o.parts[head % len(o.parts)].index(self.tables)
            for o in (self.query_order, self.key_order)
        )
        stored = np.arange(len(q)), np.arange(len(k))
        return resolved.dense(q, k, head=head, batch=batch, tables=self.tables, stored=stored)


BLOCKS = ((4, 4), (8, 8), (16, 8), (3, 6), (7, 5), (1, 12))


@st.composite
def problems(draw: st.DrawFn, masks_each: int = 4, depth: int = 3) -> Problem:
    """Any masks over any two grids in any stored orders, one for all heads or one for each."""
    scope = draw(scopes())
    stored = []
    for name, grid in (("late_q", scope.queries), ("late_k", scope.keys)):
        kind = draw(st.sampled_from(("known", "known", "known", "late", "heads")))
        if kind == "late":
            stored.append(draw(late_orders(grid, scope.values, name)))
        elif kind == "heads":
            stored.append(orders.per_head([draw(order_of(grid, False)) for _ in range(2)]))
        else:
            stored.append(draw(order_of(grid)))
    some = []
    for _ in range(masks_each):
        heads = 2 if draw(st.integers(0, 4)) == 0 else 1
        variants = tuple(truth(draw, scope, depth) for _ in range(heads))
        some.append(Mask(variants, scope.queries, scope.keys))
    if draw(st.booleans()):
        shared = draw(st.booleans())
        some[0] &= masks.blocks("plan", block=(16, 16), shared=shared)
        rows, columns = -(-scope.queries.tokens // 16), -(-scope.keys.tokens // 16)
        rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        scope.values["plan"] = rng.integers(0, 2, (1 if shared else 2, rows, columns))
    block = draw(st.sampled_from(BLOCKS))
    return Problem(
        tuple(some), scope.queries, scope.keys, stored[0], stored[1], block, scope.values
    )


def blocks_of(dense: Any, block: tuple[int, int]) -> tuple[Any, Any]:
    """(any, all) over the blocks of a dense mask: kept at all, and full."""
    rows, columns = (np.arange(0, n, b) for n, b in zip(dense.shape, block, strict=True))
    some = np.logical_or.reduceat(np.logical_or.reduceat(dense, rows, 0), columns, 1)
    every = np.logical_and.reduceat(np.logical_and.reduceat(dense, rows, 0), columns, 1)
    return some, every
