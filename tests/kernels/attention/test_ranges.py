"""Ranges tested together mean what they meant one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsl import masks, orders
from kdsl.expr import Expr, Index
from kdsl.expr.bounds import check_int32
from kdsl.expr.evaluate import evaluate
from kdsl.expr.nodes import var
from kdsl.expr.tables import Table, tables_of
from kdsl.grid import Grid
from kdsl.intervals.classify import head_order
from kdsl.kernels.attention import tables
from kdsl.kernels.attention.ranges import BITS, together
from kdsl.kernels.attention.tunable import AttentionTunable
from kdsl.specs import Attention
from tests.strategies import Scope, scopes, truths


@st.composite
def near(draw: st.DrawFn, scope: Scope) -> Expr:
    """A comparison of a number of the query's with one of the key's, in one of many spellings."""

    def number(index: Index) -> Expr:
        axes = index.grid.axes if index.grid and index.grid.axes else ("length",)
        own = draw(st.sampled_from((None, *axes)))
        value: Expr = index if own is None else getattr(index, own)
        return value + draw(st.integers(-3, 3))

    q, k = number(scope.q), number(scope.k)
    limit: Expr | int = draw(st.integers(-1, 9))
    if draw(st.integers(0, 3)) == 0:
        limit = var("head") * 2 + limit
    if draw(st.booleans()):
        q, k = k, q
    spelled = (
        abs(q - k) <= limit, abs(k - q) < limit, q - k <= limit, q <= k + limit, k > q - limit,
        q + limit >= k, q == k, k - q == limit, abs(q - k - 1) <= limit, q + k <= limit,
    )  # fmt: skip
    return draw(st.sampled_from(spelled))


@given(st.data())
def test_the_mask_stays_the_same(data: st.DataObject) -> None:
    """Random conjunctions of ranges with any other tests among them, and around them ``|`` and
    ``~``: equal truth for random pairs, and nothing leaves 32 bits."""
    scope = data.draw(scopes())
    chains = []
    for _ in range(data.draw(st.integers(1, 2))):
        parts = data.draw(st.lists(near(scope), min_size=1, max_size=5))
        parts += data.draw(st.lists(truths(scope, 2), max_size=2))
        mask = parts[0]
        for part in data.draw(st.permutations(parts)):
            mask = mask & part
        chains.append(mask)
    mask = chains[0] if len(chains) == 1 else chains[0] | ~chains[1]
    for index in (scope.q, scope.k):
        if data.draw(st.booleans()):  # rows or columns that stay dense
            mask = mask | (index % data.draw(st.integers(2, 9)) == 0)
    bounds = scope.bounds()
    found = together(mask, bounds, lambda key: key)
    check_int32(found, bounds)
    rng = np.random.default_rng(0)
    at = {name: rng.integers(low, high + 1, 400) for name, (low, high) in bounds.items()}
    wanted = evaluate(mask, at, scope.values)
    assert np.array_equal(evaluate(found, at, scope.values), wanted)


GRID = Grid(frames=4, height=5, width=6, text=7)


def agrees(spec: Attention, found: Expr, head: int) -> bool:
    """Whether the leaf's expression equals the mask for all pairs of one head."""
    queries, keys = (head_order(o, head).index({}) for o in (spec.query_order, spec.kv_order))
    qs, ks = np.meshgrid(np.arange(len(queries)), np.arange(len(keys)), indexing="ij")
    tile = {"row": qs // spec.block[0], "column": ks // spec.block[1]}
    at = {"q": queries[qs], "k": keys[ks], "head": head, "batch": 0}
    variants = spec.element_mask.variants
    wanted = evaluate(variants[head % len(variants)], at)
    return np.array_equal(evaluate(found, {**at, **tile, "qs": qs, "ks": ks}), wanted)


@pytest.mark.parametrize("order", [None, orders.cubes(GRID, (2, 2, 3)), orders.axes(GRID, "WHF")])
@pytest.mark.parametrize("dense", [True, False])
def test_a_window_is_one_test(order: orders.Order | None, dense: bool) -> None:
    """Three axes, and dense rows and columns of text: one test of bits and nothing else, over
    numbers from tables by stored position, which reach to the end of the last block."""
    mask = masks.window(GRID, (3, 3, 5))
    mask = mask | masks.text(GRID) if dense else mask
    spec = Attention(tokens=GRID, heads=2, head_dim=64, mask=mask, order=order)
    ((_, found),), _ = tables.masks(spec)
    assert found.op == "clear"
    assert {node.op for node in found.walk()} <= {
        *("clear", "sub", "table", "var", "const", "where", "lt")
    }
    assert {t.shape for t in tables_of([found])} == {(1, 128)}
    assert agrees(spec, found, 0)


def test_heads_keep_their_own_order() -> None:
    """Heads with different orders look their keys up in the rows of their orders, and heads whose
    windows differ share one test with limits by head."""
    order = orders.per_head([orders.axes(GRID, "HWF"), orders.axes(GRID, "FHW")] * 2)
    mask = masks.per_head([masks.window(GRID, (3, 3, n)) for n in (1, 3, 5, 3)])
    spec = Attention(tokens=GRID, heads=4, head_dim=64, mask=mask, order=order)
    ((_, found),), _ = tables.masks(spec)
    assert found.op == "clear"
    assert sorted(t.shape for t in tables_of([found]) if len(t.shape) == 2) == [
        (2, 128), (4, 128), (4, 128)
    ]  # fmt: skip
    assert all(agrees(spec, found, head) for head in range(4))


def test_open_orders_and_tables_are_computed() -> None:
    """What is known at the call only stays arithmetic in the kernel: no table is made of it."""
    mask = masks.window(GRID, (3, 3, 5))
    spec = Attention(
        tokens=GRID, heads=1, head_dim=64, mask=mask,
        order=orders.table(Table("late", GRID.tokens, "int32", 0, GRID.tokens - 1), GRID),
    )  # fmt: skip
    ((_, found),), _ = tables.masks(spec)
    assert found.op == "clear"
    assert not tables_of([found])


def test_what_one_integer_cannot_hold_stays_apart() -> None:
    """Ranges beyond its bits are compared by themselves, exact at the border of each."""
    wide, bounds = Grid(frames=3000, height=3000, width=200), {"q": (0, 10), "k": (0, 2**31 - 2)}
    q, k = Index("q"), Index("k", wide)
    mask = (abs(q - k.frames) <= 2) & (abs(q - k.height) <= 3) & (abs(q - k.width) <= 4)
    found = together(mask, bounds, lambda key: key)
    ops = [node.op for node in found.walk()]
    assert ops.count("clear") == 1
    assert "abs" not in ops
    assert all(n.args[2].value < 2**BITS for n in found.walk() if n.op == "clear")
    frames, height, width = np.meshgrid(*[np.arange(9)] * 3, indexing="ij")
    key = ((frames * 3000 + height) * 200 + width).reshape(-1)
    at = {"q": np.arange(11)[:, None], "k": key}
    assert np.array_equal(evaluate(found, at), evaluate(mask, at))


def test_few_comparisons_stay_comparisons() -> None:
    """Causal masks, documents and single bands gain nothing from packing."""
    for mask in (
        masks.causal(), masks.frame_band(GRID, 1), masks.causal() & masks.same(np.arange(127) // 9)
    ):  # fmt: skip
        spec = Attention(tokens=GRID, heads=1, head_dim=64, mask=mask)
        ((_, found),), _ = tables.masks(spec)
        ops = {node.op for node in found.walk()}
        assert "clear" not in ops
        assert "abs" not in ops


@pytest.mark.parametrize("sizes", [(0, 9), (9, 0), (0, 0)])
def test_no_tokens_no_tables(sizes: tuple[int, int]) -> None:
    """A side without tokens has nothing to keep in a table, and the source is still made."""
    mask = masks.predicate(lambda q, k: (abs(q // 4 - k // 4) <= 1) & (abs(q % 4 - k % 4) <= 1))
    spec = Attention(queries=sizes[0], keys=sizes[1], heads=1, head_dim=64, mask=mask)
    assert all(0 not in t.shape for t in tables.tables(spec))
    assert "def mask" in AttentionTunable(spec).source
