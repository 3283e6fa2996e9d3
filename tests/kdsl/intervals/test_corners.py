"""Expressions on which an interval reader is easily wrong or loose, one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import orders
from kdsl.expr import Expr, Index, maximum, minimum, table, where
from kdsl.expr.index import coord, visual_test
from kdsl.grid import Grid
from kdsl.intervals import classify
from kdsl.intervals.classify import magnitude
from kdsl.masks import Mask
from kdsl.orders import Order
from tests.strategies import Problem, blocks_of

N = 60
GRIDS = [
    Grid(N),
    Grid(frames=3, height=4, width=5),
    Grid(frames=1, height=55, width=1, text=5),
    Grid(height=7, width=8, text=4, text_at="end"),
    Grid(frames=2, width=22, text=16, text_at="end"),
]
OTHER = Grid(height=6, width=9, text=6)
SORTED = np.sort(np.random.default_rng(0).integers(0, 9, N))
MIXED = np.random.default_rng(1).integers(0, 2, N)
SQUARE = np.random.default_rng(2).integers(0, 2, (N, N))
LEVELS = np.random.default_rng(3).integers(-4, 5, (9, 7))

Q, K = Index("q"), Index("k")

Rule = Callable[[Index, Index], Expr]

RULES: dict[str, Rule] = {
    # Comparisons that come out the same everywhere, though no node is constant.
    "never": lambda q, k: q + 1 - q != 1,
    "always": lambda q, k: ~(q + 3 - q < 2),
    "never less": lambda q, k: ~(q + 1 - q < 2),
    "parts": lambda q, k: (q - k) + (k - q) == 0,
    "not equal": lambda q, k: ~(q - q + k - k + 2 == 2) | (k < q),
    # Forms that skip values, where both ends lie on either side.
    "stride": lambda q, k: q * 2 == k,
    "odd": lambda q, k: q * 2 - k * 4 == 3,
    "abs of stride": lambda q, k: abs(q * 3 - k * 5) < 2,
    "abs equal": lambda q, k: abs(q - k * 2) == 7,
    "abs above": lambda q, k: abs(q * 2 - 31) >= 30,
    "abs below nothing": lambda q, k: abs(q - k) < 0,
    "abs of abs": lambda q, k: abs(abs(q - k) - 20) <= 2,
    # The same variable on both sides of an operation: the two do not move apart.
    "tied": lambda q, k: (q % 4 == 1) & (q % 4 == 2),
    "tied or": lambda q, k: (q < k) | (q >= k),
    "tied max": lambda q, k: maximum(q, k) - minimum(q, k) == abs(q - k),
    "tied product": lambda q, k: (q - 30) * (q - 30) >= 0,
    "tied window": lambda q, k: (q - k < 9) & (k - q < 9) & (q - k > -3),
    "empty band": lambda q, k: (q - k > 3) & (k - q > -2),
    # Divisors and dividends of every kind.
    "varying divisor": lambda q, k: k // (q + 1) == 2,
    "falling divisor": lambda q, k: k // (N - q) >= 1,
    "falling modulus": lambda q, k: k % (N - q) == 0,
    "negative dividend": lambda q, k: (q - k) // 7 == -2,
    "negative remainder": lambda q, k: (q - k - 60) % 11 == 4,
    "same quotient": lambda q, k: q // 8 == k // 8,
    "strided quotient": lambda q, k: q * 3 // 8 == k // 2,
    "divided by both": lambda q, k: (q * 7) // (k + 1) == (k * 7) // (q + 1),
    # Choices.
    "choice": lambda q, k: where(q < k, q, k) % 5 == 1,
    "tied choice": lambda q, k: where(q < 30, q, 59 - q) < 15,
    "decided choice": lambda q, k: where(q < 99, q, k) == k,
    # Tables, looked up densely, in strides, and by what both sides share.
    "sorted table": lambda q, k: table(SORTED)[q] == table(SORTED)[k],
    "bits": lambda q, k: (table(MIXED)[q] == 1) & (table(MIXED)[k] == 0),
    "strided table": lambda q, k: table(MIXED)[q // 2 * 2] == 1,
    "folded table": lambda q, k: table(SORTED)[(q + k) % N] > 4,
    "square": lambda q, k: table(SQUARE)[q, k] == 1,
    "diagonal": lambda q, k: table(SQUARE)[q, q] != table(SQUARE)[k, 59 - k],
    "levels": lambda q, k: table(LEVELS)[q // 7, k // 9] < 0,
    "row of levels": lambda q, k: table(LEVELS)[q % 9, 3] > table(LEVELS)[4, k % 7],
    # Coordinates of other tokens and of other grids.
    "other grid": lambda q, k: coord(q, OTHER, "height") == coord(k, OTHER, "height"),
    "other text": lambda q, k: visual_test(q, OTHER) & ~visual_test(k, OTHER),
    "between": lambda q, k: coord(minimum(q + k, N - 1), OTHER, 1) < 3,
    "neighbour": lambda q, k: coord(q - 1, OTHER, 0) == coord(k + 1, OTHER, 0),
}

STORED: dict[str, Callable[[Grid], Order]] = {
    "original": orders.identity,
    "turned": lambda g: orders.axes(g, g.letters[::-1]),
    "cubes": lambda g: orders.cubes(g, (2, 3, 2)[: len(g.shape)]),
    "listed": lambda g: orders.table(np.random.default_rng(4).permutation(g.tokens), g),
}


def exact(expr: Expr, grid: Grid, order: Order, block: tuple[int, int]) -> None:
    """Every block of the mask is what dense NumPy says, no more and no less."""
    mask = Mask((expr,))
    found = classify(mask, grid, block=block, query_order=order)
    dense = Problem((mask,), grid, grid, order, order, block, {}).truth(mask)
    some, every = blocks_of(dense, block)
    np.testing.assert_array_equal(found.kept(partial=False)[0, 0], every)
    np.testing.assert_array_equal(found.kept(full=False)[0, 0], some & ~every)


@pytest.mark.parametrize("rule", RULES)
def test_corner(rule: str) -> None:
    """Exact over five grids, four orders and two block shapes, single tokens among them."""
    for grid in GRIDS:
        expr = RULES[rule](Index("q", grid), Index("k", grid))
        for order in STORED.values():
            exact(expr, grid, order(grid), (8, 4))
        exact(expr, grid, STORED["turned"](grid), (1, 5))


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_coordinates_of_mixed_blocks(grid: Grid) -> None:
    """Blocks that hold text and grid tokens both, and axes of one token, read exactly."""
    q, k = Index("q", grid), Index("k", grid)
    for name in grid.axes or ("length",):
        a, b = getattr(q, name), getattr(k, name)
        for expr in (
            a == b,
            abs(a - b) <= 1,
            a == 0,
            (a == 0) & ~visual_test(q, grid),
            (a + q == b + k) | (visual_test(k, grid) & (b > 0)),
            a * 3 - b < q - k,
        ):
            for order in STORED.values():
                exact(expr, grid, order(grid), (8, 16))


@given(
    st.lists(st.integers(-4, 4), min_size=4, max_size=4),
    st.integers(-40, 40),
    st.sampled_from(("lt", "eq", "ne", "abs")),
    st.sampled_from(GRIDS),
    st.sampled_from(sorted(STORED)),
)
def test_linear_forms(c: list[int], n: int, kind: str, grid: Grid, order: str) -> None:
    """Any linear form of tokens and coordinates, compared any way, reads exactly."""
    q, k = Index("q", grid), Index("k", grid)
    last = (grid.axes or ("length",))[-1]
    form = c[0] * q + c[1] * k + c[2] * getattr(q, last) + c[3] * getattr(k, last)
    expr = {"lt": form < n, "eq": form == n, "ne": form != n, "abs": abs(form) <= abs(n)}[kind]
    exact(expr, grid, STORED[order](grid), (8, 4))


def test_magnitude_bounds_what_the_reader_forms() -> None:
    """Narrow integers are used only where no sum the reader forms can leave 32 bits."""
    assert magnitude(abs(Q - K) < 4096, (2**20, 2**20)) < 2**31
    assert magnitude(Q * 2000 - K * 2000 < 5, (2**20, 2**20)) > 2**31


def test_values_beyond_32_bits_read_right() -> None:
    """A mask whose sums leave 32 bits is classified in 64: an upper triangle and a last column."""
    far = Mask((((Q * 2000 - K * 2000 < 0) | (K * 4000 >= 7 * 4000 << 17)),))
    found = classify(far, 1 << 20, block=(1 << 17, 1 << 17))
    a, b = np.indices((8, 8))
    np.testing.assert_array_equal(found.kept(partial=False)[0, 0], (a < b) | (b == 7))
    np.testing.assert_array_equal(found.kept()[0, 0], (a <= b) | (b == 7))
