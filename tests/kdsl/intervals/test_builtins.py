"""Built-in masks under every kind of order: each block as tight as dense NumPy says."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from kdsl import masks, orders
from kdsl.blocks import Blocks
from kdsl.errors import InputError, SpecError
from kdsl.expr import table
from kdsl.grid import Grid
from kdsl.intervals import classify
from kdsl.intervals.hierarchy import BUDGET
from kdsl.masks import Mask
from kdsl.orders import Order
from tests.strategies import Problem, blocks_of

VIDEO = Grid(frames=5, height=6, width=7)
GRIDS = [
    VIDEO,
    Grid(frames=4, height=5, width=6, text=5),
    Grid(frames=3, height=7, width=5, text=9, text_at="end"),
]
IMAGES = [Grid(height=13, width=11), Grid(height=9, width=16, text=3, text_at="end")]
RNG = np.random.default_rng(7)


def builtin(grid: Grid) -> dict[str, Mask]:
    """Every built-in mask over a grid, and the mixtures that the main job uses."""
    n = grid.tokens
    ids = np.sort(RNG.integers(0, 6, n))
    start = ids * 3
    out = {
        "causal": masks.causal(),
        "causal offset": masks.causal(-5),
        "causal window": masks.causal() & masks.window(9),
        "window": masks.window(grid, [3] * len(grid.shape)),
        "wide window": masks.window(grid, [4, 5, 3][: len(grid.shape)]) | masks.text(grid),
        "dilated": masks.dilated(grid, [5] * len(grid.shape), [1, 2, 2][: len(grid.shape)]),
        "sink": masks.sink(4) | masks.window(6),
        "prefix": masks.prefix(20),
        "text": masks.text(grid),
        "same": masks.same(ids),
        "segments": masks.causal() & masks.segments(RNG.integers(0, 3, n)),
        "batched": masks.same(np.stack([ids, ids[::-1]])),
        "tree": masks.tree(start, start + 1 + ids % 4),
        "ranges": masks.ranges(np.searchsorted(ids, ids), np.arange(n) + 1 - ids % 2),
        "blocks": masks.blocks("plan", block=(16, 16)) & ~masks.causal(),
        "predicate": masks.predicate(lambda q, k: (q - k) % 7 == 0),
        "everything": masks.everything(),
        "nothing": masks.nothing(),
    }
    if grid.letters == "FHW":
        out["frame band"] = masks.frame_band(grid, 1) | masks.text(grid)
        out["radial"] = masks.radial(grid, 9)
    return out


def stored(grid: Grid) -> list[Order]:
    """Every axis order, and some cubes and windows, whole and ragged."""
    rank = len(grid.shape)
    found: list[Order] = [orders.axes(grid, "".join(p)) for p in permutations(grid.letters)]
    found += [orders.cubes(grid, c[:rank]) for c in ((2, 3, 4), (3, 2, 7), (1, 4, 1))]
    return [*found, orders.windows(grid, (4, 3)), orders.windows(grid, (2,))]


@pytest.mark.parametrize("grid", [*GRIDS, *IMAGES], ids=repr)
def test_builtins_are_exact_under_every_order(grid: Grid) -> None:
    """For every built-in and order the reader finds what dense NumPy finds, block by block."""
    rows = -(-grid.tokens // 16)
    plan = RNG.integers(0, 2, (2, rows, rows))
    for name, mask in builtin(grid).items():
        for order in stored(grid):
            tables = {"plan": plan}
            problem = Problem((mask,), grid, grid, order, order, (12, 8), tables)
            found = classify(
                mask,
                grid,
                block=(12, 8),
                query_order=order,
                heads=2,
                batch=2,
                tables=tables,
            )
            full, partial = found.kept(partial=False), found.kept(full=False)
            for b, h in np.ndindex(*full.shape[:2]):
                some, every = blocks_of(problem.truth(mask, h, b), (12, 8))
                told = f"{name} under {order!r}"
                np.testing.assert_array_equal(full[b, h], every, told)
                np.testing.assert_array_equal(partial[b, h], some & ~every, told)


@pytest.mark.parametrize("letters", ["".join(p) for p in permutations("FHW")])
def test_builtins_need_no_look_inside(letters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and bands are decided from boxes alone: with no budget nothing uniform is partial."""
    monkeypatch.setattr("kdsl.intervals.hierarchy.BUDGET", 0)
    for grid in GRIDS:
        order = orders.axes(grid, letters)
        for name in ("window", "wide window", "frame band", "text"):
            mask = builtin(grid)[name]
            found = classify(mask, grid, block=(12, 8), query_order=order)
            problem = Problem((mask,), grid, grid, order, order, (12, 8), {})
            some, every = blocks_of(problem.truth(mask), (12, 8))
            np.testing.assert_array_equal(found.kept(partial=False)[0, 0], every)
            np.testing.assert_array_equal(found.kept(full=False)[0, 0], some & ~every)


def test_an_exhausted_budget_leaves_partial_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the work inside blocks exceeds its budget, the undecided are partial, never dropped."""
    assert BUDGET >= 1 << 20
    monkeypatch.setattr("kdsl.intervals.hierarchy.BUDGET", 0)
    mask = masks.predicate(lambda q, k: (q * 5 - k * 3) % 17 < 2)
    found = classify(mask, 64, block=(8, 8))
    dense = mask.dense(np.arange(64), np.arange(64))
    some, every = blocks_of(dense, (8, 8))
    assert not (found.kept(partial=False)[0, 0] & ~every).any()
    assert (found.kept()[0, 0] >= some).all()


@pytest.mark.parametrize(("queries", "keys"), [(0, 0), (0, 40), (40, 0), (1, 1), (17, 33)])
def test_short_and_empty_sequences(queries: int, keys: int) -> None:
    """Sequences of no or few tokens have rows of the right shape; of nothing nothing is kept."""
    found = classify(masks.causal(), queries, keys, block=(16, 16))
    assert found.start.shape == (1, 1, -(-queries // 16))
    assert found.columns == -(-keys // 16)
    truth = masks.causal().dense(np.arange(queries), np.arange(keys))
    assert found.kept().any() == truth.any()


def test_order_over_another_grid_of_the_same_length() -> None:
    """A mask over token numbers reads right under an order that cuts the tokens into axes."""
    order = orders.axes(Grid(frames=4, height=5, width=6, text=4), "WFH")
    for mask in (masks.causal(), masks.window(11), masks.same(np.arange(124) // 10)):
        found = classify(mask, 124, block=(8, 8), query_order=order)
        index = order.index()
        some, every = blocks_of(mask.dense(index, index), (8, 8))
        np.testing.assert_array_equal(found.kept(partial=False)[0, 0], every)
        np.testing.assert_array_equal(found.kept(full=False)[0, 0], some & ~every)


def test_keys_on_another_grid_than_queries() -> None:
    """Cross attention: queries and keys have their own grids, orders and text."""
    grid, other = Grid(frames=4, height=5, width=6), Grid(frames=2, height=5, width=6, text=7)
    mask = masks.window(grid, (3, 3, 3), keys=other) | masks.text(grid, keys=other)
    a, b = orders.axes(grid, "HWF"), orders.cubes(other, (2, 2, 3))
    found = classify(mask, grid, other, block=(8, 8), query_order=a, key_order=b)
    some, every = blocks_of(mask.dense(a.index(), b.index()), (8, 8))
    np.testing.assert_array_equal(found.kept(partial=False)[0, 0], every)
    np.testing.assert_array_equal(found.kept(full=False)[0, 0], some & ~every)


def counts(found: Blocks) -> tuple[int, ...]:
    """Leading axes of the rows."""
    return found.start.shape[:2]


def test_rows_come_once_where_nothing_differs() -> None:
    """Heads and batch items share one set of rows unless mask or order tell them apart."""
    grid = Grid(height=6, width=8)
    plain = masks.causal()
    by_head = masks.predicate(lambda q, k, head: q - k <= head)
    by_item = masks.same(np.arange(96).reshape(2, 48) // 5)
    each = orders.per_head([orders.axes(grid, "HW"), orders.axes(grid, "WH")])
    assert counts(classify(plain, grid, heads=2, batch=2)) == (1, 1)
    assert counts(classify(by_head, grid, heads=2, batch=2)) == (1, 2)
    assert counts(classify(by_item, grid, heads=2, batch=2)) == (2, 1)
    assert counts(classify(plain, grid, heads=2, query_order=each)) == (1, 2)


def test_equal_heads_share_their_entries() -> None:
    """Heads of one mask and order point at the same index entries: memory grows with kinds."""
    grid = Grid(height=16, width=16)
    order = orders.per_head([orders.axes(grid, letters) for letters in ("HW", "WH", "HW", "HW")])
    found = classify(masks.window(grid, (5, 5)), grid, block=(16, 16), query_order=order, heads=4)
    kinds = [
        classify(masks.window(grid, (5, 5)), grid, block=(16, 16), query_order=o)
        for o in order.orders[:2]
    ]
    assert len(found.index) == sum(len(kind.index) for kind in kinds)
    np.testing.assert_array_equal(found.start[0, 0], found.start[0, 2])


def test_errors() -> None:
    """Wrong grids, orders, head counts and tables are named, not read wrongly."""
    mask = masks.window(VIDEO, (3, 3, 3))
    with pytest.raises(SpecError, match="the mask speaks of Grid"):
        classify(mask, 210)
    with pytest.raises(SpecError, match="an order of 210 tokens"):
        classify(masks.causal(), 200, query_order=orders.identity(VIDEO))
    with pytest.raises(SpecError, match="masks for 2 heads, asked for 3"):
        classify(masks.per_head([masks.causal(), masks.window(3)]), 20, heads=3)
    with pytest.raises(SpecError, match="orders for 2 heads, asked for 1"):
        classify(masks.causal(), VIDEO, query_order=orders.per_head([orders.identity(VIDEO)] * 2))
    with pytest.raises(InputError, match="table 'doc' has no values"):
        classify(masks.same(table("doc", 20)), 20)
    with pytest.raises(SpecError, match="index 2 of table 'doc' runs from 2 to 2"):
        classify(
            masks.same(table("doc", (2, 20))), 20, batch=3, tables={"doc": np.zeros((2, 20), int)}
        )
    with pytest.raises(SpecError, match="divisor k may be 0"):
        classify(masks.predicate(lambda q, k: q % k == 0), 20)
    with pytest.raises(SpecError, match="index q of table 'doc' runs from 0 to 19"):
        classify(masks.same(table("doc", 19)), 20)
    two = masks.same(table("doc", 20)) & masks.same(table("doc", 21))
    with pytest.raises(SpecError, match="two tables are named 'doc'"):
        classify(two, 20)
